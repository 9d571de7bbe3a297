"""Operating-system errors as ours, mapped once at the boundary of the POSIX backend.

Pure: an ``OSError`` in, one of ``engine.errors`` out, with the key, what was being done and what helps.
"""

from __future__ import annotations

import errno
from types import TracebackType

from ..errors import AccessDeniedError, NotFoundError, S3dlioError, StorageError, StorageFullError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# EIO is not here: after it the kernel may have dropped dirty pages, and trying again can succeed without the bytes.
TRANSIENT = frozenset(
    {
        errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOLCK, errno.ENOMEM,
        errno.ESTALE, errno.ETIMEDOUT,
    }
)  # fmt: skip

_ADVICE = {
    errno.ENOSPC: "free space or store elsewhere",
    errno.EDQUOT: "raise the quota or store elsewhere",
    errno.EFBIG: "raise the file-size limit (ulimit -f), or use a file system that takes larger files",
    errno.EROFS: "the file system is mounted read-only",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where the object would be",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EIO: "the device failed; what it holds of this object cannot be trusted",
}


def storage_error(error: OSError, doing: str, *, transient: bool | None = None) -> StorageError:
    """What ``error`` means for a caller; ``transient`` overrides what the errno says about trying again."""
    number = error.errno or 0
    advice = _ADVICE.get(number)
    text = f"{doing}: {error.strerror or error}" + (f" ({advice})" if advice else "")
    if number == errno.ENOENT:
        return NotFoundError(text)
    if number in DENIED:
        return AccessDeniedError(text)
    if number in FULL:
        return StorageFullError(text)
    return StorageError(text, transient=number in TRANSIENT if transient is None else transient)


class translated:
    """Raises an ``OSError`` of the body as ours; our own classes, some of which are ``OSError`` too, pass unchanged.

    A class, since a generator's context costs 20 µs more on a cold cache, which is where a 16 MiB read leaves it.
    """

    __slots__ = ("_doing",)

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, S3dlioError):
            raise storage_error(error, self._doing) from error
