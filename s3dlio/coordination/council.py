"""A council of ranks: each says a word, rank 0 hears them all and announces what follows from them.

Owns the keys on the board, the waits and their deadlines; what the words say is the caller's. Every wait ends: with the
words, or with ``DeadlineError`` that names the ranks that were missing. Rank 0's own word needs no board.

A topic is used once. A rank's word is taken off the board when rank 0 has read it. Nobody tells rank 0 who has heard an
announcement, so the newest stay: they are small.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..engine.errors import DeadlineError
from .board import Board, drop_word, get_word, put_word

KEPT = 64
"""Announcements that stay on the board: as many saves and loads as may be under way before the slowest rank hears."""
GRACE = 5.0
"""Seconds that a rank waits for rank 0 beyond the time in which that waits for the ranks."""
PATIENCE = 15.0
"""Seconds of waiting after which the log tells for whom."""
_LOOK = 1.0  # seconds between two looks at whether the wait is still wanted
_NAMED = 20
_WHY = "has it died, or does not every rank call? Pass coordinator=None where a rank saves or loads on its own"

_log = logging.getLogger("s3dlio")

Check = Callable[[], None]


def _nothing() -> None:
    return


class Council:
    """The words of one store's ranks. ``name``, the store's, stands in messages; ``prefix``, by default the same, tells
    its keys from those of other stores on the board."""

    def __init__(self, board: Board, name: str, timeout: float, prefix: str | None = None) -> None:
        self.board = board
        self.timeout = timeout
        self._name = name
        self._prefix = name if prefix is None else prefix
        self._announced: deque[tuple[str, int]] = deque()
        self._lock = threading.Lock()

    @property
    def rank(self) -> int:
        return self.board.rank

    @property
    def world_size(self) -> int:
        return self.board.world_size

    @property
    def presides(self) -> bool:
        """Whether this rank gathers and announces."""
        return self.board.rank == 0

    def say(self, topic: str, word: bytes) -> None:
        """This rank's word on a topic, to rank 0."""
        put_word(self.board, f"{self._prefix}/{topic}/{self.rank}", word)

    def announce(self, topic: str, word: bytes) -> None:
        """Rank 0's word on a topic, to all."""
        key = f"{self._prefix}/{topic}/all"
        pieces = put_word(self.board, key, word)
        with self._lock:
            self._announced.append((key, pieces))
            old = self._announced.popleft() if len(self._announced) > KEPT else None
        if old is not None:
            drop_word(self.board, *old)

    def gather(self, topic: str, ranks: Sequence[int], check: Check = _nothing) -> Iterator[tuple[int, bytes]]:
        """The words of ``ranks`` on a topic, in their order; ``DeadlineError`` naming those that did not speak.

        ``check`` is called about once a second while it waits; what it raises ends the wait.
        """
        deadline = time.monotonic() + self.timeout
        missing: list[int] = []
        for rank in ranks:
            word = self._wait(f"{topic}/{rank}", deadline, check, f"rank {rank}", last=True)
            if word is None:
                missing.append(rank)
            else:
                yield rank, word
        if missing:
            raise DeadlineError(
                f"{self._name}: {topic}: nothing was heard from {name_ranks(missing)} of {self.world_size} ranks "
                f"within {self.timeout:g} s: {_WHY}"
            )

    def hear(self, topic: str, check: Check = _nothing) -> bytes:
        """What rank 0 announces on a topic; ``DeadlineError`` if it does not; ``check`` as in ``gather``.

        It is given a little longer than it gives the others, so that it is the one to tell who is missing.
        """
        wait = self.timeout * 1.1 + GRACE
        word = self._wait(f"{topic}/all", time.monotonic() + wait, check, "rank 0", last=False)
        if word is None:
            raise DeadlineError(f"{self._name}: {topic}: rank 0 has announced nothing within {wait:g} s: {_WHY}")
        return word

    def _wait(self, key: str, deadline: float, check: Check, whom: str, *, last: bool) -> bytes | None:
        begun = time.monotonic()
        told = False
        while True:
            check()
            left = max(0.0, deadline - time.monotonic())
            word = get_word(self.board, f"{self._prefix}/{key}", min(left, _LOOK), last=last)
            if word is not None or left <= _LOOK:
                return word
            if not told and time.monotonic() - begun > PATIENCE:
                told = True
                _log.warning("%s: %s: still waiting for %s: %s", self._name, key, whom, _WHY)


def name_ranks(ranks: Sequence[int]) -> str:
    """``rank 3``, ``ranks 1, 2, 5``, or the first twenty and how many more."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    told = ", ".join(map(str, ranks[:_NAMED]))
    return f"ranks {told}" + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")
