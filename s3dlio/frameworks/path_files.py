"""What Lightning asks of the file system that its checkpoints lie in: what is there, and since when; through fsspec.

Owns ``direct://``, whose files are local ones, and listings of ``s3://`` and ``az://`` where the packages that fsspec
has for these are not installed; those that are stay in place. Importing it registers them. Checkpoints never go this
way: ``lightning`` saves and loads.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import Any, ClassVar

from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from ..config import CheckpointConfig
from ..engine.contract import ObjectInfo
from ..engine.errors import UnsupportedError
from .paths import PathStores

_current: weakref.ref[PathStores] | None = None


def ask(stores: PathStores) -> None:
    """Ask these stores from now on, for as long as they live: theirs are the options and the pool."""
    global _current
    _current = weakref.ref(stores)


@contextmanager
def _asked() -> Iterator[PathStores]:
    """The stores to ask; without any, ones that end after the answer."""
    stores = None if _current is None else _current()
    if stores is not None:
        yield stores
        return
    own = PathStores(CheckpointConfig())
    try:
        yield own
    finally:
        own.close()


class DirectFiles(LocalFileSystem):
    """The files of ``direct://``."""

    protocol: ClassVar[str] = "direct"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, str):
            path = path.removeprefix("direct://")
        return super()._strip_protocol(path)


class PathFiles(AbstractFileSystem):
    """Checkpoints in an object store, as fsspec sees a file system; objects are not opened here.

    ``ROOT``: the components of a path that name a bucket or a container.
    """

    cachable = False
    protocol: ClassVar[str]
    ROOT: ClassVar[int]

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What lies in a folder; ``FileNotFoundError`` if nothing does."""
        folder = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        for item in self._below(folder):
            name, slash, _rest = item.key.partition("/")
            entry = found.setdefault(name, _entry(f"{folder}/{name}", "directory" if slash else "file"))
            entry["size"] += item.size
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else [entry["name"] for entry in found.values()]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Whether a path is an object or a folder of some; a save on its way makes a folder."""
        name = self._strip_protocol(path)
        parent, _slash, last = name.rpartition("/")
        if name.count("/") < self.ROOT:
            return _entry(name, "directory")
        with _asked() as stores:
            if stores.in_use(self._uri(name)):
                return _entry(name, "directory")
            with stores.opened(self._uri(parent)) as store:
                for item in store.control().list(last):
                    if item.key == last:
                        return {**_entry(name, "file"), "size": item.size}
                    if item.key.startswith(f"{last}/"):
                        return _entry(name, "directory")
        raise FileNotFoundError(path)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is anything; a store that does not answer is an error, not a no."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def modified(self, path: str) -> datetime:
        """When anything at or below a path was last written."""
        name = self._strip_protocol(path)
        times = [item.modified for item in self._below(name)]
        if not times:
            raise FileNotFoundError(path)
        return datetime.fromtimestamp(max(times), timezone.utc)

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        raise UnsupportedError(f"{path}: files are not opened here; checkpoints are loaded through S3dlioCheckpointIO")

    def _uri(self, name: str) -> str:
        return f"{self.protocol}://{name}"

    def _below(self, folder: str) -> list[ObjectInfo]:
        with _asked() as stores, stores.opened(self._uri(folder)) as store:
            return list(store.control().list())


def _entry(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": 0}


class S3Files(PathFiles):
    """``PathFiles`` of ``s3://``."""

    protocol = "s3"
    ROOT = 1


class AzureFiles(PathFiles):
    """``PathFiles`` of ``az://``."""

    protocol = "az"
    ROOT = 2


def _register() -> None:
    register_implementation("direct", DirectFiles, clobber=True)
    for package, kind in (("s3fs", S3Files), ("adlfs", AzureFiles)):
        if find_spec(package) is None:
            register_implementation(kind.protocol, kind, clobber=True)


_register()
