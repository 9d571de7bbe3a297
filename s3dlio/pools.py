"""The pools of this process, shared: stores with the same memory, workers and chunk size use one.

Owns the table of pools and who uses them; never looks at what they do. ``store`` borrows and gives back; the last store
to leave closes its pool. A forked child starts with an empty table.
"""

from __future__ import annotations

import os
import threading

from .engine.pool import Pool, PoolConfig

_lock = threading.Lock()
_shared: dict[PoolConfig, tuple[Pool, int]] = {}


def borrow(config: PoolConfig) -> Pool:
    """The pool of this size, started if there is none; give it back with ``give_back``."""
    with _lock:
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


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_forget)
