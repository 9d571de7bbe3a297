"""The pace of all requests to one store: when it asks to slow down, every worker of the pool waits, not one request.

Owns a few bytes of memory that the workers of a pool share, four numbers a store; no locks: numbers of two moments
mixed only make a wait a little longer or shorter, or a warning come twice. They also tell whether the store has ever
answered and when it was last in trouble, so that one worker warns for all. ``retry`` asks before each request and tells
of each outcome; the pool makes the memory, ``tasks`` gives each store its place in it.
"""

from __future__ import annotations

import mmap
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from ..contract import Location

_RECORD = 64  # one cache line a store
SIZE = 64 * _RECORD
"""Bytes of the shared memory."""
_FORGET = 8
"""A refusal this many times its wait after the last one begins anew."""
_QUIET = 60.0
"""Seconds without trouble after which the next is news."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from; tests give their own.

    Chance is not the module ``random``'s: a training run's seeded generator must not advance because a store was busy.
    """

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = field(default_factory=lambda: random.Random().uniform)


class Pace:
    """How long requests to one store are held back; ``memory`` is shared, or this process's own if ``None``.

    After a refusal all wait: between half and all of ``base`` seconds, twice that after the next, up to ``cap``. What
    is refused while all wait was on its way already and counts for nothing.
    """

    def __init__(
        self, memory: memoryview | None = None, *, base: float = 0.1, cap: float = 10.0, timing: Timing | None = None
    ) -> None:
        # CLOCK_MONOTONIC is one clock for all processes of a machine.
        self._numbers = memoryview(memory if memory is not None else bytearray(_RECORD)).cast("B")[:32].cast("d")
        self._base = base
        self._cap = cap
        self._timing = timing or Timing()

    def remaining(self) -> float:
        """Seconds until the next request may leave; more by chance for each caller, so that not all leave at once."""
        until, wait = self._numbers[:2]
        left = until - self._timing.clock()
        return left + self._timing.uniform(0, wait / 2) if left > 0 else 0.0

    def slow_down(self) -> None:
        """A request was refused as one too many."""
        until, wait = self._numbers[:2]
        now = self._timing.clock()
        if now < until:
            return
        wait = self._base if now > until + _FORGET * wait else min(self._cap, max(self._base, 2 * wait))
        self._numbers[1] = wait
        self._numbers[0] = now + self._timing.uniform(wait / 2, wait)

    @property
    def answered(self) -> bool:
        """Whether the store has ever answered a request."""
        return bool(self._numbers[3])

    def answer(self) -> None:
        """The store answered, be it by a refusal."""
        if not self._numbers[3]:
            self._numbers[3] = 1.0

    def trouble(self) -> bool:
        """A request has been failing for a while; whether that is news, the first of this stretch of trouble."""
        last, now = self._numbers[2], self._timing.clock()
        self._numbers[2] = now
        return not last or now > last + _QUIET


def place_of(location: Location, memory: memoryview) -> memoryview:
    """The bytes of ``memory`` that the store of ``location`` has, whatever the prefix: buckets are refused alike."""
    endpoint = dict(location.options).get("endpoint_url")
    name = f"{location.scheme} {location.root.split('/')[0]} {endpoint}"
    at = zlib.crc32(name.encode()) % (SIZE // _RECORD) * _RECORD
    return memory[at : at + _RECORD]


def private() -> memoryview:
    """Memory for a pace that no other process shares."""
    return memoryview(mmap.mmap(-1, SIZE))
