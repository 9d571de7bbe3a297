"""Which checkpoints this process is loading: whoever prunes here leaves them alone, whichever store loads them.

Owns one table of the process; never touches a store. A forked child starts with an empty one.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .engine.contract import Location

_lock = threading.Lock()
_loading: Counter[tuple[str, str]] = Counter()


@contextmanager
def holding(location: Location, name: str) -> Iterator[None]:
    """While within, ``held`` gives the checkpoint of this id name. ``file://`` and ``direct://`` are one place."""
    entry = (location.root, name)
    with _lock:
        _loading[entry] += 1
    try:
        yield
    finally:
        with _lock:
            _loading[entry] -= 1
            if not _loading[entry]:
                del _loading[entry]


def held(location: Location) -> set[str]:
    """Id names of the checkpoints of a place that are being loaded now."""
    with _lock:
        return {name for root, name in _loading if root == location.root}


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _loading.clear()


os.register_at_fork(after_in_child=_forget)
