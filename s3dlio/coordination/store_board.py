"""The board of ranks that share nothing but the store: small objects under ``coordination/``.

Owns their keys. Every look costs a request, so it looks ever more seldom while nothing comes. ``boards`` makes it where
the user names a run.
"""

from __future__ import annotations

import random
import time
from urllib.parse import quote

from ..engine.contract import Control
from ..engine.errors import ConfigError, NotFoundError
from .board import PIECE

COORDINATION = "coordination/"
_POLLS = (0.02, 1.0)  # seconds between two looks: at first, and after a while


class StoreBoard:
    """Values as objects of the store. ``run`` must be new: what an earlier run left would be taken for this one's."""

    def __init__(self, control: Control, run: str, rank: int, world_size: int) -> None:
        if not run or not 0 <= rank < world_size:
            raise ConfigError(f"a run needs a name and a rank below its {world_size} ranks, not {run!r}, {rank!r}")
        self.rank = rank
        self.world_size = world_size
        self._control = control
        self._prefix = f"{COORDINATION}{quote(run, safe='')}/"
        self._pauses: dict[str, float] = {}  # of keys that were asked for, until they come

    def put(self, key: str, value: bytes) -> None:
        self._control.put(self._key(key), [memoryview(value)])

    def get(self, key: str, timeout: float) -> bytes | None:
        deadline = time.monotonic() + timeout
        first, slowest = _POLLS
        pause = self._pauses.pop(key, first)
        while True:
            try:
                return self._control.read(self._key(key), limit=2 * PIECE)[0]
            except NotFoundError:
                left = deadline - time.monotonic()
            if left <= 0:
                self._pauses[key] = pause
                return None
            time.sleep(min(left, pause * random.uniform(0.5, 1.5)))
            pause = min(slowest, pause * 1.5)

    def drop(self, key: str) -> None:
        self._control.delete(self._key(key))

    def _key(self, key: str) -> str:
        return f"{self._prefix}{quote(key, safe='/')}"
