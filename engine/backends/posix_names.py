"""Names of files in a POSIX store: the files beside an object that are none, and how to tell them.

Pure text. An upload of ``folder/name`` is the file ``folder/.name.<began>-<random>.part``, its name in the contract is
``<began>-<random>-<inode>``: when it began (16 hex digits of ns) and which file it is, so that a repeated ``complete``
can prove that what stands under the key is this very upload. A lock on a key is ``folder/.name.s3dlio-lock``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ConfigError

_PART = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16}-[0-9a-f]{8})\.part", re.DOTALL)
_LOCK = re.compile(r"\..+\.s3dlio-lock", re.DOTALL)
_UPLOAD = re.compile(r"(?P<token>(?P<began>[0-9a-f]{16})-[0-9a-f]{8})-(?P<inode>[0-9a-f]+)")

NAME_MAX = 255
"""Bytes in one name on Linux's file systems."""
_LONGEST = NAME_MAX - len("..0123456789abcdef-01234567.part")


@dataclass(frozen=True, slots=True)
class UploadName:
    """An upload's name taken apart: ``began`` in ns since the epoch."""

    token: str
    began: int
    inode: int

    def __str__(self) -> str:
        return f"{self.token}-{self.inode:x}"


def new_token(now_ns: int, chance: bytes) -> str:
    """The token of an upload that begins at ``now_ns``, told from others of that moment by 4 bytes of chance."""
    return f"{now_ns:016x}-{chance.hex()}"


def parse_upload(upload: str) -> UploadName | None:
    """The parts of an upload's name; ``None`` if no upload can have it."""
    match = _UPLOAD.fullmatch(upload)
    return UploadName(match["token"], int(match["began"], 16), int(match["inode"], 16)) if match else None


def upload_of(filename: str, inode: int) -> tuple[str, UploadName] | None:
    """The object's name and the upload whose file this is; ``None`` for any other file."""
    match = _PART.fullmatch(filename)
    if match is None:
        return None
    token = match["token"]
    return match["name"], UploadName(token, int(token[:16], 16), inode)


def is_hidden(filename: str) -> bool:
    """Whether a file is an upload or a lock and therefore no object."""
    return filename.startswith(".") and bool(_PART.fullmatch(filename) or _LOCK.fullmatch(filename))


def beside(path: str, token: str) -> str:
    """The file of an upload to ``path``."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{token}.part"


def lock_of(path: str) -> str:
    """The lock file of ``path``."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.s3dlio-lock"


def check_name(key: str) -> None:
    """``ConfigError`` if a file system could not hold ``key``, or would hide it as an upload or a lock."""
    for part in key.split("/"):
        if is_hidden(part):
            raise ConfigError(f"{key}: {part!r} is the name of an unfinished upload or a lock; choose another")
        try:
            size = len(part.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as error:
            raise ConfigError(f"{key!r}: {part!r} is no text that a file system could hold") from error
        if size > _LONGEST:
            raise ConfigError(f"{key}: a name of more than {_LONGEST} bytes cannot be stored in a folder")
