"""A save job: one object from its first copied byte to its last stored one.

Owns what joins the pure ledger to the pool: staging in threads of the caller, the ledger's actions in the supervisor's.
Never knows tensors or manifests; ``s3dlio.writer`` builds on it and on ``stream``. A job's ``future`` is its durable
end; ``staged_bytes`` and ``progress`` may be read at any time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from . import checksum
from . import codec as codecs
from .actions import Action, Finish, Free, Move, Run, StoredObject
from .backends import OBJECT_STORES
from .contract import Location
from .errors import CancelledError, DeadlineError, PoolClosedError, S3dlioError
from .ledger import Phase, SaveLedger, SaveSpec
from .messages import Runs
from .plan import MIB, SavePlan, plan_save
from .pool import Pool
from .source import Source
from .threads import run_together, run_uninterrupted

# A thread costs 60 µs; below this many bytes the caller's own copy is done before it would help.
_PARALLEL_FROM = 32 * MIB
# memmove reaches 12.6 GB/s in one thread and 20 GB/s in two on the 2-core machine this was measured on; more than a few
# only take cores from the training process.
_COPY_THREADS = 4


def copy_threads(nbytes: int) -> int:
    """How many threads copy so many bytes."""
    return min(_COPY_THREADS, len(os.sched_getaffinity(0))) if nbytes >= _PARALLEL_FROM else 1


@dataclass(frozen=True, slots=True)
class Coding:
    """How a save encodes: a codec of ``engine.codec``, its level, and where elements of which width lie.

    ``runs(start, stop)`` gives the element widths of a chunk. With ``auto`` each chunk is encoded only where that
    is faster (``engine.auto``).
    """

    codec: str = "none"
    level: int = 0
    runs: Callable[[int, int], Runs] = lambda _start, _stop: ()
    auto: bool = False


def plan_for(
    pool: Pool, location: Location, total: int | None, codec: str, whole_below: int, part_size: int | None = None
) -> SavePlan:
    """How ``pool`` saves an object of ``total`` raw bytes there; arguments and errors as in ``plan_save``."""
    slot_size = pool.arena.slot_size
    return plan_save(
        total,
        slot_size=slot_size,
        slots=pool.arena.slots,
        limits=pool.limits(location),
        encoded=codec != "none",
        headroom=codecs.headroom(codec, slot_size),
        lanes=pool.width(location),
        whole_below=whole_below,
        part_size=part_size,
        far=location.scheme in OBJECT_STORES,
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of a save so far; ``total`` is 0 for a stream that has not ended. ``stored`` counts encoded bytes."""

    staged: int
    encoded: int
    stored: int
    total: int
    phase: str


class SaveJob:
    """A save of one object. Create, ``stage``, then wait for ``future``; ``stream.StreamJob`` is fed instead."""

    def __init__(
        self,
        pool: Pool,
        location: Location,
        key: str,
        *,
        total: int | None,
        coding: Coding,
        whole_below: int,
        part_size: int | None = None,
    ) -> None:
        self.future: Future[StoredObject] = Future()
        self.future.set_running_or_notify_cancel()  # asyncio would cancel it otherwise, with workers still at its slots
        self.staged_bytes = 0
        self._count = threading.Lock()
        self.total = total or 0
        checksum.preload()
        self._pool = pool
        self._coding = coding
        self._plan = plan_for(pool, location, total, coding.codec, whole_below, part_size)
        slot_size, width = pool.arena.slot_size, pool.width(location)
        self._spec = SaveSpec(location, key, self._plan, slot_size, coding.codec, coding.level, width)
        self._ledger: SaveLedger | None = None
        self._early: S3dlioError | None = None
        self._held: list[Run] | None = None
        pool.watch(self.future, wait=total is not None)  # type: ignore[arg-type]  # Future is invariant

    def progress(self) -> Progress:
        ledger = self._ledger
        if ledger is None:
            return Progress(self.staged_bytes, 0, 0, self.total, "waiting")
        phase = "failed" if ledger.phase in (Phase.DEAD, Phase.DRAINING, Phase.ABORTING) else ledger.phase.value
        return Progress(self.staged_bytes, ledger.bytes_encoded, ledger.bytes_stored, self.total, phase)

    def cancel(self, error: S3dlioError | None = None) -> None:
        """Give up, unless it ended: staging stops at once, ``future`` ends with ``error`` once nothing is in flight."""
        reason = error or CancelledError(f"the save of {self._spec.key} was cancelled")
        self._early = self._early or reason
        self._pool.arena.wake()  # a worker may hold every slot for as long as the storage hangs

        def event() -> None:
            if self._ledger is not None:
                self._give_up(reason)
            else:  # nothing was begun
                self._end(None, reason)

        try:
            self._pool.supervisor.post(event)
        except PoolClosedError:
            self._end(None, reason)

    # staging, in threads of the caller

    def stage(self, source: Source, *, quiet: bool = False) -> bool:
        """Copy the source into slots, chunk by chunk, as slots come free; false if the job failed before all was there.

        ``quiet``: send nothing to the workers before all is staged or a slot has to be waited for, so that the copy has
        the cores and the memory bandwidth to itself. Errors of the source cancel the job and are raised here; the job's
        own errors are ``future``'s.
        """
        return run_uninterrupted(lambda: self._stage(source, quiet), self._interrupt)

    def _stage(self, source: Source, quiet: bool) -> bool:
        try:
            with self._pool.in_use(), self._pool.turn:
                whole = self._start(quiet) and self._copy(source)
            self._post(self._close)
            return whole
        except PoolClosedError as error:
            self._end(None, error)
            return False
        except BaseException as error:
            self.cancel(_as_cancel(error, self._spec.key))
            raise

    def _interrupt(self, error: BaseException) -> None:
        self.cancel(_as_cancel(error, self._spec.key))

    def _start(self, quiet: bool = False) -> bool:
        """Reserve slots for encoded bytes, then open the ledger; false if the job has ended meanwhile."""
        leased: list[int] = []
        try:
            self._pool.check_streams(self._plan.needed)
            # All that it needs, once, to know that the machine has the memory: later it would wait for itself.
            for _ in range(self._plan.needed):
                slot = self._lease(len(leased))
                if slot is None:
                    return False
                leased.append(slot)
            self._open_ledger(tuple(leased[: self._plan.reserve]), quiet)
            del leased[: self._plan.reserve]
        finally:
            self._pool.arena.release(leased)
        return True

    def _open_ledger(self, reserve: tuple[int, ...], quiet: bool = False) -> None:
        """Begin, with the slots set aside for encoded bytes."""
        auto = self._pool.auto(self._spec.location, self._spec.level) if self._coding.auto else None
        ledger = SaveLedger(self._spec, reserve, auto)

        def event() -> None:
            self._ledger = ledger
            self._held = [] if quiet else None
            self._apply(ledger.begin())
            if self._early is not None:
                self._give_up(self._early)

        self._pool.supervisor.post(event)

    def _close(self, ledger: SaveLedger) -> list[Action]:
        self._let_go()
        return ledger.close(self._plan.chunks)

    def _let_go(self) -> None:
        """Send the workers what was held back while staging."""
        held, self._held = self._held or [], None
        for run in held:
            self._pool.supervisor.submit(self, run.token, run.task)

    def _stopped(self) -> bool:
        return self.future.done() or self._early is not None or self._pool.closed

    def _copy(self, source: Source) -> bool:
        """Copy all chunks; false if the job ended meanwhile."""
        chunks = iter(range(self._plan.chunks))
        order = threading.Lock()
        errors: list[BaseException] = []
        left_out: list[int] = []

        def work() -> None:
            try:
                while True:
                    with order:  # slots are taken in the order of chunks: the first to wait is the first to be stored
                        index = next(chunks, None)
                        if index is None or errors:
                            return
                        slot = self._lease()
                    if slot is None:
                        left_out.append(index)
                        return
                    self._fill(source, index, slot)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(error)

        # A source that waits for a store takes as many threads as it has requests in flight, of any size.
        run_together(work, max(copy_threads(source.total), min(source.threads, self._plan.chunks)))
        if errors:
            raise errors[0]
        return not left_out

    def _lease(self, held: int = 0) -> int | None:
        """A slot, or ``None`` when the job has ended meanwhile; ``held`` as in ``Arena.lease``."""
        try:
            slot = None if self._stopped() else self._pool.arena.try_lease(held)
            if slot is not None:
                return slot
            self._pool.supervisor.post(self._let_go)  # what is held back would never come free
            return self._pool.arena.lease(stop=self._stopped, held=held)
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
        try:
            runs = self._coding.runs(start, stop) if self._coding.codec != "none" else ()

            def ready(ledger: SaveLedger) -> list[Action]:
                return ledger.chunk_ready(index, slot, stop - start, runs)

            self._post(ready)
        except Exception:
            self._pool.arena.release([slot])
            raise
        with self._count:
            self.staged_bytes += stop - start

    # the supervisor's thread

    def _post(self, event: Callable[[SaveLedger], list[Action]]) -> None:
        def run() -> None:
            if self._ledger is not None:
                self._apply(event(self._ledger))

        self._pool.supervisor.post(run)

    def on_done(self, token: Hashable, value: object) -> None:
        assert self._ledger is not None
        assert isinstance(token, tuple)
        self._apply(self._ledger.done(token, value))

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        assert self._ledger is not None
        assert isinstance(token, tuple)
        self._withdraw()
        self._apply(self._ledger.failed(token, error))

    def _give_up(self, error: S3dlioError) -> None:
        assert self._ledger is not None
        if self._ledger.phase is Phase.ABORTING:
            return  # asked twice: the abort is not to be withdrawn
        self._withdraw()
        self._apply(self._ledger.cancel(error))

    def _withdraw(self) -> None:
        assert self._ledger is not None
        held, self._held = self._held or [], None
        for token in [run.token for run in held] + self._pool.supervisor.withdraw(self):
            assert isinstance(token, tuple)
            self._ledger.dropped(token)

    def _apply(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run():
                    if self._held is not None:
                        self._held.append(action)
                    else:
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
        try:
            if result is not None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error or CancelledError(f"the save of {self._spec.key} has no result"))
        except InvalidStateError:
            return  # it had ended, by a cancel or with the pool
        self._pool.arena.wake()


def _as_cancel(error: BaseException, key: str) -> S3dlioError:
    if isinstance(error, S3dlioError):
        return error
    cancelled = CancelledError(f"the save of {key} was given up: {type(error).__name__}: {error}")
    cancelled.__cause__ = error
    return cancelled
