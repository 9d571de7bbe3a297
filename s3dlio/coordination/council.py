"""A council of ranks: each says a word, rank 0 hears them all and announces what follows from them.

Owns the keys on the board, the waits and their deadlines; what the words say is the caller's. Every wait ends: with the
words, or with ``DeadlineError`` that names the ranks that were missing. Rank 0's own word needs no board.

A topic is used once. A rank's word is taken off the board when rank 0 has read it. Nobody tells rank 0 who has heard an
announcement, so the newest stay: they are small.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from ..engine.errors import DeadlineError
from .board import Board, drop_word, get_word, put_word

KEPT = 64
"""Announcements that stay on the board: as many saves and loads as may be under way before the slowest rank hears."""
GRACE = 5.0
"""Seconds that a rank waits for rank 0 beyond the time in which that waits for the ranks."""
_NAMED = 20


class Council:
    """The words of one store's ranks. ``name`` tells its topics from those of other stores of the job."""

    def __init__(self, board: Board, name: str, timeout: float) -> None:
        self.board = board
        self.timeout = timeout
        self._name = name
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
        put_word(self.board, f"{self._name}/{topic}/{self.rank}", word)

    def announce(self, topic: str, word: bytes) -> None:
        """Rank 0's word on a topic, to all."""
        key = f"{self._name}/{topic}/all"
        pieces = put_word(self.board, key, word)
        with self._lock:
            self._announced.append((key, pieces))
            old = self._announced.popleft() if len(self._announced) > KEPT else None
        if old is not None:
            drop_word(self.board, *old)

    def gather(self, topic: str, ranks: Sequence[int]) -> dict[int, bytes]:
        """The words of ``ranks`` on a topic; ``DeadlineError`` naming those that did not speak."""
        deadline = time.monotonic() + self.timeout
        words: dict[int, bytes] = {}
        for rank in ranks:
            left = max(0.0, deadline - time.monotonic())
            word = get_word(self.board, f"{self._name}/{topic}/{rank}", left, last=True)
            if word is not None:
                words[rank] = word
        missing = [rank for rank in ranks if rank not in words]
        if missing:
            raise DeadlineError(
                f"{self._name}: {topic}: nothing was heard from {name_ranks(missing)} of {self.world_size} ranks "
                f"within {self.timeout:g} s: have they died, or do not all ranks call? Pass coordinator=None where "
                "a rank saves or loads on its own"
            )
        return words

    def hear(self, topic: str) -> bytes:
        """What rank 0 announces on a topic; ``DeadlineError`` if it does not. It is given a little longer than it
        gives the others, so that it is the one to tell who is missing."""
        wait = self.timeout * 1.1 + GRACE
        word = get_word(self.board, f"{self._name}/{topic}/all", wait)
        if word is None:
            raise DeadlineError(
                f"{self._name}: {topic}: rank 0 has announced nothing within {wait:g} s: has it died, or does it not "
                "call? Pass coordinator=None where a rank saves or loads on its own"
            )
        return word


def name_ranks(ranks: Sequence[int]) -> str:
    """``rank 3``, ``ranks 1, 2, 5``, or the first twenty and how many more."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    told = ", ".join(map(str, ranks[:_NAMED]))
    return f"ranks {told}" + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")
