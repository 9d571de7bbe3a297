"""The marks by which a folder of an object store is a checkpoint or not yet: two objects in it.

Pure: names, and the record of what was committed. ``object_tree`` puts and reads them; FORMAT.md describes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ...engine.contract import ObjectInfo
from ...engine.errors import ManifestError

MARK = ".s3dlio-"
"""How the names of marks begin: no file of a checkpoint may be called so."""
UNFINISHED = f"{MARK}unfinished"
COMMITTED = f"{MARK}committed"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Marks:
    """What marks a folder: ``unfinished`` counts only while it is not ``committed``."""

    unfinished: bool = False
    committed: ObjectInfo | None = None

    @property
    def hidden(self) -> bool:
        """Whether the folder is no checkpoint yet."""
        return self.unfinished and self.committed is None


@dataclass(frozen=True, slots=True)
class Version:
    """A file as it was committed."""

    size: int
    etag: str


def dump(files: Mapping[str, Version]) -> bytes:
    """The record of the files of a folder, by their names in it."""
    listed = {name: [version.size, version.etag] for name, version in sorted(files.items())}
    return json.dumps({"s3dlio_folder": _FORMAT, "files": listed}, separators=(",", ":")).encode()


def load(data: bytes, key: str) -> dict[str, Version]:
    """The files of a record; ``ManifestError`` for one that is malformed, or of a newer version."""
    try:
        record = json.loads(data)
        version, listed = record["s3dlio_folder"], record["files"]
        files = {name: Version(*found) for name, found in listed.items()}
        sound = all(type(file.size) is int and type(file.etag) is str for file in files.values())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ManifestError(f"{key} is no record of a committed folder: {error}") from error
    if version != _FORMAT or not sound:
        raise ManifestError(f"{key} is of version {version!r}, or malformed: this s3dlio reads version {_FORMAT}")
    return files
