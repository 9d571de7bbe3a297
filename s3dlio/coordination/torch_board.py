"""The board of a torch.distributed job: further connections to the store that its ranks met in.

Owns the connections. It asks again and again: torch's own wait writes two lines to stderr whenever its time runs out,
and holds its connection until then. Runs no collective: on torch 2.13 one gather that timed out breaks all later ones,
and two saves at once were seen to exchange each other's records. Made in the calling thread by ``boards``.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..engine.errors import StorageError

_PREFIX = "s3dlio/"
_CONNECT = 30.0  # seconds
_POLL = 0.002  # seconds until the second look
_QUESTIONS = 20_000  # that all waiting ranks together put to the store in a second


class TorchBoard:
    """Values in the store of the default process group; a ``clone`` may be used beside the group's own."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        self.rank: int = dist.get_rank()
        self.world_size: int = dist.get_world_size()
        store: Any = distributed_c10d._get_default_store()
        self._store = store  # kept: on rank 0 it may be what serves the others
        self._first: Any = store.clone()
        self._first.set_timeout(datetime.timedelta(seconds=_CONNECT))  # not the half hour of a process group
        self._idle: list[Any] = [self._first]
        self._lost = ""
        self._slowest = 0.05 + self.world_size / _QUESTIONS
        self._broken = dist.DistError

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        if self._lost:  # to connect anew to what has ended would wait until its time runs out
            raise StorageError(self._lost)
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._first.clone()
            yield connection
        except self._broken as error:
            self._lost = _told(error)
            raise StorageError(self._lost) from error
        self._idle.append(connection)

    def put(self, key: str, value: bytes) -> None:
        with self._connection() as connection:
            connection.set(_PREFIX + key, value)

    def get(self, key: str, timeout: float) -> bytes | None:
        deadline = time.monotonic() + timeout
        pause = _POLL
        with self._connection() as connection:
            while not connection.check([_PREFIX + key]):
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                time.sleep(min(pause, left))
                pause = min(self._slowest, pause * 1.5)
            return bytes(connection.get(_PREFIX + key))

    def drop(self, key: str) -> None:
        try:
            with self._connection() as connection:
                connection.delete_key(_PREFIX + key)
        except RuntimeError:  # a FileStore cannot
            return


def _told(error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"the store of torch.distributed is gone ({reason:.200}): has rank 0 or the launcher ended?"
