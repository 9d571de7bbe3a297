"""The board of an MPI job: messages between rank 0 and the others, on a communicator of their own.

Owns the communicator, the messages on their way and those that came. MPI has no place to leave a value, so rank 0 sends
its words to everyone and the others send theirs to it; whoever waits looks for messages meanwhile. Made in the calling
thread by ``boards``: to make the communicator is a collective.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ..engine.errors import ConfigError, StorageError

_TAG = 1
_POLLS = (0.0005, 0.02)  # seconds between two looks: at first, and after a while


class MpiBoard:
    """Values that travel as messages; needs an MPI that was initialized with ``MPI_THREAD_MULTIPLE``."""

    def __init__(self) -> None:
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise ConfigError(
                "MPI was initialized without MPI_THREAD_MULTIPLE, which saving in the background needs: do not lower "
                "mpi4py.rc.thread_level, or pass coordinator=None"
            )
        self._error: type[Exception] = MPI.Exception
        self._comm: Any = MPI.COMM_WORLD.Dup()
        self.rank: int = self._comm.Get_rank()
        self.world_size: int = self._comm.Get_size()
        self._values: dict[str, bytes] = {}
        self._sending: list[Any] = []
        self._lock = threading.Lock()

    def put(self, key: str, value: bytes) -> None:
        others = range(1, self.world_size) if self.rank == 0 else (0,)
        try:
            with self._lock:
                self._sending = [request for request in self._sending if not request.Test()]
                self._sending += [self._comm.isend((key, value), dest=other, tag=_TAG) for other in others]
        except self._error as error:
            raise _lost(error) from error

    def get(self, key: str, timeout: float) -> bytes | None:
        deadline = time.monotonic() + timeout
        pause, slowest = _POLLS
        while True:
            with self._lock:
                try:
                    self._receive()
                except self._error as error:
                    raise _lost(error) from error
                value = self._values.pop(key, None)
            left = deadline - time.monotonic()
            if value is not None or left <= 0:
                return value
            time.sleep(min(pause, left))
            pause = min(slowest, pause * 1.5)

    def _receive(self) -> None:
        while (message := self._comm.improbe(tag=_TAG)) is not None:
            key, value = message.recv()
            self._values[key] = value

    def drop(self, key: str) -> None:
        return  # who got it has it


def _lost(error: Exception) -> StorageError:
    return StorageError(f"MPI failed between the ranks of a save: {error}")
