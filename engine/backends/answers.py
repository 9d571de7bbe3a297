"""What stores answered when they were asked what they can do: asked by one, known to all workers of the pool.

Owns the memory of answers, and who asks: in a process one thread, whose outcome the others wait for. Knows no store:
``s3_abilities`` and ``azure_probe`` ask. The pool makes the memory that its workers share, ``tasks`` hands it over.

There is no lock between processes, and so none that a dead one holds: an answer is one word, written at once. Workers
that write to a new store at the same moment each ask it, but a save begins with one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

_SLOTS = 256
SIZE = 8 * _SLOTS
"""Bytes of the shared memory."""

_shared: memoryview | None = None


def share(memory: memoryview | None) -> None:
    """Learn from ``memory`` (``SIZE`` bytes) what others that map it were answered, and tell them; ``None``: nobody."""
    global _shared
    _shared = None if memory is None else memory.cast("B").cast("Q")


class Question:
    """A question to a store, which ``name`` tells from all others; the answer is a number from 0 to 255."""

    def __init__(self, name: str) -> None:
        import hashlib  # 4 ms, which workers that store files need not spend

        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        self._slot = digest % _SLOTS
        self._mark = digest >> 8 | 1  # 56 bits, never 0: questions may share a slot, which has the last one's answer
        self._lock = threading.Lock()
        self._known: int | None = None
        self._asked: Future[int] | None = None

    def answer(self, ask: Callable[[], int]) -> int:
        """The answer, by ``ask`` if it is not known; an error of that is raised in all who wait for it.

        Whoever comes later asks again.
        """
        with self._lock:
            if self._known is None:
                self._known = self._told()
            if self._known is not None:
                return self._known
            asked, mine = self._asked, self._asked is None
            if asked is None:
                asked = self._asked = Future()
        try:
            return self._ask(asked, ask) if mine else asked.result()
        finally:
            del asked  # an error that it holds holds this frame

    def _ask(self, asked: Future[int], ask: Callable[[], int]) -> int:
        try:
            found = ask()
        except BaseException as error:
            with self._lock:
                self._asked = None
            asked.set_exception(error)
            raise
        else:
            with self._lock:
                self._known, self._asked = found, None
            self._tell(found)
            asked.set_result(found)
            return found
        finally:
            del asked

    def _tell(self, found: int) -> None:
        if (shared := _shared) is not None:
            shared[self._slot] = self._mark << 8 | found

    def _told(self) -> int | None:
        """What another worker was answered."""
        word = 0 if (shared := _shared) is None else shared[self._slot]
        return word & 0xFF if word >> 8 == self._mark else None
