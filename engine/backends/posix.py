"""Objects as files: schemes ``file`` and ``direct``.

Owns how a key becomes a file, and when what is fsynced. Bytes move by ``route``, folders and locks are in ``durable``,
names in ``posix_names``, the walk in ``posix_tree``. Opened by ``open_backend``.

::

    begin     create folder/.name.<token>.part, take its space     put       create it, write, fsync
    put_part  write at the offset, O_DIRECT                                  link (if_absent) or rename to folder/name
    complete  cut the padding, fsync, rename to folder/name                  fsync the folder and new ones above
              fsync the folder and new ones above

A part's receipt means that its bytes are on the device or in its write cache, so ``complete`` flushes that cache and
the metadata only. While an upload is completed nobody may store its parts; the ledger sees to that.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ..contract import Backend, Limits, Location, ObjectInfo, Page, PartReceipt, Segments, UploadInfo, check_key
from ..errors import ConfigError, CorruptError, NotFoundError, PreconditionError, StorageError
from . import durable
from .checks import check_part, check_parts, check_put, check_range, check_version
from .direct_io import ALIGNMENT, SMALL, read_buffered
from .oserrors import translated
from .posix_names import UploadName, beside, check_name, is_hidden, new_token, parse_upload, upload_of
from .posix_tree import walk
from .route import Route

LIMITS = Limits(part_min=1, part_max=1 << 30, parts_max=1 << 20, put_max=64 << 20, alignment=ALIGNMENT)
PAGE = 1 << 16
"""Entries of a page. Each page after the first reads its folder's names again: 1 to 3 s for a million."""


def open_location(location: Location) -> PosixBackend:
    """The backend of a ``file`` or ``direct`` location; ``ConfigError`` if its root is no absolute path."""
    if location.options:
        raise ConfigError(f"{location.uri}: {location.scheme}:// takes no options, not {dict(location.options)}")
    if not location.root.startswith("/") or "\0" in location.root:
        raise ConfigError(f"{location.uri}: the folder must be an absolute path, as in {location.scheme}:///folder")
    return PosixBackend(location.root, direct=location.scheme == "direct")


class PosixBackend(Backend):
    """``Backend`` over the folder ``root``, made at the first write.

    ``direct``: read past the page cache even what it holds, and never leave O_DIRECT in silence. Objects put whole with
    less than 256 KiB go through the cache and fsync.
    """

    def __init__(self, root: str, *, direct: bool) -> None:
        self._root = "/" + "/".join(part for part in root.split("/") if part)
        self._route = Route(self._root, direct=direct)
        self._folders = durable.Folders()

    @property
    def limits(self) -> Limits:
        return LIMITS

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        size = check_put(LIMITS, key, data, if_absent, if_match)
        path = self._path(key)
        with translated(f"put of {path}"):
            aside, _, fd = self._create(path)
            try:
                self._route.write(fd, 0, data, past_cache=size >= SMALL)
                self._seal(fd, aside, size)
                if if_absent:
                    _publish_new(aside, path, key)
                else:
                    self._publish(aside, path, key, if_match)
                info = _info(key, os.fstat(fd))
            finally:
                os.close(fd)
                self._drop(aside)
            self._folders.settle(os.path.dirname(path))
        return info

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        path = self._path(key)
        with translated(f"read of {path}"):
            fd, found = self._open(path)
            try:
                info = _info(key, found)
                if info.size > limit:
                    raise StorageError(f"{path} holds {info.size} bytes, more than the {limit} expected")
                body = memoryview(bytearray(info.size))
                if read_buffered(fd, 0, body) < info.size:
                    raise CorruptError(f"{path} became shorter while it was read")
            finally:
                os.close(fd)
        return bytes(body), info

    def head(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with translated(f"head of {path}"):
            found = self._stat(path)
        if found is None:
            raise NotFoundError(f"{path} does not exist")
        return _info(key, found)

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        self._check_root()
        entries = (
            (key, None if key.endswith("/") else _info(key, found))
            for key, found in walk(self._root, prefix, after=after, shallow=shallow)
            if key.startswith(prefix) and not is_hidden(key.rpartition("/")[2])
        )
        return Page.of(entries, limit or PAGE)

    def delete(self, key: str) -> None:
        path = self._listed_path(key)
        with translated(f"delete of {path}"):
            if self._stat(path) is None:
                return
            folder = os.path.dirname(path)
            with suppress(FileNotFoundError), durable.locked(path, needed=False):
                os.unlink(path)
            self._folders.settle(folder)  # before anything that must not outlive it is deleted too
            self._folders.remove_empty(folder, self._root)

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        self._check_root()
        for key, found in walk(self._root, prefix):
            folder, _, filename = key.rpartition("/")
            upload = upload_of(filename, found.st_ino)
            if upload is not None:
                target = f"{folder}/{upload[0]}" if folder else upload[0]
                if target.startswith(prefix):
                    yield UploadInfo(target, str(upload[1]), upload[1].began / 1e9)

    def written(self, key: str, upload: str) -> float:
        path, name = self._path(key), parse_upload(upload)
        with translated(f"stat of the upload to {path}"):
            found = None if name is None else self._stat(beside(path, name.token))
        return 0.0 if found is None else found.st_mtime

    def abort(self, key: str, upload: str) -> None:
        path = self._path(key)
        name = parse_upload(upload)
        if name is None:
            return
        with translated(f"abort of the upload to {path}"):
            self._drop(beside(path, name.token))

    def begin(self, key: str, *, size: int | None = None) -> str:
        if size is not None and size < 0:
            raise ConfigError(f"{key}: an object cannot have {size} bytes")
        path = self._path(key)
        with translated(f"begin of {path}"):
            aside, name, fd = self._create(path)
            try:
                durable.reserve(fd, size or 0)
            except BaseException:
                self._drop(aside)
                raise
            finally:
                os.close(fd)
        return str(name)

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        size = check_part(LIMITS, key, number, offset, data)
        path = self._path(key)
        name = _upload_name(path, upload)
        with translated(f"part {number} of {path}"):
            fd = _open_upload(path, name)
            try:
                if not self._route.write(fd, offset, data):
                    durable.sync_data(fd, path)  # the receipt is given out: a failure must be this part's
            finally:
                os.close(fd)
        return PartReceipt(number, offset, size, upload)

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        total = check_parts(LIMITS, key, parts)
        path = self._path(key)
        name = _upload_name(path, upload)
        for part in parts:
            if part.tag != upload:
                raise CorruptError(f"{path}: part {part.number} was stored for another upload")
        aside = beside(path, name.token)
        with translated(f"complete of {path}"):
            try:
                fd = _open_upload(path, name)
            except NotFoundError:
                return self._completed(key, path, name, total)
            try:
                if (stored := os.fstat(fd).st_size) < total:
                    raise CorruptError(f"{path}: the upload holds {stored} bytes, its parts make {total}")
                try:
                    self._seal(fd, aside, total)
                except StorageError:
                    self._drop(aside)  # what failed to be fsynced must not be completed by a second try
                    raise
                try:
                    self._publish(aside, path, key, None)
                except FileNotFoundError:
                    return self._completed(key, path, name, total)
                info = _info(key, os.fstat(fd))
            finally:
                os.close(fd)
            self._folders.settle(os.path.dirname(path))
        return info

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        check_range(key, offset, into)
        path = self._path(key)
        with translated(f"read of {path}"):
            fd, found = self._open(path)
            try:
                check_version(path, _info(key, found).etag, if_match)
                end = offset + into.nbytes
                if end > found.st_size or offset + self._route.read(fd, offset, into) < end:
                    raise CorruptError(f"{path} ends at {os.fstat(fd).st_size}, before byte {end}")
            finally:
                os.close(fd)

    def close(self) -> None:
        """Nothing is held: files are open within a call only."""

    def _path(self, key: str) -> str:
        check_name(check_key(key))
        return f"{self._root.rstrip('/')}/{key}"

    def _listed_path(self, key: str) -> str:
        """The path of any file that a listing tells, which another program may have given a name that is no key."""
        name = key.rpartition("/")[2]
        check_key(key.replace("\\", "_"))
        if is_hidden(name):
            raise ConfigError(f"{key}: {name!r} is the name of an unfinished upload or a lock")
        return f"{self._root.rstrip('/')}/{key}"

    def _stat(self, path: str) -> os.stat_result | None:
        """Of an object's file; ``None`` where there is none, ``StorageError`` where the root is a file."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            self._check_root()
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _check_root(self) -> None:
        """``StorageError`` if the root is no folder: taken for an empty store, it would hide a mistake."""
        try:
            mode = os.stat(self._root).st_mode
        except NotADirectoryError as error:
            raise StorageError(f"{self._root} lies below a file; a store is a folder") from error
        except OSError:  # absent, or closed to us, which whoever opens it is told
            return
        if not stat.S_ISDIR(mode):
            raise StorageError(f"{self._root} is a file; a store is a folder")

    def _open(self, path: str) -> tuple[int, os.stat_result]:
        """Open an object's file for reading; without O_NONBLOCK a FIFO of that name would block."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_root()
            raise NotFoundError(f"{path} does not exist") from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise NotFoundError(f"{path} is a folder or a device, not an object")
        return fd, found

    def _create(self, path: str) -> tuple[str, UploadName, int]:
        """A new file beside ``path``: its path, the upload it is, and its descriptor."""
        now = time.time_ns()
        token = new_token(now, os.urandom(4))
        aside = beside(path, token)
        fd = self._folders.create(aside)
        return aside, UploadName(token, now, os.fstat(fd).st_ino), fd

    def _drop(self, aside: str) -> None:
        """Remove a file beside a key, unless it has its name by now, and the folders made for it."""
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(aside)
        self._folders.remove_empty(os.path.dirname(aside), self._root)

    def _seal(self, fd: int, path: str, size: int) -> None:
        """Make the file's bytes last, cut to ``size``."""
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
        durable.stamp(fd)
        durable.sync_file(fd, path)

    def _publish(self, aside: str, path: str, key: str, if_match: str | None) -> None:
        """Rename a sealed file to its key, if that still holds the version ``if_match``."""
        with durable.locked(path, needed=if_match is not None):
            if if_match is not None:
                found = self._stat(path)
                if found is None or _info(key, found).etag != if_match:
                    raise PreconditionError(f"{path} is not the version {if_match}: somebody else wrote or deleted it")
            os.replace(aside, path)

    def _completed(self, key: str, path: str, name: UploadName, size: int) -> ObjectInfo:
        """What a repeated ``complete`` returns: the object, if it is the file this upload was."""
        found = self._stat(path)
        if found is None or found.st_ino != name.inode or found.st_size != size:
            raise NotFoundError(f"{path} has no open upload {name}: it was aborted, or its object was replaced")
        self._folders.settle(os.path.dirname(path))
        return _info(key, found)


def _publish_new(aside: str, path: str, key: str) -> None:
    """Give a sealed file its key, which nobody may have."""
    try:
        os.link(aside, path)
    except FileExistsError as error:
        raise PreconditionError(f"{key} exists already") from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links here (exFAT, CIFS, some FUSE): the lock keeps out every other writer of this package.
        with durable.locked(path, needed=True):
            if os.path.lexists(path):
                raise PreconditionError(f"{key} exists already") from error
            os.rename(aside, path)


def _upload_name(path: str, upload: str) -> UploadName:
    name = parse_upload(upload)
    if name is None:
        raise NotFoundError(f"{path} has no open upload {upload!r}")
    return name


def _open_upload(path: str, name: UploadName) -> int:
    try:
        return os.open(beside(path, name.token), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} has no open upload {name}: it was completed, aborted or never begun") from error


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return ObjectInfo(key, found.st_size, etag, found.st_mtime)
