"""What the writers and readers of a process share: the pools of workers, kept between checkpoints, and one clock.

Owns no instance's state: writers and readers are pickled (DCP's process mode) and made anew for each step, so whatever
must not travel and is dear to start lives here, made when it is first needed. A forked child starts empty.
"""

from __future__ import annotations

import os
import threading

from ... import pools
from ...config import CheckpointConfig
from ...engine.pool import Pool, PoolConfig
from ...ids import IdClock

_lock = threading.Lock()
_kept: dict[PoolConfig, Pool] = {}
clock = IdClock()
"""Mints the ids of this process's checkpoints."""


def pool_of(config: CheckpointConfig) -> Pool:
    """The pool for these options, started if there is none; it stays until ``shutdown`` or the process ends."""
    sizes = pools.config_of(config)
    with _lock:
        pool = _kept.get(sizes)
        if pool is None or pool.closed:
            pool = _kept[sizes] = pools.borrow(sizes)
        return pool


def shutdown() -> None:
    """End the workers that writers and readers of this process have kept running; the next checkpoint starts anew.

    Waits for saves in flight.
    """
    with _lock:
        kept = dict(_kept)
        _kept.clear()
    for sizes, pool in kept.items():
        pools.give_back(sizes, pool)


def _forget() -> None:
    global _lock, clock
    _lock = threading.Lock()
    clock = IdClock()
    _kept.clear()


os.register_at_fork(after_in_child=_forget)
