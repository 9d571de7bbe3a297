"""``S3dlioStorageConfig`` and the ``Storage`` that it makes: torch_checkpointing's files, in any store of s3dlio.

Owns the interface; ``places`` says what a path means, ``local_tree`` and ``object_tree`` where its file is, ``streams``
moves bytes. A config is pickled into torch_checkpointing's process; the pool of workers is that of whichever process
uses it, and stays until ``shutdown``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from ... import pools
from ...config import CheckpointConfig, parse_uri
from ...content import buffer_of
from ...engine.errors import ConfigError
from ...engine.pool import Pool
from ...engine.source import BufferSource
from ...objects import SMALL, start_storing, wait_for
from .local_tree import LocalTree
from .object_tree import ObjectTree
from .places import Spot, spot_of
from .streams import ReadStream, WriteStream

shutdown = pools.let_go


@dataclass(kw_only=True)
class S3dlioStorageConfig(StorageConfig):
    """``CheckpointManager.Config(storage_config=S3dlioStorageConfig(uri="s3://bucket/run1"))``.

    ``uri``: the store below which plain names lie (``manager.save("step_100", …)``); paths may also be URIs themselves.
    ``temp_dir_prefix``: that of the ``CheckpointWriterConfig``; on object stores a folder with it is renamed without
    copying. ``options``, ``memory``, ``workers``, ``chunk_size``, ``connections``: as in ``CheckpointStore``; a file
    being written holds seventeen chunks, and all of them at most half of ``memory``. ``ConfigError``.
    """

    uri: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    temp_dir_prefix: str = "tmp_"
    memory: int | None = None
    workers: int | None = None
    chunk_size: int | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        if self.uri is not None:
            parse_uri(self.uri, self.options)
        if not self.temp_dir_prefix or "/" in self.temp_dir_prefix:
            raise ConfigError(f"temp_dir_prefix must begin a name, not be {self.temp_dir_prefix!r}")
        pools.config_of(self.store_config())

    def store_config(self) -> CheckpointConfig:
        """The options of a store's pool."""
        given = {name: getattr(self, name) for name in ("memory", "workers", "chunk_size", "connections")}
        return CheckpointConfig(**{name: value for name, value in given.items() if value is not None})

    def create_storage(self) -> S3dlioStorage:
        """A storage of this process; nothing is contacted yet."""
        return S3dlioStorage(self)


class S3dlioStorage(Storage):
    """torch_checkpointing's files in any store. Its methods may be called by several threads.

    What is written is durable when its stream is closed, and appears whole or not at all. A rename onto what is there
    raises ``ExistsError`` (a ``FileExistsError``), a missing file ``NotFoundError`` (a ``FileNotFoundError``).
    """

    def __init__(self, config: S3dlioStorageConfig) -> None:
        self._config = config
        self._local = LocalTree()
        self._objects = ObjectTree(self._pool, config.temp_dir_prefix)

    def __repr__(self) -> str:
        return f"<S3dlioStorage of {self._config.uri or 'paths and URIs'}>"

    @property
    def mmap_fill_workers(self) -> int:
        """One stream: each of its reads is many requests already."""
        return 1

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> io.RawIOBase:
        """A stream of a file's bytes; what ``read_args`` advise changes nothing."""
        spot = self._spot(path)
        place, size = self._tree(spot).readable(spot)
        return ReadStream(self._pool(), place, size)

    def stream_write(self, path: Path) -> io.IOBase:
        """A stream into a file; leave its ``with`` by an exception, and nothing is published."""
        spot = self._spot(path)
        return WriteStream(self._pool(), self._tree(spot).writable(spot))

    def write(self, path: Path, data: Any) -> None:
        """Store a buffer as a file."""
        spot = self._spot(path)
        place = self._tree(spot).writable(spot)
        view = buffer_of(data)
        if len(view) <= SMALL:
            self._pool().control(place.location).put(place.key, [view])
        else:
            wait_for(start_storing(self._pool(), place, BufferSource(view)))

    def delete(self, path: Path) -> None:
        """Remove a file."""
        spot = self._spot(path)
        self._tree(spot).remove_file(spot)

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Make a folder."""
        spot = self._spot(path)
        self._tree(spot).make_folder(spot, above=recursive)

    def rmdir(self, path: Path) -> None:
        """Remove a folder and all in it."""
        spot = self._spot(path)
        self._tree(spot).remove_folder(spot)

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """Give a file or folder another name; what it is decides, and nothing is left to clean up."""
        source, target = self._spot(src_path), self._spot(dst_path)
        if source.is_local != target.is_local:
            raise ConfigError(f"{source} cannot become {target}: a rename stays on one kind of store")
        self._tree(source).move(source, target)

    def ls(self, path: Path) -> list[str]:
        """Names in a folder."""
        spot = self._spot(path)
        return self._tree(spot).names(spot)

    def exists(self, path: Path) -> bool:
        """Whether there is a file or a folder."""
        spot = self._spot(path)
        return self._tree(spot).exists(spot)

    def getsize(self, path: Path) -> int:
        """Bytes of a file."""
        spot = self._spot(path)
        return self._tree(spot).readable(spot)[1]

    def isdir(self, path: Path) -> bool:
        """Whether there is a folder."""
        spot = self._spot(path)
        return self._tree(spot).is_folder(spot)

    def remap_path(self, path: Path) -> str:
        """The URI, or for a local path the path."""
        spot = self._spot(path)
        return spot.path if spot.is_local else str(spot)

    def _spot(self, path: Path) -> Spot:
        return spot_of(path, self._config.uri, self._config.options)

    def _tree(self, spot: Spot) -> LocalTree | ObjectTree:
        return self._local if spot.is_local else self._objects

    def _pool(self) -> Pool:
        return pools.keep(self._config.store_config())
