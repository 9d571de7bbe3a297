"""A simulated object store whose key ranges refuse what is too much, and the virtual clock it lives in.

Owns partitions, their limits and their splits; knows nothing of ranks or checkpoints and never sleeps. ``hotspots``
sends it requests. What is documented of S3: a partitioned prefix takes at least 3,500 PUT, COPY, POST and DELETE and
5,500 GET and HEAD requests a second, the store partitions further under a sustained higher rate, and answers 503 Slow
Down until it has ("Best practices design patterns: optimizing Amazon S3 performance"). How it splits is not documented;
the model here assumes:

* A partition is a range of keys. It has a bucket of tokens for writes and one for reads, each filled at its limit and
  one second deep; a request that finds none is refused. A listing counts as a read.
* A second in which a partition refused something is an overloaded one. After ``patience`` of them, in a row or not, it
  splits in two. AWS speaks of a gradual process, its support of 30 to 60 minutes; a small ``patience`` favours splits.
* The boundary is the shortest string that separates two of its latest ``_RECENT`` keys, among those that leave between
  40 and 60 % of them on each side (the split interval of a prefix B-tree), else the one nearest to their median. Both
  halves begin with the tokens of the whole. Partitions are never merged.
"""

from __future__ import annotations

import gc
import heapq
import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

WRITES = 3500.0
READS = 5500.0
"""Requests a second that a partition takes."""
_RECENT = 512
_INTERVAL = 0.1


class VirtualTime:
    """A clock that jumps to the next event."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Call ``act`` in ``seconds``; what is due at one moment is called in the order in which it was asked for."""
        heapq.heappush(self._events, (self.now + seconds, next(self._sequence), act))

    def run(self) -> None:
        """Until nothing is left to do."""
        collected = gc.isenabled()
        gc.disable()  # nothing here is in cycles, and passing over a million events takes as long as they do
        try:
            while self._events:
                self.now, _, act = heapq.heappop(self._events)
                act()
        finally:
            if collected:
                gc.enable()


class _Partition:
    """The keys from one boundary to the next."""

    __slots__ = ("overloaded", "reads", "recent", "second", "seen", "writes")

    def __init__(self, now: float, writes: float, reads: float) -> None:
        self.writes, self.reads, self.seen = writes, reads, now
        self.overloaded, self.second = 0, -1
        self.recent: deque[str] = deque(maxlen=_RECENT)

    def take(self, write: bool, now: float) -> bool:
        """Whether there is a token for one more request."""
        passed, self.seen = now - self.seen, now
        self.writes = min(WRITES, self.writes + passed * WRITES)
        self.reads = min(READS, self.reads + passed * READS)
        if write and self.writes >= 1:
            self.writes -= 1
            return True
        if not write and self.reads >= 1:
            self.reads -= 1
            return True
        if int(now) != self.second:
            self.second, self.overloaded = int(now), self.overloaded + 1
        return False


class PrefixStore:
    """Partitions from ``boundaries`` on; ``patience``: overloaded seconds until one splits, ``None`` for never."""

    def __init__(self, time: VirtualTime, *, patience: int | None, boundaries: Sequence[str] = ()) -> None:
        self._time = time
        self._patience = patience
        self._boundaries = sorted(boundaries)
        self._partitions = [_Partition(time.now, WRITES, READS) for _ in range(len(self._boundaries) + 1)]
        self.requests = 0
        self.refused = 0

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The first key of each partition but the lowest."""
        return tuple(self._boundaries)

    @property
    def partitions(self) -> int:
        return len(self._partitions)

    def admit(self, key: str, write: bool) -> bool:
        """A request arrives; false is a 503."""
        at = bisect_right(self._boundaries, key)
        partition = self._partitions[at]
        self.requests += 1
        partition.recent.append(key)
        if partition.take(write, self._time.now):
            return True
        self.refused += 1
        if self._patience is not None and partition.overloaded >= self._patience:
            self._split(at)
        return False

    def _split(self, at: int) -> None:
        old = self._partitions[at]
        old.overloaded = 0
        boundary = separator(sorted(old.recent))
        if boundary is None:  # one key alone cannot be divided
            return
        self._boundaries.insert(at, boundary)
        self._partitions[at : at + 1] = [_Partition(self._time.now, old.writes, old.reads) for _ in range(2)]


def separator(keys: Sequence[str]) -> str | None:
    """The boundary that divides sorted ``keys``, as the module says; ``None`` if they are all the same."""
    middle = len(keys) / 2
    places = [at for at in range(1, len(keys)) if keys[at - 1] != keys[at]]
    if not places:
        return None
    inner = [at for at in places if abs(at - middle) <= _INTERVAL * len(keys)]
    if not inner:
        inner = [min(places, key=lambda at: abs(at - middle))]
    found = [(_shortest(keys[at - 1], keys[at]), abs(at - middle)) for at in inner]
    return min(found, key=lambda each: (len(each[0]), each[1]))[0]


def _shortest(low: str, high: str) -> str:
    """The shortest string above ``low`` and not above ``high``."""
    same = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return high[: same + 1]
