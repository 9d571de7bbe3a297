"""What makes a file last on a POSIX file system: space taken early, bytes and names fsynced, one writer a name.

Owns folders, fsync, fallocate and locks; knows paths, not keys. ``OSError`` leaves its functions, except that a failed
fsync is a ``StorageError`` that is never transient: the kernel may have dropped the dirty pages, so a second fsync
could succeed without the bytes. Called by ``posix``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .oserrors import storage_error
from .posix_names import lock_of

_UNSYNCABLE = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""From fsync of a folder: file systems (CIFS, some FUSE) where creating a name is as durable as it gets."""
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_NO_FLOCK = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_REMEMBERED = 4096


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    # Not os.posix_fallocate: where the file system has none, glibc writes a byte to every block instead.
    libc = ctypes.CDLL(None, use_errno=True)
    found = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        found.restype = ctypes.c_int
    return found


_fallocate = _find_fallocate()


def reserve(fd: int, size: int) -> None:
    """Take ``size`` bytes of space for an empty file, so that a full disk or a limit is told before the first byte.

    ENOSPC, EDQUOT or EFBIG if they are not to be had; nothing where the file system cannot reserve. The file is then
    ``size`` long and reads as zeros: measured, parallel writes into it are at least as fast as behind its end, which
    ext4 and XFS serialise.
    """
    if _fallocate is None or size <= 0:
        return
    space = os.fstatvfs(fd)
    free = (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
    if space.f_blocks and size > free:
        # ext4 would take all that is left before it refuses, and every other writer would find the disk full meanwhile.
        raise OSError(errno.ENOSPC, f"{size} bytes are needed and {free} are left")
    while _fallocate(fd, 0, 0, size) != 0:
        number = ctypes.get_errno()
        if number in _NO_FALLOCATE:
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def sync_file(fd: int, path: str) -> None:
    """fsync a file; a failure is final."""
    _sync(os.fsync, fd, path)


def sync_data(fd: int, path: str) -> None:
    """fdatasync a file; a failure is final."""
    _sync(getattr(os, "fdatasync", os.fsync), fd, path)


def stamp(fd: int) -> None:
    """Give a file the clock's time to the nanosecond; the kernel's own stamps repeat for up to 4 ms."""
    now = time.time_ns()
    os.utime(fd, ns=(now, now))


class Folders:
    """The folders of one store: made when needed, their entries durable when something durable lies in them.

    Thread-safe. Remembers which folders (by path and inode) need no more than their own fsync.
    """

    def __init__(self) -> None:
        self._lasting: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def create(self, path: str) -> int:
        """Create and open a new file, with its folders; EEXIST if it is there.

        A folder may vanish between its making and the file's (``remove_empty`` of another process), hence the loop.
        """
        for _ in range(100):
            try:
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                with suppress(FileNotFoundError):
                    os.makedirs(os.path.dirname(path), exist_ok=True)
        raise OSError(errno.EBUSY, f"folders of {path} are removed as fast as they are made")

    def settle(self, folder: str) -> None:
        """fsync a folder, and each one above it whose entry may not be on the device yet, whoever made it.

        A folder that is gone was emptied and removed by somebody else after the caller was done: nothing is left to do.
        """
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            _sync_folder(fd, folder)
            found = os.fstat(fd)
        finally:
            os.close(fd)
        identity = (found.st_dev, found.st_ino)
        with self._lock:
            if self._lasting.get(folder) == identity:
                return
        parent = os.path.dirname(folder)
        if parent != folder and os.access(parent, os.R_OK):  # an ancestor of the root may be closed to us
            self.settle(parent)
        with self._lock:
            if len(self._lasting) >= _REMEMBERED:
                self._lasting.clear()
            self._lasting[folder] = identity

    def remove_empty(self, folder: str, root: str) -> None:
        """Remove ``folder`` and those above it, below ``root``, as long as they are empty."""
        while folder != root and folder.startswith(root):
            try:
                os.rmdir(folder)
            except OSError:  # not empty, gone already, or not ours to remove: it stays
                return
            folder = os.path.dirname(folder)


@contextmanager
def locked(path: str, *, needed: bool) -> Iterator[None]:
    """Hold the lock on a name against the other processes and threads that replace or remove it.

    The lock is an flock on a file beside it, removed afterwards; a killed holder's lock is free at once, and its file
    is hidden from listings. Waits as long as others hold it: they rename or unlink, no more. Where the file system has
    no flock, ``needed`` decides between an ``OSError`` and doing without.
    """
    fd = _take_lock(lock_of(path), needed)
    if fd is None:
        yield
        return
    try:
        yield
    finally:
        # Before the lock is let go: who waits for it finds the file gone, and begins again with a new one.
        with suppress(FileNotFoundError):
            os.unlink(lock_of(path))
        os.close(fd)


def _take_lock(lock: str, needed: bool) -> int | None:
    while True:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG or needed:
                raise
            return None  # no key of ours is so long: none of our writers is kept out
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(fd, lock):
                kept, fd = fd, -1
                return kept
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            with suppress(FileNotFoundError):
                os.unlink(lock)
            if needed:
                raise OSError(error.errno, "the file system has no flock, which if_match needs") from error
            return None
        finally:
            if fd >= 0:
                os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    """Whether ``path`` still names this open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _sync(sync: Callable[[int], None], fd: int, path: str) -> None:
    try:
        sync(fd)
    except OSError as error:
        raise storage_error(error, f"fsync of {path}", transient=False) from error


def _sync_folder(fd: int, path: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _UNSYNCABLE:
            raise storage_error(error, f"fsync of folder {path}", transient=False) from error
