"""Tells a test how many threads wait for the answer that another one fetches, so that it need not guess by time."""

from __future__ import annotations

import threading
from concurrent.futures import Future


class Waiters:
    """Counts the threads that wait for any question's answer; to be put in the place of ``answers.Future``."""

    def __init__(self) -> None:
        self._came = threading.Semaphore(0)

    def wait(self, count: int) -> None:
        """Return once ``count`` more have come."""
        for _ in range(count):
            assert self._came.acquire(timeout=30), "nobody waits"

    def future(self) -> Future[int]:
        return _Counted(self._came)


class _Counted(Future[int]):
    def __init__(self, came: threading.Semaphore) -> None:
        super().__init__()
        self._came = came

    def result(self, timeout: float | None = None) -> int:
        self._came.release()
        return super().result(timeout)
