"""Files to objects and back: ``upload`` and ``download``, under the published package's names.

Owns which file becomes which object, and that each appears whole or not at all; a file's bytes go from and to the slots
of the pool, so that memory stays bounded whatever their sizes.
"""

from __future__ import annotations

import glob
import os
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from . import pools
from .engine.backends.oserrors import translated
from .engine.contract import ObjectInfo, check_key, is_key
from .engine.errors import ConfigError, CorruptError, NotFoundError
from .engine.fetch import fetch_through_slots
from .engine.job import SaveJob
from .engine.messages import Fetch
from .engine.pool import PoolControl
from .engine.source import view as memory_at
from .object_uri import Place, split
from .objects import check_same, marks_folder, start_storing, wait_for

_SHOWN = 5


def upload(
    src_patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    dest_prefix: str,
    max_in_flight: int = 32,
    create_bucket: bool = False,
    *,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Store files, by path or glob, under their names in the folder ``dest_prefix``; the URIs of the objects.

    What lies in a folder that is named comes too, under its name below that. ``max_in_flight``: files on their way at
    once. ``ConfigError`` before anything is written for a path or glob without a file, two files of one name, or
    ``create_bucket``: make the bucket first. If one fails, those before it stay.
    """
    if create_bucket:
        raise ConfigError("create_bucket=True is not supported: make the bucket with the store's own tools")
    _check_count(max_in_flight)
    folder = split(dest_prefix if str(dest_prefix).endswith("/") else f"{dest_prefix}/", options)
    places = [
        (path, Place(folder.location, check_key(folder.folder + name), folder.base))
        for path, name in _files(src_patterns).items()
    ]
    _check_distinct(places)
    pool = pools.keep()
    under_way: deque[SaveJob] = deque()
    try:
        for path, place in places:
            if len(under_way) >= max_in_flight:
                wait_for(under_way.popleft())
            with _FileSource(path) as source:
                under_way.append(start_storing(pool, place, source))
        while under_way:
            wait_for(under_way.popleft())
    except BaseException:
        for job in under_way:
            job.cancel()
        for job in under_way:
            job.future.exception()
        raise
    return [place.uri for _, place in places]


def _files(patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[Path, str]:
    """The files that paths and globs name, in the order given, each with its name in the target folder."""
    given = [patterns] if isinstance(patterns, (str, os.PathLike)) else [*patterns]
    found: dict[Path, str] = {}
    for pattern in [os.fspath(each) for each in given]:
        if os.path.isdir(pattern):
            matches = {path: path.relative_to(pattern).as_posix() for path in sorted(Path(pattern).rglob("*"))}
        elif os.path.lexists(pattern):
            matches = {Path(pattern): os.path.basename(pattern)}
        else:
            matches = {Path(path): os.path.basename(path) for path in sorted(glob.glob(pattern, recursive=True))}
        files = {path: name for path, name in matches.items() if path.is_file()}
        if not files:
            raise ConfigError(f"cannot upload {pattern}: there is no such file")
        found.update(files)
    return found


def _check_distinct(places: list[tuple[Path, Place]]) -> None:
    seen: dict[str, Path] = {}
    for path, place in places:
        other = seen.setdefault(place.key, path)
        if other != path:
            raise ConfigError(f"{other} and {path} would both become {place.uri}: upload them to folders of their own")


def _check_count(max_in_flight: int) -> None:
    if type(max_in_flight) is not int or max_in_flight < 1:
        raise ConfigError(f"max_in_flight must be a positive number, not {max_in_flight!r}")


class _FileSource:
    """A file as the source of a job, of the size that it has when it is opened."""

    threads = 1

    def __init__(self, path: Path) -> None:
        self._path = path
        with translated(f"upload of {path}"):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(self._fd)
        self.total = found.st_size
        self._version = (found.st_size, found.st_mtime_ns)

    def __enter__(self) -> _FileSource:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def fill(self, address: int, start: int, stop: int) -> None:
        """Read a range into memory; ``CorruptError`` if the file has changed since it was opened."""
        view = memory_at(address, stop - start)
        with translated(f"upload of {self._path}"):
            while view:
                count = os.preadv(self._fd, [view], start)
                if not count:
                    raise CorruptError(f"{self._path} became shorter while it was uploaded")
                view, start = view[count:], start + count
            found = os.fstat(self._fd)
        if (found.st_size, found.st_mtime_ns) != self._version:
            raise CorruptError(f"{self._path} changed while it was uploaded: upload it again")


def download(
    src_uri: str,
    dest_dir: str | os.PathLike[str],
    max_in_flight: int = 64,
    recursive: bool = True,
    *,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Bring an object, or all objects of a folder, into the folder ``dest_dir``, made if absent; the paths.

    Objects of a folder keep their names below it; without ``recursive`` only those directly in it come. Each file
    appears whole, replacing what has its name. As many requests are in flight as the workers have connections,
    whatever ``max_in_flight`` says. Raises ``NotFoundError`` where there is nothing, and ``ConfigError``, before
    anything is written, for objects whose names no files can have: with an empty, ``.`` or ``..`` component or a
    backslash, or with the name of a folder that others lie in. Empty objects that only mark a folder are left out.
    """
    _check_count(max_in_flight)
    place = split(src_uri, options)
    pool = pools.keep()
    control = pool.control(place.location)
    found = _named(control, place, recursive)
    _check_files(place, found)
    files = [_Incoming(control, Path(dest_dir, name), info, pool.arena.slot_size) for name, info in found.items()]
    items = [
        (Fetch(place.location, file.info.key, at, size, "none", size, None, None), partial(file.take, at, size))
        for file in files
        for at, size in file.ranges
    ]
    try:
        control.each(_Incoming.settle, [file for file in files if not file.ranges])
        fetch_through_slots(pool, items)
    finally:
        for file in files:
            file.drop()
    return [str(file.path) for file in files]


def _named(control: PoolControl, place: Place, recursive: bool) -> dict[str, ObjectInfo]:
    """What is to be brought: each object's name below the target folder."""
    if not place.is_folder:
        try:
            return {place.key.rpartition("/")[2]: control.head(place.key)}
        except NotFoundError:
            pass
    listed = (item for page in control.pages(place.folder, shallow=not recursive) for item in page.objects)
    found = {item.key[len(place.folder) :]: item for item in listed if not marks_folder(item)}
    if not found:
        raise NotFoundError(f"there is no object at {place.uri}, and none in a folder of that name")
    return dict(sorted(found.items()))


def _check_files(place: Place, names: Collection[str]) -> None:
    """``ConfigError`` for names that cannot be those of files in one folder."""
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    bad = [name for name in names if not is_key(name) or name in folders]
    if bad:
        shown = ", ".join(repr(place.folder + name) for name in bad[:_SHOWN])
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ConfigError(
            f"cannot download {place.uri}: no file can be named like the object {shown}{more}; nothing was written: "
            "rename what these names belong to, or download the others one by one"
        )


class _Incoming:
    """A file on its way here: written aside by several threads, and given its name once it is whole."""

    def __init__(self, control: PoolControl, path: Path, info: ObjectInfo, step: int) -> None:
        self.path = path
        self.info = info
        self.ranges = [(at, min(step, info.size - at)) for at in range(0, info.size, step)]
        self._control = control
        self._aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
        self._left = len(self.ranges)
        self._fd: int | None = None
        self._made = False
        self._lock = threading.Lock()

    def take(self, offset: int, size: int, address: int) -> None:
        """Write bytes that have arrived at ``address``; with the last of them the file is settled."""
        view = memory_at(address, size)
        with translated(f"download to {self.path}"):
            with self._lock:
                fd = self._open()
            while view:
                count = os.pwrite(fd, view, offset)
                view, offset = view[count:], offset + count
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self.settle()

    def _open(self) -> int:
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            self._made = True
        return self._fd

    def settle(self) -> None:
        """Give the file its name, if it is of one version of the object; one without bytes is."""
        if self.ranges:
            check_same(self._control, self.info)
        with translated(f"download to {self.path}"):
            os.fsync(self._open())
            self._close()
            os.replace(self._aside, self.path)
            self._made = False

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def drop(self) -> None:
        """Remove what is not whole; nobody writes any more."""
        self._close()
        if self._made:
            self._aside.unlink(missing_ok=True)
