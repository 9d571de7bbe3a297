"""A save whose bytes come bit by bit: the job behind ``get_distributed_shard_stream``.

Owns the one slot that is being filled; all else is ``SaveJob``'s. Memory stays bounded however long the stream is:
writing waits while the arena is full.
"""

from __future__ import annotations

import contextlib
import ctypes

from .contract import Location
from .errors import CancelledError, PoolClosedError
from .job import Coding, SaveJob
from .pool import Pool
from .source import buffer_address
from .threads import run_uninterrupted


class StreamJob(SaveJob):
    """A save whose bytes come by ``feed``, in any sizes, while earlier chunks are already on their way.

    It holds one slot for what is not yet a chunk, so at most half of the arena may be held by open streams. With
    ``part_size`` its parts do not grow: the store's most parts bound its size, and it holds less.
    """

    def __init__(
        self, pool: Pool, location: Location, key: str, *, coding: Coding, part_size: int | None = None
    ) -> None:
        super().__init__(pool, location, key, total=None, coding=coding, whole_below=0, part_size=part_size)
        self._index = 0
        self._slot: int | None = None
        self._fill_size = 0
        try:
            run_uninterrupted(self._open, self._interrupt)
        except BaseException as error:
            self._interrupt(error)
            raise

    def _open(self) -> None:
        needed = self._plan.needed
        with self._pool.in_use(), self._pool.turn:  # in its turn: no save that counts on these slots is staging
            self._pool.reserve_stream(needed)
            self.future.add_done_callback(lambda _: self._pool.release_stream(needed))
            self._start()

    def feed(self, data: memoryview) -> None:
        """Take bytes; waits while the arena is full.

        Raises the job's error once it failed. Whatever is raised here, be it a Ctrl-C, ends the stream: nobody could
        tell how many of the bytes it has taken.
        """
        try:
            with self._pool.in_use():
                self._take(data)
        except BaseException as error:
            self._interrupt(error)
            self._give_back()
            raise

    def _take(self, data: memoryview) -> None:
        address, left = buffer_address(data), data.nbytes
        while left:
            slot = self._open_slot()
            count = min(left, self._plan.chunk_size - self._fill_size)
            ctypes.memmove(self._pool.arena.address(slot) + self._fill_size, address, count)
            address, left, self._fill_size = address + count, left - count, self._fill_size + count
            if self._fill_size == self._plan.chunk_size:
                run_uninterrupted(self._flush, self._interrupt)

    def _open_slot(self) -> int:
        """The slot being filled; a new one if there is none."""
        if self._slot is None:
            run_uninterrupted(self._take_slot, self._interrupt)
        if self._slot is None or self._stopped():
            if self.future.done():
                self.future.result()
            raise self._early or CancelledError(f"the stream to {self._spec.key} has ended: start another")
        return self._slot

    def _take_slot(self) -> None:
        with self._pool.turn:
            self._slot = self._lease()

    def end(self) -> None:
        """No more bytes: store what is left and publish."""
        self._pool.watch(self.future)  # type: ignore[arg-type]  # Future is invariant
        run_uninterrupted(self._finish, self._interrupt)

    def _finish(self) -> None:
        self._flush()
        self.total = self.staged_bytes
        self._post(lambda ledger: ledger.close(self._index))

    def drop(self) -> None:
        """Cancel, giving back the slot that was being filled; nobody is within ``feed`` any more.

        The supervisor does it all, so that a finalizer may call this: the collector runs in any thread, which may be in
        the middle of anything.
        """
        self._give_back()
        self.cancel()

    def _give_back(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            with contextlib.suppress(PoolClosedError):  # the arena is gone, or will be
                self._pool.supervisor.post(lambda: self._pool.arena.release([slot]))

    def _flush(self) -> None:
        if self._slot is None or not self._fill_size:
            return
        slot, self._slot = self._slot, None
        start = self._index * self._plan.chunk_size
        self._hand_in(self._index, slot, start, start + self._fill_size)
        self._index += 1
        self._fill_size = 0
