"""Decides for ``auto`` which chunks are encoded: only while storage is the bottleneck.

Owns the arithmetic; no clock, no I/O, no threads, so the same observations give the same decisions. The ledger asks
once for each chunk, just before that goes to a worker, and writes the answer into the task, so that encoding itself
stays deterministic. Not chosen by default for any store; on a fast local disk it settles on "no" after the first parts.

Storing raw moves S bytes/s. Encoding with ratio r (stored / raw) moves as many raw bytes as the slower of its two
stages allows, min(workers × E, S / r). It starts where that beats S by a margin, and goes on until it no longer beats
S: the gap between the two keeps it from swinging. Every now and then one chunk goes the other way, to learn what has
changed: ratios differ between the layers of one state, and rates with what else the machine does.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 1.08
"""Encoding begins where it is expected to be this many times as fast as storing raw ..."""
STOP = 1.02
"""... and ends where no more than this is expected."""
PROBES = 2
"""Chunks encoded in any case: two say more than one about the rate and the ratio."""
INTERVAL = 64
"""One chunk in so many goes the other way."""
WEIGHT = 0.25
"""Weight of the newest observation in an average."""
DECAY = 0.98
"""How much of the storage's best rate is still believed after each slower part; half after 35."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second: ``encode`` raw bytes on one worker, ``store`` stored bytes by all; ``ratio`` stored / raw."""

    encode: float
    store: float
    ratio: float


def gain(rates: Rates, workers: int) -> float:
    """How many times as fast as storing raw it is to encode first."""
    return min(workers * rates.encode / rates.store, 1 / rates.ratio)


def decide(rates: Rates, workers: int, encoding: bool) -> bool:
    """Whether to encode from now on, given whether we do."""
    return gain(rates, workers) > (STOP if encoding else START)


class Auto:
    """The decisions of one store: what one save has learnt, the next one knows.

    ``workers``: processes that encode at once (no more than the cores they may use). Not thread-safe: the thread that
    owns the ledger asks and tells.
    """

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self._encode: float | None = None
        self._ratio: float | None = None
        self._store: float | None = None
        self._encoding = False
        self._asked = 0

    def __repr__(self) -> str:
        rates = self.rates
        known = f"gain {gain(rates, self._workers):.2f}" if rates else "learning"
        return f"<Auto {'encoding' if self._encoding else 'raw'}, {known}>"

    @property
    def ahead(self) -> int:
        """Chunks that are worth encoding at once: two for each worker, so that none waits for its next."""
        return 2 * self._workers

    @property
    def rates(self) -> Rates | None:
        """What is known so far; None until both a chunk was encoded and a part was stored."""
        if self._encode is None or self._ratio is None or self._store is None:
            return None
        return Rates(self._encode, self._store, self._ratio)

    def choose(self) -> bool:
        """Whether the next chunk is encoded; until a part was stored it is, since the cores have nothing else to do."""
        asked, self._asked = self._asked, self._asked + 1
        rates = self.rates
        if rates is None or asked < PROBES:
            return True
        self._encoding = decide(rates, self._workers, self._encoding)
        return self._encoding != (asked % INTERVAL == INTERVAL - 1)

    def encoded(self, raw: int, stored: int, seconds: float, active: int) -> None:
        """A chunk of ``raw`` bytes became ``stored`` bytes in ``seconds``; ``active`` were encoded at once."""
        if raw <= 0 or seconds <= 0:
            return
        share = max(1.0, active / self._workers)
        self._encode = _average(self._encode, raw * share / seconds)
        self._ratio = _average(self._ratio, max(stored, 1) / raw)

    def stored(self, size: int, seconds: float, active: int) -> None:
        """A part of ``size`` bytes took ``seconds`` to store; ``active`` parts were under way at once.

        While encoding is the slower stage, storage idles and looks slow; so its best rate fades rather than averages.
        """
        if size <= 0 or seconds <= 0:
            return
        rate = size * max(1, active) / seconds
        self._store = max(rate, (self._store or 0.0) * DECAY)


def _average(known: float | None, new: float) -> float:
    return new if known is None else known + WEIGHT * (new - known)
