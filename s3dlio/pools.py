"""The pools of this process, shared: stores with the same memory, workers and chunk size use one.

Owns the table of pools and who uses them; never looks at what they do. ``open_store`` borrows and gives back; the last
store to leave closes its pool. What works without a store (``compat``'s functions, ``objects``) keeps its pool between
calls. A forked child starts with an empty table.
"""

from __future__ import annotations

import os
import threading

from .config import CheckpointConfig
from .engine.pool import Pool, PoolConfig
from .ranks import ranks_on_host

_lock = threading.Lock()
_shared: dict[PoolConfig, tuple[Pool, int]] = {}
_kept: dict[PoolConfig, Pool] = {}


def config_of(config: CheckpointConfig) -> PoolConfig:
    """The size of the pool that stores with these options share."""
    return PoolConfig(
        memory=config.memory,
        workers=config.workers,
        slot_size=config.chunk_size,
        connections=config.connections,
        ranks_on_host=ranks_on_host(),
    )


def borrow(config: PoolConfig) -> Pool:
    """The pool of this size, started if there is none; give it back with ``give_back``."""
    with _lock:
        return _borrow(config)


def _borrow(config: PoolConfig) -> Pool:
    pool, users = _shared.get(config, (None, 0))
    if pool is None or pool.closed:
        pool, users = Pool(config), 0
    _shared[config] = (pool, users + 1)
    return pool


def give_back(config: PoolConfig, pool: Pool, timeout: float | None = None) -> None:
    """Leave a pool; the last user closes it, waiting up to ``timeout`` seconds for what is in flight."""
    with _lock:
        current, users = _shared.get(config, (None, 0))
        if current is not pool:  # already closed, or from before a fork
            return
        if users > 1:
            _shared[config] = (pool, users - 1)
            return
        del _shared[config]
    pool.close(timeout)


def keep(options: CheckpointConfig | None = None) -> Pool:
    """The pool of stores with these options, which then stays: the next call finds its workers running and warm.

    It ends with the process, or by ``let_go``.
    """
    config = config_of(options or CheckpointConfig())
    with _lock:
        pool = _kept.get(config)
        if pool is None or pool.closed:
            pool = _kept[config] = _borrow(config)
        return pool


def let_go() -> None:
    """End what ``keep`` keeps, unless a store uses it; the next ``keep`` starts anew."""
    with _lock:
        kept = dict(_kept)
        _kept.clear()
    for config, pool in kept.items():
        give_back(config, pool)


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _shared.clear()
    _kept.clear()


os.register_at_fork(after_in_child=_forget)
