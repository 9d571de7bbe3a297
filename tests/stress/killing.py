"""Workers killed at random, by a schedule that a seed and the work done decide: no clock is involved."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress

from s3dlio.engine.pool import Pool

GAP = 8
"""Least results between two kills: a task that is sent again and again is done well before its fifth worker dies."""


class Killer:
    """Kills one worker after every 8 to ``2 * every - 8`` results that it is told of, ``every`` in the mean."""

    def __init__(self, pool: Pool, seed: int, every: int) -> None:
        self.kills = 0
        self._pool = pool
        self._random = random.Random(seed)
        self._every = every
        self._left = self._next()
        self._lock = threading.Lock()

    def _next(self) -> int:
        return self._random.randint(GAP, 2 * self._every - GAP)

    def tick(self) -> None:
        """A task came back; perhaps a worker dies of it. Called by any thread."""
        with self._lock:
            self._left -= 1
            if self._left > 0:
                return
            self._left = self._next()
            pids = sorted(self._pool.supervisor.pids())
            if not pids:
                return
            self.kills += 1
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(pids), signal.SIGKILL)
