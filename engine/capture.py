"""Raw bytes copied into slots before it is known where they go and which of them are stored.

Owns the slots of a capture until a job takes them over or they are given back, and the squeeze that closes the gaps of
what is left out. A ``SaveJob`` copies while it stores, and must know its key; a capture is what a framework needs that
copies first and plans afterwards. Never knows tensors. ``s3dlio.writer`` makes captures and their jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterable, Iterator

from .contract import Location
from .errors import CancelledError, ConfigError, DeadlineError, MemoryLimitError, PoolClosedError
from .job import Coding, SaveJob, copy_threads, plan_for
from .pool import Pool
from .source import Source, move, view
from .threads import each, run_uninterrupted

Moves = Iterable[tuple[int, int, int]]
"""(target, source, length): bytes of a capture that lie at ``source`` belong at ``target``, which is not behind it."""


class Capture:
    """``total`` raw bytes in slots of the arena, end to end, with the slots that encoding them needs set aside.

    The constructor leases, waiting for slots that saves in flight still hold; ``fill`` copies. What nobody takes goes
    back by ``release``, or when it is collected. ``MemoryLimitError`` if the arena cannot hold all of it at once: then
    the caller would wait, maybe for ever, for a capture that nobody takes. All captures leave an eighth of the arena,
    so that other saves can stream through it meanwhile.
    """

    def __init__(self, pool: Pool, location: Location, total: int, codec: str, whole_below: int) -> None:
        self.pool = pool
        self.total = total
        plan = plan_for(pool, location, total, codec, whole_below)
        self.chunk_size = plan.chunk_size
        self.whole = plan.whole
        self._slots: list[int] = []
        self._reserve: list[int] = []
        self._stop = False
        with _lock:
            _live.add(self)
        self._collected = weakref.finalize(self, _give_back, pool, self._slots, self._reserve)
        self._collected.atexit = False  # the pool ends first
        run_uninterrupted(lambda: self._lease(plan.chunks, plan.reserve), self._interrupt)

    def _lease(self, chunks: int, reserve: int) -> None:
        arena = self.pool.arena
        # In its turn: two that each hold a part of what they need would wait for each other.
        with self.pool.in_use(), self.pool.turn:
            try:
                captured = _captured(self.pool)
                left = arena.slots - max(1, arena.slots // 8)
                if captured + chunks + reserve > left:
                    raise MemoryLimitError(
                        f"{self.total} bytes need {chunks + reserve} chunks of {arena.slot_size} bytes at once; of the "
                        f"{left} that may be captured, {captured} are: raise memory="
                    )
                self.pool.check_streams(captured + chunks + reserve)
                for number in range(chunks + reserve):
                    slot = arena.lease(stop=lambda: self._stop or self.pool.closed, held=number)
                    (self._reserve if number < reserve else self._slots).append(slot)
            except DeadlineError as error:
                self.release()
                raise _ended(self.pool, error) from error
            except BaseException:
                self.release()
                raise

    @property
    def _held(self) -> int:
        return len(self._slots) + len(self._reserve)

    def _interrupt(self, _: BaseException) -> None:
        self._stop = True
        self.pool.arena.wake()

    def fill(self, source: Source) -> None:
        """Copy everything; on an error the slots are given back."""

        def one(index: int) -> None:
            if self._stop:
                raise CancelledError("the copy was interrupted")
            start = index * self.chunk_size
            source.fill(self.pool.arena.address(self._slots[index]), start, min(start + self.chunk_size, self.total))

        def work() -> None:
            with self.pool.in_use():
                each(one, range(len(self._slots)), copy_threads(self.total))

        try:
            run_uninterrupted(work, self._interrupt)
        except BaseException:
            self.release()
            raise

    def read(self, start: int, stop: int) -> Iterator[memoryview]:
        """Bytes [start, stop), piece by piece, where they lie; for use ``with pool.in_use()``."""
        while start < stop:
            count = min(stop - start, self._run(start))
            yield view(self._address(start), count)
            start += count

    def squeeze(self, moves: Moves, head: Iterable[bytes], total: int) -> None:
        """Close the gaps: do ``moves`` in order, put ``head`` at the start, give back what lies behind ``total``."""
        with self.pool.in_use():
            for target, source, length in moves:
                self._move(target, source, length)
            at = 0
            for piece in head:
                self._put(at, piece)
                at += len(piece)
        keep = -(-total // self.chunk_size)
        spare = self._slots[keep:]
        del self._slots[keep:]
        self.total = total
        self.pool.arena.release(spare)

    def _move(self, target: int, source: int, length: int) -> None:
        # Upwards, in pieces that cross no slot: whatever a piece overwrites was moved before.
        while length and target != source:
            count = min(length, self._run(target), self._run(source))
            move(self._address(target), self._address(source), count)
            target, source, length = target + count, source + count, length - count

    def _put(self, at: int, data: bytes) -> None:
        held = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        done = 0
        while done < len(data):
            count = min(len(data) - done, self._run(at + done))
            move(self._address(at + done), held + done, count)
            done += count

    def _run(self, at: int) -> int:
        """Bytes from ``at`` to the end of its chunk."""
        return self.chunk_size - at % self.chunk_size

    def _address(self, at: int) -> int:
        return self.pool.arena.address(self._slots[at // self.chunk_size]) + at % self.chunk_size

    def take(self) -> tuple[list[int], list[int]]:
        """The slots of the bytes, and those set aside; they are the caller's now."""
        taken = list(self._slots), list(self._reserve)
        self._slots.clear()
        self._reserve.clear()
        return taken

    def release(self) -> None:
        """Give every slot back; once more is harmless."""
        slots, reserve = self.take()
        self.pool.arena.release(slots + reserve)


_live: weakref.WeakSet[Capture] = weakref.WeakSet()
_lock = threading.Lock()


def _captured(pool: Pool) -> int:
    """Slots of a pool that captures hold."""
    with _lock:
        return sum(capture._held for capture in _live if capture.pool is pool)


def _forget() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _give_back(pool: Pool, slots: list[int], reserve: list[int]) -> None:
    """In the supervisor's thread: the collector runs in any thread, which may be in the middle of anything."""
    held = slots + reserve
    if held:
        with contextlib.suppress(PoolClosedError):  # the arena is gone, or will be
            pool.supervisor.post(lambda: pool.arena.release(held))


def _ended(pool: Pool, error: DeadlineError) -> PoolClosedError | CancelledError:
    if pool.closed:
        return PoolClosedError("the pool was closed while a state was being copied")
    return CancelledError(f"the copy was interrupted: {error}")


class CapturedJob(SaveJob):
    """A save of captured bytes: nothing is copied, ``hand_over`` gives the capture's slots to the workers."""

    def __init__(self, capture: Capture, location: Location, key: str, *, coding: Coding, whole_below: int) -> None:
        # A smaller save than the capture was planned for needs no more set aside, unless it may now go in one request.
        below = whole_below if capture.whole else 0
        super().__init__(capture.pool, location, key, total=capture.total, coding=coding, whole_below=below)
        self._capture = capture
        if self._plan.chunk_size != capture.chunk_size:
            error = ConfigError(
                f"{location.uri} takes chunks of {self._plan.chunk_size} bytes, captured were {capture.chunk_size}: "
                "make the writer with a URI of the scheme that it saves to"
            )
            self._end(None, error)
            raise error

    def hand_over(self) -> None:
        """Begin; errors are the future's. No turn is taken: whoever has it may be waiting for these very slots."""
        slots, reserve = self._capture.take()
        left = [*slots, *reserve]
        try:
            with self._pool.in_use():
                while len(reserve) < self._plan.reserve:  # another store than the capture was planned for
                    slot = self._pool.arena.try_lease()
                    if slot is None:
                        raise MemoryLimitError("the arena is full of what is to be compressed: raise memory=")
                    reserve.append(slot)
                    left.append(slot)
                self._open_ledger(tuple(reserve))
                left = list(slots)
                for index, slot in enumerate(slots):
                    left.pop(0)
                    self._hand_in(index, slot, *self._plan.chunk_range(index))
                self._post(self._close)
        except PoolClosedError as error:
            self._end(None, error)
        except BaseException as error:
            self._pool.arena.release(left)
            self._interrupt(error)
            raise
