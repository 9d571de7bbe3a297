"""A board in this process: ranks are threads. Words cross as they would between processes."""

from __future__ import annotations

import threading
import time


class Hall:
    """What the boards of all ranks share."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()


class FakeBoard:
    """The board of one rank in a hall. ``puts`` are the keys that it was given, in order."""

    def __init__(self, hall: Hall, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.puts: list[str] = []
        self._hall = hall

    def put(self, key: str, value: bytes) -> None:
        with self._hall.changed:
            assert key not in self._hall.values, f"{key} is put twice"
            self._hall.values[key] = value
            self.puts.append(key)
            self._hall.changed.notify_all()

    def get(self, key: str, timeout: float) -> bytes | None:
        deadline = time.monotonic() + timeout
        with self._hall.changed:
            while key not in self._hall.values:
                left = deadline - time.monotonic()
                if left <= 0 or not self._hall.changed.wait(left):
                    return self._hall.values.get(key)
            return self._hall.values[key]

    def drop(self, key: str) -> None:
        with self._hall.changed:
            self._hall.values.pop(key, None)


def boards(world_size: int) -> tuple[Hall, list[FakeBoard]]:
    """The boards of a job."""
    hall = Hall()
    return hall, [FakeBoard(hall, rank, world_size) for rank in range(world_size)]
