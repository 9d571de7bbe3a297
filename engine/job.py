"""Jobs: one save or one load of one object through the pool.

Owns what joins the pure ledger to the pool: staging in the caller's thread, the ledger's actions in the supervisor's.
Never knows tensors or manifests; ``s3dlio.writer`` and ``s3dlio.reader`` build on ``SaveJob``, ``StreamJob`` and
``fetch``. A job's ``future`` is its durable end; ``staged_bytes`` and ``progress`` may be read at any time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from . import codec as codecs
from .auto import Auto
from .contract import Location
from .errors import CancelledError, DeadlineError, MemoryLimitError, PoolClosedError, S3dlioError
from .ledger import ARENA, Action, Finish, Free, Move, Phase, Run, SaveLedger, SaveSpec, StoredObject
from .messages import Encoded, Fetch, Runs, Span, Stored
from .plan import MIB, plan_save
from .pool import Pool

# A thread costs 60 µs; below this many bytes the caller's own copy is done before it would help.
_PARALLEL_FROM = 32 * MIB
# memmove reaches 12.6 GB/s in one thread and 20 GB/s in two on the 2-core machine this was measured on; more than a few
# only take cores from the training process.
_COPY_THREADS = 4


class Source(Protocol):
    """Raw bytes of an object, to be copied into slots."""

    @property
    def total(self) -> int:
        """Raw bytes."""

    def fill(self, address: int, start: int, stop: int) -> None:
        """Copy raw bytes [start, stop) to ``address``, with the GIL released; may be called by several threads."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a save encodes: a codec of ``engine.codec``, its level, and where elements of which width lie.

    ``runs(start, stop)`` gives the element widths of a chunk. With ``auto`` each chunk is encoded only if it says so.
    """

    codec: str = "none"
    level: int = 0
    runs: Callable[[int, int], Runs] = lambda _start, _stop: ()
    auto: Auto | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of a save so far; ``total`` is 0 for a stream that has not ended. ``stored`` counts encoded bytes."""

    staged: int
    encoded: int
    stored: int
    total: int
    phase: str


class SaveJob:
    """A save of one object. Create, ``stage`` (or ``feed`` and ``end``), then wait for ``future``."""

    def __init__(
        self, pool: Pool, location: Location, key: str, *, total: int | None, coding: Coding, whole_below: int
    ) -> None:
        self.future: Future[StoredObject] = Future()
        self.staged_bytes = 0
        self.total = total or 0
        self._pool = pool
        self._coding = coding
        encoded = coding.codec != "none"
        slot_size = pool.arena.slot_size
        self._plan = plan_save(
            total,
            slot_size=slot_size,
            slots=pool.arena.slots,
            limits=pool.limits(location),
            encoded=encoded,
            headroom=codecs.headroom(coding.codec, slot_size),
            lanes=pool.lanes,
            whole_below=whole_below,
        )
        self._spec = SaveSpec(location, key, self._plan, slot_size, coding.codec, coding.level)
        self._ledger: SaveLedger | None = None
        self._early: S3dlioError | None = None
        pool.watch(self.future)  # type: ignore[arg-type]  # Future is invariant

    def progress(self) -> Progress:
        ledger = self._ledger
        if ledger is None:
            return Progress(self.staged_bytes, 0, 0, self.total, "waiting")
        phase = "failed" if ledger.phase in (Phase.DEAD, Phase.DRAINING, Phase.ABORTING) else ledger.phase.value
        return Progress(self.staged_bytes, ledger.bytes_encoded, ledger.bytes_stored, self.total, phase)

    def cancel(self, error: S3dlioError | None = None) -> None:
        """Give up, unless it ended; ``future`` ends with ``error`` once nothing of it is in flight."""
        reason = error or CancelledError(f"the save of {self._spec.key} was cancelled")

        def event() -> None:
            if self._ledger is not None:
                self._give_up(reason)
            else:  # nothing was begun; should staging be about to, it stops at once
                self._early = self._early or reason
                self._end(None, reason)

        try:
            self._pool.supervisor.post(event)
        except PoolClosedError:
            self._end(None, reason)

    # staging, in threads of the caller

    def stage(self, source: Source) -> None:
        """Copy the source into slots, chunk by chunk, as slots come free; returns when all is staged or the job failed.

        Errors of the source cancel the job and are raised here; the job's own errors are ``future``'s.
        """
        try:
            with self._pool.in_use(), self._pool.turn:
                self._start()
                self._copy(source)
            self._post(lambda ledger: ledger.close(self._plan.chunks))
        except PoolClosedError as error:
            self._end(None, error)
        except BaseException as error:
            self.cancel(_as_cancel(error, self._spec.key))
            raise

    def _start(self) -> None:
        """Reserve slots for encoded bytes, then open the ledger."""
        arena = self._pool.arena
        reserve: list[int] = []
        try:
            for _ in range(self._plan.reserve):
                reserve.append(arena.lease(stop=self._stopped))
        except BaseException:
            arena.release(reserve)
            raise
        ledger = SaveLedger(self._spec, tuple(reserve))

        def event() -> None:
            self._ledger = ledger
            self._apply(ledger.begin())
            if self._early is not None:
                self._give_up(self._early)

        self._pool.supervisor.post(event)

    def _stopped(self) -> bool:
        return self.future.done() or self._early is not None or self._pool.closed

    def _copy(self, source: Source) -> None:
        chunks = iter(range(self._plan.chunks))
        order = threading.Lock()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    with order:  # slots are taken in the order of chunks: the first to wait is the first to be stored
                        index = next(chunks, None)
                        if index is None or errors:
                            return
                        slot = self._lease()
                    if slot is None:
                        return
                    self._fill(source, index, slot)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(error)

        helpers = 0
        if source.total >= _PARALLEL_FROM:
            helpers = min(_COPY_THREADS, len(os.sched_getaffinity(0))) - 1
        threads = [threading.Thread(target=work, name="s3dlio-copy", daemon=True) for _ in range(helpers)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _lease(self) -> int | None:
        """A slot, or ``None`` when the job has ended meanwhile."""
        try:
            return self._pool.arena.lease(stop=self._stopped)
        except DeadlineError:
            if self._pool.closed and not self.future.done():
                raise PoolClosedError(f"the pool was closed while {self._spec.key} was being staged") from None
            return None

    def _fill(self, source: Source, index: int, slot: int) -> None:
        start, stop = self._plan.chunk_range(index)
        try:
            source.fill(self._pool.arena.address(slot), start, stop)
        except BaseException:
            self._pool.arena.release([slot])
            raise
        self._hand_in(index, slot, start, stop)

    def _hand_in(self, index: int, slot: int, start: int, stop: int) -> None:
        self.staged_bytes += stop - start
        runs = self._coding.runs(start, stop) if self._coding.codec != "none" else ()

        def ready(ledger: SaveLedger) -> list[Action]:
            raw = self._coding.auto is not None and not self._coding.auto.choose()
            return ledger.chunk_ready(index, slot, stop - start, runs, "none" if raw else None)

        try:
            self._post(ready)
        except PoolClosedError:
            self._pool.arena.release([slot])
            raise

    # the supervisor's thread

    def _post(self, event: Callable[[SaveLedger], list[Action]]) -> None:
        def run() -> None:
            assert self._ledger is not None
            self._apply(event(self._ledger))

        self._pool.supervisor.post(run)

    def on_done(self, token: Hashable, value: object) -> None:
        assert self._ledger is not None
        assert isinstance(token, tuple)
        if self._coding.auto is not None:
            _observe(self._coding.auto, self._ledger, token, value)
        self._apply(self._ledger.done(token, value))

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        assert self._ledger is not None
        assert isinstance(token, tuple)
        self._withdraw()
        self._apply(self._ledger.failed(token, error))

    def _give_up(self, error: S3dlioError) -> None:
        assert self._ledger is not None
        self._withdraw()
        self._apply(self._ledger.cancel(error))

    def _withdraw(self) -> None:
        assert self._ledger is not None
        for token in self._pool.supervisor.withdraw(self):
            assert isinstance(token, tuple)
            self._ledger.dropped(token)

    def _apply(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run():
                    self._pool.supervisor.submit(self, action.token, action.task)
                case Free():
                    self._pool.arena.release([action.slot])
                case Move():
                    self._pool.arena.move(action.source, action.target, action.offset, action.length)
                case Finish():
                    upload = self._ledger.upload if self._ledger is not None else None
                    if upload is not None:
                        self._pool.supervisor.forget_upload(self._spec.key, upload)
                    self._end(action.result, action.error)

    def _end(self, result: StoredObject | None, error: S3dlioError | None) -> None:
        if self.future.done():
            return
        if result is not None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error or CancelledError(f"the save of {self._spec.key} ended without a result"))
        self._pool.arena.wake()


class StreamJob(SaveJob):
    """A save whose bytes come by ``feed``, in any sizes, while earlier chunks are already on their way.

    It holds one slot for what is not yet a chunk, so at most half of the arena may be held by open streams.
    """

    def __init__(self, pool: Pool, location: Location, key: str, *, coding: Coding) -> None:
        super().__init__(pool, location, key, total=None, coding=coding, whole_below=0)
        self._held = 1 + self._plan.reserve + -(-self._plan.part_target // pool.arena.slot_size)
        pool.reserve_stream(self._held)
        self.future.add_done_callback(lambda _: pool.release_stream(self._held))
        self._index = 0
        self._slot: int | None = None
        self._fill_size = 0
        with pool.in_use(), pool.turn:
            self._start()

    def feed(self, data: memoryview) -> None:
        """Take bytes; waits while the arena is full. Raises the job's error once it failed."""
        address, left = buffer_address(data), len(data)
        with self._pool.in_use():
            while left:
                slot = self._open_slot()
                count = min(left, self._plan.chunk_size - self._fill_size)
                ctypes.memmove(self._pool.arena.address(slot) + self._fill_size, address, count)
                address, left, self._fill_size = address + count, left - count, self._fill_size + count
                if self._fill_size == self._plan.chunk_size:
                    self._flush()

    def _open_slot(self) -> int:
        """The slot being filled; a new one if there is none."""
        if self._slot is None:
            with self._pool.turn:
                self._slot = self._lease()
        if self._slot is None or self.future.done():
            self.future.result()
            raise S3dlioError(f"the stream to {self._spec.key} has ended: start another")
        return self._slot

    def end(self) -> None:
        """No more bytes: store what is left and publish."""
        self._flush()
        self.total = self.staged_bytes
        self._post(lambda ledger: ledger.close(self._index))

    def drop(self) -> None:
        """Cancel, giving back the slot that was being filled."""
        self.cancel()
        if self._slot is not None and not self._pool.closed:
            self._pool.arena.release([self._slot])
        self._slot = None

    def _flush(self) -> None:
        if self._slot is None or not self._fill_size:
            return
        slot, self._slot = self._slot, None
        start = self._index * self._plan.chunk_size
        self._hand_in(self._index, slot, start, start + self._fill_size)
        self._index += 1
        self._fill_size = 0


def _as_cancel(error: BaseException, key: str) -> S3dlioError:
    if isinstance(error, S3dlioError):
        return error
    cancelled = CancelledError(f"the save of {key} was given up: {type(error).__name__}: {error}")
    cancelled.__cause__ = error
    return cancelled


def _observe(auto: Auto, ledger: SaveLedger, token: tuple[str, int], value: object) -> None:
    """Tell ``auto`` what encoding or storing has just cost."""
    if isinstance(value, Encoded):
        raw = ledger.encoding(token[1])
        if raw:
            auto.encoded(raw, value.length, value.seconds, ledger.active("encode"))
    elif isinstance(value, Stored):
        auto.stored(value.receipt.size, value.seconds, ledger.active("store"))


def buffer_address(data: memoryview) -> int:
    """Address of a contiguous buffer, read-only ones too."""
    import numpy as np

    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data) if len(data) else 0


class BufferSource:
    """A source that is one contiguous buffer."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._address = buffer_address(data)
        self.total = len(data)

    def fill(self, address: int, start: int, stop: int) -> None:
        """Copy a range of the buffer."""
        ctypes.memmove(address, self._address + start, stop - start)


class FetchJob:
    """A batch of ``Fetch`` tasks; ``future`` gives their CRC-32Cs in order, or the first error."""

    def __init__(self, pool: Pool, tasks: Sequence[Fetch], on_bytes: Callable[[int], None] | None = None) -> None:
        self.future: Future[list[int]] = Future()
        self._pool = pool
        self._tasks = tasks
        self._crcs = [0] * len(tasks)
        self._left = len(tasks)
        self._error: S3dlioError | None = None
        self._on_bytes = on_bytes
        pool.watch(self.future)  # type: ignore[arg-type]  # Future is invariant
        pool.supervisor.post(self._start)

    def _start(self) -> None:
        for index, task in enumerate(self._tasks):
            self._pool.supervisor.submit(self, index, task)
        self._settle()

    def on_done(self, token: Hashable, value: object) -> None:
        assert isinstance(token, int)
        assert isinstance(value, int)
        self._crcs[token] = value
        self._left -= 1
        if self._on_bytes is not None:
            self._on_bytes(self._tasks[token].raw)
        self._settle()

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        self._error = self._error or error
        self._left -= 1 + len(self._pool.supervisor.withdraw(self))
        self._settle()

    def cancel(self, error: S3dlioError) -> None:
        """Send no more; ``future`` ends with ``error`` once nothing is in flight."""

        def event() -> None:
            self._error = self._error or error
            self._left -= len(self._pool.supervisor.withdraw(self))
            self._settle()

        try:
            self._pool.supervisor.post(event)
        except PoolClosedError:
            return  # the shutdown has failed whatever was in flight

    def _settle(self) -> None:
        if self._left or self.future.done():
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(self._crcs)


def fetch_through_slots(pool: Pool, items: Sequence[tuple[Fetch, Callable[[int], None]]]) -> None:
    """Fetch chunks into slots and hand each address to its consumer, several at once; raises the first error.

    This is how a load fills memory that exists already: no fresh pages anywhere. Each task's ``target`` is replaced;
    its ``raw`` must fit a slot.
    """
    pending = iter(items)
    order = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors:
                with order:
                    item = next(pending, None)
                if item is None:
                    return
                with pool.in_use():
                    _fetch_one(pool, *item)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    threads = [
        threading.Thread(target=work, name="s3dlio-copy", daemon=True)
        for _ in range(min(len(items), pool.lanes + 1) - 1)
    ]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _fetch_one(pool: Pool, task: Fetch, consume: Callable[[int], None]) -> None:
    arena = pool.arena
    if task.raw > arena.slot_size:
        raise MemoryLimitError(f"a chunk of {task.raw} bytes does not fit a slot of {arena.slot_size}")
    slot = arena.lease(stop=lambda: pool.closed)
    span = Span(ARENA, arena.offset(slot), task.raw)
    landed = Fetch(task.location, task.key, task.offset, task.stored, task.codec, task.raw, task.crc, span)
    future = pool.run(landed)
    try:
        future.result()
        consume(arena.address(slot))
    finally:
        if future.done():
            arena.release([slot])
        else:  # interrupted: a worker still writes there
            future.add_done_callback(lambda _: arena.release([slot]))
