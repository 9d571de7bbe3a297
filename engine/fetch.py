"""Reading through the pool: batches of chunks into shared memory, or through slots into memory that exists.

Owns one batch's bookkeeping; what is fetched and where it lands is the caller's (``s3dlio.reader``). Nobody may reuse a
landing before the batch has ended: ``future`` ends only once no worker holds a task of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from .errors import DeadlineError, MemoryLimitError, PoolClosedError, S3dlioError
from .messages import ARENA, Fetch, Span
from .pool import Pool
from .threads import each, run_uninterrupted


def in_turn(memories: Sequence[int | None]) -> list[int]:
    """The order in which to send tasks that write to these memories: one of each in turn, for one writes at a time."""
    seen: dict[int | None, int] = {}
    rounds = []
    for memory in memories:
        seen[memory] = seen.get(memory, 0) + 1
        rounds.append(seen[memory])
    return sorted(range(len(memories)), key=rounds.__getitem__)


class FetchJob:
    """A batch of ``Fetch`` tasks; ``future`` gives their CRC-32Cs in order, or the first error."""

    def __init__(self, pool: Pool, tasks: Sequence[Fetch], on_bytes: Callable[[int], None] | None = None) -> None:
        self.future: Future[list[int]] = Future()
        self.future.set_running_or_notify_cancel()  # it ends only once no worker writes to a landing
        self._pool = pool
        self._tasks = tasks
        self._crcs = [0] * len(tasks)
        self._left = len(tasks)
        self._error: S3dlioError | None = None
        self._on_bytes = on_bytes
        pool.watch(self.future)  # type: ignore[arg-type]  # Future is invariant
        pool.supervisor.post(self._start)

    def _start(self) -> None:
        for index in in_turn([task.target.memory if task.target else None for task in self._tasks]):
            self._pool.supervisor.submit(self, index, self._tasks[index])
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
    # One more than there are requests, for the consumer's own copy; all share the arena's slots.
    width = max((pool.width(task.location) for task, _ in items), default=0) + 1
    errors: list[BaseException] = []

    def one(item: tuple[Fetch, Callable[[int], None]]) -> None:
        if not errors:
            with pool.in_use():
                _fetch_one(pool, *item)

    run_uninterrupted(lambda: each(one, items, min(len(items), width)), errors.append)


def _fetch_one(pool: Pool, task: Fetch, consume: Callable[[int], None]) -> None:
    arena = pool.arena
    if task.raw > arena.slot_size:
        raise MemoryLimitError(f"a chunk of {task.raw} bytes does not fit a slot of {arena.slot_size}")
    try:
        slot = arena.lease(stop=lambda: pool.closed)
    except DeadlineError:
        raise PoolClosedError(f"the pool was closed while {task.key} was being loaded") from None
    try:
        span = Span(ARENA, arena.offset(slot), task.raw)
        pool.run(replace(task, target=span)).result()
        consume(arena.address(slot))
    finally:
        arena.release([slot])
