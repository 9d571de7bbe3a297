"""The pool: one arena and one set of workers of this process, shared by all its stores.

Owns the arena, the supervisor, the numbers of attached memories and the turn to stage; knows tasks but no jobs' states
(``job`` builds saves on it, ``fetch`` loads). A forked child forgets its parent's pools; an ending interpreter closes
those that are open.

Deadlock cannot come from a full arena: one save stages at a time (``turn``), holding what it needs for encoded bytes
before its first raw slot, so every save before it has all its chunks and drains.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from .arena import Arena, SharedMemory, forget_memories
from .auto import Auto
from .backends import OBJECT_STORES, answers, pace
from .contract import Control, Limits, Location, ObjectInfo, Page, Segments, UploadInfo
from .errors import ConfigError, MemoryLimitError, PoolClosedError, S3dlioError
from .memory import headroom
from .messages import ARENA, PACE, Call, Populate, Span, Task
from .pins import Registrar
from .supervisor import Supervisor
from .threads import each

MIB = 1 << 20
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How big a pool is.

    ``memory``: bytes of the arena, the bound on staging (``None``: half of what machine and control group have left,
    divided by ``ranks_on_host``). ``workers``: processes. ``lanes``: tasks that each runs at once for a core or a local
    disk; ``connections``: those for an object store. ``slot_size``: bytes of a chunk, a multiple of 1 MiB.
    ``task_timeout``: seconds a task may make no progress.
    """

    memory: int | None = None
    workers: int | None = None
    lanes: int = 2
    connections: int = 8
    slot_size: int = 16 * MIB
    task_timeout: float = 300.0
    ranks_on_host: int = 1

    def __post_init__(self) -> None:
        if type(self.slot_size) is not int or self.slot_size < MIB or self.slot_size % MIB:
            raise ConfigError(f"chunk_size must be a multiple of 1 MiB, not {self.slot_size!r}")
        for name in ("workers", "lanes", "connections", "memory", "ranks_on_host"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} must be a positive number, not {value!r}")
        if self.task_timeout <= 0:
            raise ConfigError(f"task_timeout must be positive, not {self.task_timeout}")

    def memory_bytes(self) -> int:
        return self.memory if self.memory is not None else headroom() // 2 // self.ranks_on_host

    def worker_count(self) -> int:
        """Two keep a local disk busy; more help compression and object stores, and cost 40 MB each."""
        if self.workers is not None:
            return self.workers
        return max(2, min(4, len(os.sched_getaffinity(0)) // self.ranks_on_host))


class Pool:
    """An arena and its workers; started by the constructor, ended by ``close``."""

    def __init__(self, config: PoolConfig | None = None) -> None:
        self.config = config or PoolConfig()
        self.arena = Arena(self.config.memory_bytes(), self.config.slot_size)
        self.workers = self.config.worker_count()
        self.turn = threading.Lock()
        self._numbers = itertools.count(PACE + 1)
        self._limits: dict[Location, Limits] = {}
        self._autos: dict[tuple[Location, int], Auto] = {}
        self._jobs: weakref.WeakSet[Future[object]] = weakref.WeakSet()
        self._waited: weakref.WeakSet[Future[object]] = weakref.WeakSet()
        self._closed = False
        self._ended = False
        self._users: set[int] = set()
        self._held_by_streams = 0
        self._lock = threading.RLock()  # taken itself, for the reason told in `Arena`
        self._idle = threading.Condition(self._lock)
        try:
            self._pace = SharedMemory("s3dlio-pace", pace.SIZE + answers.SIZE)
        except BaseException:
            self.arena.close()
            raise
        try:
            self.supervisor = Supervisor(
                self.workers,
                self.config.lanes,
                connections=self.config.connections,
                task_timeout=self.config.task_timeout,
                on_end=self._fail_jobs,
            )
            for number, memory in ((ARENA, self.arena), (PACE, self._pace)):
                self.supervisor.post(partial(self.supervisor.attach, number, memory.fd, memory.size))
            self.supervisor.start()
        except BaseException:
            self._pace.close()
            self.arena.close()
            raise
        _open_pools.add(self)

    def __repr__(self) -> str:
        busy = self.arena.slots - self.arena.free if not self._closed else 0
        state = "closed" if self._closed else f"{busy} of {self.arena.slots} slots in use"
        return (
            f"<Pool of {self.workers} workers x {self.config.lanes} lanes, {self.arena.slot_size >> 20} MiB, {state}>"
        )

    def width(self, location: Location) -> int:
        """How many requests to a store the workers have in flight at once."""
        return self.workers * (self.config.connections if location.scheme in OBJECT_STORES else self.config.lanes)

    @property
    def closed(self) -> bool:
        return self._closed

    def warmup(self, nbytes: int | None = None, registrar: Registrar | None = None) -> int:
        """Make ``nbytes`` of the arena warm (all of it by default); the bytes that are warm now.

        The workers allocate the pages in parallel, then they are mapped here. Stops, without an error, where the
        machine or its control group has no memory left. ``registrar`` page-locks what is warm.
        """
        with self.in_use():
            warm = self.arena.grow(self.arena.size if nbytes is None else nbytes, self._populate)
            if registrar is not None:
                self.arena.pin(registrar)
            return warm

    def _populate(self, slots: Sequence[int]) -> None:
        tasks = [Populate(Span(ARENA, self.arena.offset(slot), self.arena.slot_size)) for slot in slots]
        for future in [self.run(task) for task in tasks]:
            future.result()

    def make_room(self, nbytes: int) -> int:
        """Bytes that the machine has left; where they are fewer than ``nbytes``, after free slots were given back."""
        room = headroom()
        if room < nbytes:
            with self.in_use():
                given = self.arena.shrink(nbytes - room)
            room = headroom() if given else room
        return room

    def run(self, task: Task) -> Future[object]:
        """Have a worker do one task."""
        single = _Single(self, task)
        self.supervisor.post(single.start)
        return single.future

    def control(self, location: Location) -> PoolControl:
        """The small operations of a store, carried out by the workers."""
        return PoolControl(self, location)

    def limits(self, location: Location) -> Limits:
        """What the location's store takes; asked once, of a worker, so that no SDK is loaded here."""
        if location not in self._limits:
            limits = self.run(Call(location, "limits")).result()
            assert isinstance(limits, Limits)
            self._limits[location] = limits
        return self._limits[location]

    def auto(self, location: Location, level: int) -> Auto:
        """What decides for ``auto`` there, at that level of compression; for the supervisor's thread."""
        return self._autos.setdefault((location, level), Auto(self.workers))

    def attach(self, memory: SharedMemory) -> int:
        """Make a memory known to the workers; its number for ``Span``."""
        number = next(self._numbers)
        self.supervisor.post(lambda: self.supervisor.attach(number, memory.fd, memory.size))
        return number

    def detach(self, number: int, memory: SharedMemory) -> None:
        """Have the workers unmap a memory, then close it; no task may name it any more."""

        def event() -> None:
            self.supervisor.detach(number)
            memory.close()

        try:
            self.supervisor.post(event)
        except PoolClosedError:
            memory.close()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While this thread touches slots ``close`` unmaps nothing; ``PoolClosedError`` if it is too late.

        Not to be nested within one thread.
        """
        with self._lock:
            if self._closed:
                raise PoolClosedError("the worker pool is closed")
            self._users.add(threading.get_ident())  # should a Ctrl-C keep it there, this thread's next use ends it
        try:
            yield
        finally:
            with self._lock:
                self._users.discard(threading.get_ident())
                self._idle.notify_all()

    def reserve_stream(self, slots: int) -> None:
        """Count an open stream's slots; streams may hold half of the arena, so that saves always move on."""
        with self._lock:
            if self._held_by_streams + slots > self.arena.slots // 2:
                raise MemoryLimitError(
                    f"too many open streams: this one holds {slots} chunks of {self.arena.slot_size} bytes; together "
                    f"they may hold half of the {self.arena.slots} in the memory number; finish some, or raise memory="
                )
            self._held_by_streams += slots

    def check_streams(self, slots: int) -> None:
        """``MemoryLimitError`` if open streams, which end when their writer likes, leave less than ``slots``."""
        with self._lock:
            if slots > self.arena.slots - self._held_by_streams:
                raise MemoryLimitError(
                    f"open streams hold {self._held_by_streams} of the {self.arena.slots} chunks of "
                    f"{self.arena.slot_size} bytes in the memory number, and this save needs {slots}: finish some, or "
                    "raise memory="
                )

    def release_stream(self, slots: int) -> None:
        """An open stream ended."""
        with self._lock:
            self._held_by_streams -= slots

    def watch(self, future: Future[object], *, wait: bool = True) -> None:
        """Fail a job should the supervisor end before it does; ``wait``: ``close`` waits for it first."""
        with self._lock:
            self._jobs.add(future)
            if wait:
                self._waited.add(future)

    def _fail_jobs(self, error: S3dlioError) -> None:
        """No worker is left, so a job that still waits for anything (a stream for its writer) would wait for ever."""
        with self._lock:
            jobs = list(self._jobs)
        for future in jobs:
            with contextlib.suppress(InvalidStateError):  # it ended
                future.set_exception(error)

    def close(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds for jobs in flight, then end the workers; what is unfinished fails.

        Streams that are still being written are not waited for.
        """
        if self._ended:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            jobs = list(self._waited)
        for future in jobs:
            _wait(future, None if deadline is None else max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._closed = True
        self.arena.wake()
        self.supervisor.close()
        with self._lock:
            while self._users - {threading.get_ident()}:
                self._idle.wait()
            self.arena.close()
            self._pace.close()
        self._ended = True
        _open_pools.discard(self)  # only now: a child forked meanwhile must still forget it

    def forget(self) -> None:
        """In a forked child: let go of everything without touching the parent's work."""
        self._closed = self._ended = True
        self._lock = threading.RLock()  # a thread that does not exist here may hold the old one
        self._idle = threading.Condition(self._lock)
        self.arena.forget()
        self.supervisor.forget()


class _Single:
    """A job of one task."""

    def __init__(self, pool: Pool, task: Task) -> None:
        self._pool = pool
        self._task = task
        self.future: Future[object] = Future()
        self.future.set_running_or_notify_cancel()  # a worker may hold the task: it ends when the worker says so

    def start(self) -> None:
        self._pool.supervisor.submit(self, None, self._task)

    def on_done(self, token: Hashable, value: object) -> None:
        self.future.set_result(value)

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        self.future.set_exception(error)


class PoolControl(Control):
    """The contract's ``Control`` for one location, each call a task of the pool."""

    def __init__(self, pool: Pool, location: Location) -> None:
        self._pool = pool
        self._location = location

    def _call(self, method: str, *args: object, **options: object) -> object:
        call = Call(self._location, method, args, tuple(options.items()))
        return self._pool.run(call).result()

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``function``, which calls this control, of all items: as many at once as the workers have requests."""
        return each(function, items, self._pool.width(self._location))

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        segments = tuple(bytes(part) for part in data)
        info = self._call("put", key, segments, if_absent=if_absent, if_match=if_match)
        assert isinstance(info, ObjectInfo)
        return info

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        found = self._call("read", key, limit=limit)
        assert isinstance(found, tuple)
        return found

    def head(self, key: str) -> ObjectInfo:
        info = self._call("head", key)
        assert isinstance(info, ObjectInfo)
        return info

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        found = self._call("list_page", prefix, shallow=shallow, after=after, limit=limit)
        assert isinstance(found, Page)
        return found

    def delete(self, key: str) -> None:
        self._call("delete", key)

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        found = self._call("uploads", prefix)
        assert isinstance(found, list)
        return iter(found)

    def written(self, key: str, upload: str) -> float:
        found = self._call("written", key, upload)
        assert isinstance(found, float)
        return found

    def abort(self, key: str, upload: str) -> None:
        self._call("abort", key, upload)


def _wait(future: Future[object], timeout: float | None) -> None:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    done.wait(timeout)


_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
EXIT_TIMEOUT = 600.0
"""Seconds an ending interpreter waits for saves in flight."""


def _close_all() -> None:
    for pool in list(_open_pools):
        pool.close(EXIT_TIMEOUT)


def _forget_all() -> None:
    for pool in list(_open_pools):
        pool.forget()
    forget_memories()
    _open_pools.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
