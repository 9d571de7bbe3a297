"""Folders and files of ``s3://`` and ``az://``, which know neither folders nor renames.

Owns when a folder is one. The files of a temporary folder (``tmp_step_100``) lie under the final name from the start,
and a mark hides them; giving the folder its final name puts one object, if it is absent, that lists them. So a
checkpoint appears at once and without copying a byte, and a save that was killed is never taken for one. Any other
rename copies. ``marks`` knows the marks, ``storage`` calls this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...copying import copy_object
from ...engine.contract import ObjectInfo
from ...engine.errors import ConfigError, ExistsError, NotFoundError, PreconditionError, StorageError
from ...engine.pool import Pool, PoolControl
from ...manifest import MANIFEST_MAX
from ...object_uri import Place
from .marks import COMMITTED, MARK, UNFINISHED, Marks, Version, dump, load
from .places import Spot, place_of, settled


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where a file or folder lies, and the committed folder that it is of, if any."""

    parts: tuple[str, ...]
    folder: tuple[str, ...] = ()
    record: ObjectInfo | None = None

    @property
    def key(self) -> str:
        return "/".join(self.parts)


class ObjectTree:
    """The folders and files of object stores; ``prefix`` begins the names of temporary folders."""

    def __init__(self, pool: Callable[[], Pool], prefix: str) -> None:
        self._pool = pool
        self._prefix = prefix
        self._records: dict[tuple[str, str], tuple[str, dict[str, Version]]] = {}

    # what is there

    def readable(self, spot: Spot) -> tuple[Place, int]:
        """Where a file is, and its size; ``StorageError`` if it is not what was committed."""
        seen = self._see_file(spot)
        info = self._control(spot).head(seen.key)
        committed = self._committed(spot, seen)
        if committed is not None and committed != Version(info.size, info.etag):
            raise StorageError(
                f"{spot} was written to after its folder was committed: another job saves there; load another "
                "checkpoint"
            )
        return place_of(spot, seen.key), info.size

    def exists(self, spot: Spot) -> bool:
        """Whether there is a file or a folder."""
        if not spot.parts:
            return True
        try:
            self._control(spot).head(self._see_file(spot).key)
        except NotFoundError:
            return self.is_folder(spot)
        return True

    def is_folder(self, spot: Spot) -> bool:
        """Whether there is a folder: something lies in it, or it is one to be committed."""
        seen = self._see(spot, len(spot.parts))
        return seen is not None and self._holds(spot, seen.parts)

    def names(self, spot: Spot) -> list[str]:
        """What lies in a folder."""
        seen = self._see(spot, len(spot.parts))
        if seen is None:
            raise NotFoundError(f"{spot} does not exist")
        start = _folder(seen.parts)
        files: list[str] = []
        folders: list[str] = []
        for page in self._control(spot).pages(start, shallow=True):
            files += [item.key[len(start) :] for item in page.objects]
            folders += [name[len(start) : -1] for name in page.folders]
        if spot.parts and not files and not folders:
            raise NotFoundError(f"{spot} does not exist")
        if seen.record is None:
            folders = self._control(spot).each(lambda name: self._called(spot, seen.parts, name), folders)
        return sorted(name for name in (*files, *folders) if name and not name.startswith(MARK))

    # files

    def writable(self, spot: Spot) -> Place:
        """Where a file is to be written; ``ExistsError`` where that would change a checkpoint."""
        parts, temporary = settled(spot.parts, self._prefix)
        if temporary is not None:
            self._begin(spot, parts[: temporary + 1])
        else:
            seen = self._see(spot, len(parts) - 1)
            if seen is None:
                raise ExistsError(f"{spot} lies in the folder of a save that has not finished: remove that first")
            if self._committed(spot, seen) is not None:
                raise ExistsError(f"{spot} is part of a committed checkpoint: remove that before saving it again")
        _check_name(parts, spot)
        return place_of(spot, "/".join(parts))

    def remove_file(self, spot: Spot) -> None:
        """Remove a file; ``NotFoundError``."""
        key = self._see_file(spot).key
        self._control(spot).head(key)
        self._control(spot).delete(key)

    # folders

    def make_folder(self, spot: Spot, *, above: bool) -> None:
        """Begin a temporary folder; others begin with what lies in them."""
        parts, temporary = settled(spot.parts, self._prefix)
        if temporary is not None:
            self._begin(spot, parts[: temporary + 1])

    def remove_folder(self, spot: Spot) -> None:
        """Remove a folder and all in it: first what makes it a checkpoint, last what says that it is none."""
        seen = self._see(spot, len(spot.parts))
        if seen is None or not self._holds(spot, seen.parts):
            raise NotFoundError(f"{spot} does not exist")
        control, start = self._control(spot), _folder(seen.parts)
        control.put(start + UNFINISHED, [])
        control.delete(start + COMMITTED)
        for page in control.pages(start):
            control.each(control.delete, [item.key for item in page.objects if item.key != start + UNFINISHED])
        control.delete(start + UNFINISHED)

    def move(self, source: Spot, target: Spot) -> None:
        """Give a file or folder another name; ``ExistsError`` if that is taken, but a file replaces a file.

        A temporary folder becomes the final one by one small object; everything else is copied, then removed.
        """
        if not self.is_folder(source):
            self._move_file(source, target)
            return
        parts, temporary = settled(source.parts, self._prefix)
        if source.location == target.location and temporary == len(parts) - 1 and parts == target.parts:
            self._commit(target, parts)
            return
        if self.exists(target):
            raise ExistsError(f"{target} is there already: remove it before {source} may take its name")
        into, hidden = settled(target.parts, self._prefix)
        self._begin(target, into if hidden is None else into[: hidden + 1])
        start = _folder(parts)
        for page in self._control(source).pages(start):
            for item in page.objects:
                if not item.key[len(start) :].startswith(MARK):
                    self._copy(source, item.key, item.size, target, _folder(into) + item.key[len(start) :])
        if hidden is None:
            self._commit(target, into)
        self.remove_folder(source)

    def _move_file(self, source: Spot, target: Spot) -> None:
        place, size = self.readable(source)
        if self.is_folder(target):
            raise ExistsError(f"{target} is a folder: it cannot become the file {source}")
        self._copy(source, place.key, size, target, self.writable(target).key)
        self.remove_file(source)

    def _copy(self, source: Spot, key: str, size: int, target: Spot, target_key: str) -> None:
        copy_object(self._pool(), source.location, key, target.location, target_key, size)

    # marks

    def _commit(self, spot: Spot, parts: tuple[str, ...]) -> None:
        control, start = self._control(spot), _folder(parts)
        files = {
            item.key[len(start) :]: Version(item.size, item.etag)
            for item in control.list(start)
            if not item.key[len(start) :].startswith(MARK)
        }
        try:
            control.put(start + COMMITTED, [memoryview(dump(files))], if_absent=True)
        except PreconditionError as error:
            raise ExistsError(f"{spot} is there already: another save was committed first") from error
        control.delete(start + UNFINISHED)

    def _begin(self, spot: Spot, parts: tuple[str, ...]) -> None:
        """Have a folder that is no checkpoint yet; every rank does this, and the first mark comes before any file."""
        marks = self._marks(spot, parts)
        if marks.committed is None and not marks.unfinished and self._holds(spot, parts):
            marks = self._marks(spot, parts)  # of another rank, which began in between
            if not marks.hidden:
                raise ExistsError(f"{place_of(spot, '/'.join(parts)).uri} holds files already: remove them before")
        if marks.committed is not None:
            raise ExistsError(
                f"{place_of(spot, '/'.join(parts)).uri} is a committed checkpoint: remove it before saving it again"
            )
        if not marks.unfinished:
            self._control(spot).put(_folder(parts) + UNFINISHED, [])

    def _marks(self, spot: Spot, parts: tuple[str, ...]) -> Marks:
        found = {item.key.rpartition("/")[2]: item for item in self._control(spot).list(_folder(parts) + MARK)}
        return Marks(UNFINISHED in found, found.get(COMMITTED))

    def _see_file(self, spot: Spot) -> _Seen:
        seen = self._see(spot, len(spot.parts) - 1)
        if seen is None or not spot.parts or spot.parts[-1].startswith(MARK):
            raise NotFoundError(f"{spot} does not exist")
        return seen

    def _see(self, spot: Spot, depth: int) -> _Seen | None:
        """What a path leads to, by the marks of its first ``depth`` folders; ``None`` if one hides it."""
        parts, temporary = settled(spot.parts, self._prefix)
        for count in range(1, depth + 1):
            marks = self._marks(spot, parts[:count])
            if marks.hidden != (temporary == count - 1):
                return None
            if marks.committed is not None:
                return _Seen(parts, parts[:count], marks.committed)
        return _Seen(parts)

    def _called(self, spot: Spot, above: tuple[str, ...], name: str) -> str:
        """Under which name a folder is seen."""
        return f"{self._prefix}{name}" if self._marks(spot, (*above, name)).hidden else name

    def _holds(self, spot: Spot, parts: tuple[str, ...]) -> bool:
        return any(page.objects for page in self._control(spot).pages(_folder(parts), limit=1))

    def _committed(self, spot: Spot, seen: _Seen) -> Version | None:
        """What a file was when its folder was committed; ``None`` if it was not of it."""
        if seen.record is None:
            return None
        which = (spot.location.uri, seen.record.key)
        etag, files = self._records.get(which, ("", {}))
        if etag != seen.record.etag:
            files = load(self._control(spot).read(seen.record.key, limit=MANIFEST_MAX)[0], str(spot))
            self._records[which] = seen.record.etag, files
        return files.get("/".join(seen.parts[len(seen.folder) :]))

    def _control(self, spot: Spot) -> PoolControl:
        return self._pool().control(spot.location)


def _folder(parts: tuple[str, ...]) -> str:
    return "".join(f"{part}/" for part in parts)


def _check_name(parts: tuple[str, ...], spot: Spot) -> None:
    if not parts or parts[-1].startswith(MARK):
        raise ConfigError(f"{spot} is no name of a file here")
