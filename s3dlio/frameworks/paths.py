"""Checkpoints that a framework names by paths: each path is a store of its own, and all of them share one pool.

Owns what a path means as a URI, the stores that are in use, and the pool that outlives them, so that its workers and
warm memory serve the next path. ``lightning`` saves to paths, ``path_files`` answers questions about them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .. import pools
from ..config import CheckpointConfig
from ..engine.backends import OBJECT_STORES
from ..engine.errors import ConfigError
from ..engine.pool import Pool
from ..store import CheckpointStore


def uri_of(path: str | os.PathLike[str]) -> str:
    """The URI of a path: itself if it has a scheme, else that of a local folder.

    ``ConfigError`` for a relative ``file:/``: Lightning's ``ModelCheckpoint`` makes one of a ``file://`` folder.
    """
    text = os.fspath(path)
    if "://" in text:
        return text.rstrip("/")
    absolute = os.path.abspath(text)
    if "/file:/" in absolute:
        raise ConfigError(
            f"{text!r} was made of a file:// URI by taking it for a relative path (ModelCheckpoint does): give the "
            "folder without file://"
        )
    return f"file://{absolute}"


def local_path(uri: str) -> str | None:
    """The folder of this machine that a URI names, ``None`` for one of an object store."""
    scheme, _, rest = uri.partition("://")
    return None if scheme in OBJECT_STORES else rest


class PathStores:
    """The stores of paths in use. ``options`` of ``config`` are for object stores: local paths take none.

    Methods may be called by several threads. The pool is borrowed by the first store and kept until ``close``, after
    which it may be borrowed again.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._open: dict[str, tuple[CheckpointStore, int]] = {}
        self._pool: tuple[int, Pool] | None = None

    def open(self, uri: str, options: Mapping[str, Any] | None = None) -> CheckpointStore:
        """The store at ``uri``, the same one while it is in use; ``release`` it. ``options`` replace the config's."""
        with self._lock:
            store, users = self._open.get(uri, (None, 0))
            if store is None:
                store = CheckpointStore(uri, config=self._config_of(uri, options))
                self._hold_pool()
            self._open[uri] = (store, users + 1)
            return store

    def release(self, uri: str) -> None:
        """Leave a store; the last user closes it."""
        with self._lock:
            store, users = self._open[uri]
            if users > 1:
                self._open[uri] = (store, users - 1)
                return
            del self._open[uri]
            store.close()

    @contextmanager
    def opened(self, uri: str, options: Mapping[str, Any] | None = None) -> Iterator[CheckpointStore]:
        """A store for the length of a block."""
        store = self.open(uri, options)
        try:
            yield store
        finally:
            self.release(uri)

    def in_use(self, uri: str) -> bool:
        """Whether something is on its way to or from this path."""
        with self._lock:
            return uri in self._open

    def close(self) -> None:
        """Give the pool back; stores in use keep it until they are released."""
        with self._lock:
            held, self._pool = self._pool, None
        if held is not None and held[0] == os.getpid():
            pools.give_back(pools.config_of(self._config), held[1])

    def _hold_pool(self) -> None:
        if self._pool is None or self._pool[0] != os.getpid() or self._pool[1].closed:
            self._pool = os.getpid(), pools.borrow(pools.config_of(self._config))

    def _config_of(self, uri: str, options: Mapping[str, Any] | None) -> CheckpointConfig:
        if local_path(uri) is not None:
            return replace(self._config, options={})
        return replace(self._config, options={**self._config.options, **(options or {})})
