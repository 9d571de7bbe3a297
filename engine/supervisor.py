"""The supervisor: one thread that starts workers, hands them tasks, hears results, and replaces the dead.

Owns the workers, the table of tasks in flight and the queue of those waiting; never touches tensor bytes and never
blocks on anything but its one wait. Jobs (``Owner``) live in this thread: other threads reach them by ``post``.

    post(fn) ─▶ inbox ─┐
    workers' results ──┼─▶ one wait ─▶ owner.on_done / on_failed ─▶ submit(...) ─▶ queue ─▶ the least busy worker
    deadlines ─────────┘

A worker's end of file is its death: its tasks are sent again to others, a replacement starts. A task that makes no
progress for ``task_timeout`` seconds costs its worker its life, and only then is it sent again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial

from .backlog import Backlog, Owner, Sent
from .channel import Channel, ChannelClosed
from .errors import DeadlineError, PoolClosedError, S3dlioError, WorkerDiedError
from .messages import (
    Attach,
    Configure,
    Detach,
    Failure,
    Forget,
    Hello,
    LogMessage,
    ResultMessage,
    Task,
    TaskMessage,
    error_of,
)
from .spawn import start_worker

_log = logging.getLogger("s3dlio.engine")

MAX_SENDS = 5
"""How often one task is sent before its job fails: a task that kills four workers will kill the fifth."""
MAX_STILLBORN = 3
"""How many workers in a row may die before their first word."""
_SEND_TIMEOUT = 30.0
_START_TIMEOUT = 60.0  # 0.1 s where the interpreter's files are warm; more from a busy network file system
_EXIT_TIMEOUT = 5.0
_NEVER = float("inf")
_told: set[str] = set()  # what was to be logged once, whichever worker of whichever pool says it


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Channel
    tasks: dict[int, Sent] = field(default_factory=dict)
    ready: bool = False

    def load(self, remote: bool) -> int:
        """How many tasks of a kind it has."""
        return sum(sent.remote is remote for sent in self.tasks.values())


class Supervisor:
    """Starts ``workers`` processes and keeps them at work until ``close``.

    Each runs up to ``lanes`` tasks at once that want a core or a disk, and ``connections`` that wait for a network.
    ``on_end`` is the last thing called in its thread, when no worker is left, with the reason of the end.
    """

    def __init__(
        self,
        workers: int,
        lanes: int,
        *,
        connections: int = 1,
        task_timeout: float,
        on_end: Callable[[S3dlioError], None] | None = None,
    ) -> None:
        self._wanted = workers
        self._room = {False: lanes, True: connections}
        self._task_timeout = task_timeout
        self._inbox: deque[Callable[[], None]] = deque()
        self._gate = threading.RLock()  # a finalizer may post while this thread posts
        self._on_end = on_end
        try:
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise S3dlioError(f"cannot start a pool: {error}; raise the limit of open files (ulimit -n)") from error
        self._selector = selectors.PollSelector()
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._workers: dict[int, _Worker] = {}
        self._memories: dict[int, tuple[int, int]] = {}
        self._backlog = Backlog()
        self._sequence = itertools.count()
        self._stillborn = 0
        self._level = -1
        self._broken: S3dlioError | None = None
        self._closing = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="s3dlio-supervisor", daemon=True)

    # any thread

    def start(self) -> None:
        """Start the thread, which starts the workers."""
        self._thread.start()

    def post(self, event: Callable[[], None]) -> None:
        """Have ``event`` run in the supervisor thread; ``PoolClosedError`` once it is closing."""
        with self._gate:  # an event that passes is run, by the shutdown at the latest
            if self._ended:
                raise PoolClosedError(str(self._broken))
            self._inbox.append(event)
            self._wake()

    def close(self) -> None:
        """End the workers and the thread; tasks still in flight fail with ``PoolClosedError``."""
        with self._gate:
            self._closing = True
            self._wake()
        self._thread.join()

    def pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        return [worker.process.pid for worker in list(self._workers.values())]

    def forget(self) -> None:
        """In a forked child: close what was inherited, so that the parent's death is still seen by its workers."""
        self._gate = threading.RLock()  # a thread that does not exist here may hold the old one
        self._broken = PoolClosedError("the worker pool belongs to the process that this one was forked from")
        self._ended = True
        for worker in self._workers.values():
            worker.channel.close()
            worker.process.returncode = 0  # not this process's child: nothing to wait for, no warning at collection
        self._close_wake_fd()

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def _close_wake_fd(self) -> None:
        with self._gate:  # a late wake must not write into whatever gets this number next
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
            self._wake_fd = -1

    # the supervisor thread

    def submit(self, owner: Owner, token: Hashable, task: Task) -> None:
        """Queue a task; its outcome reaches ``owner`` under ``token``."""
        self._backlog.add(owner, token, task)

    def withdraw(self, owner: Owner) -> list[Hashable]:
        """Take back the owner's tasks that were not sent yet; their tokens."""
        return self._backlog.withdraw(owner)

    def attach(self, memory: int, fd: int, size: int) -> None:
        """Make a memory known to all workers, those to come included; ``fd`` stays open until ``detach``."""
        self._memories[memory] = (fd, size)
        for worker in list(self._workers.values()):
            self._send(worker, Attach(memory, size), (fd,))

    def detach(self, memory: int) -> None:
        """Have all workers unmap a memory; none of their tasks may name it."""
        self._memories.pop(memory, None)
        self._broadcast(Detach(memory))

    def forget_upload(self, key: str, upload: str) -> None:
        """The upload is finished: its worker need not abort it at the end."""
        self._broadcast(Forget(key, upload))

    def _broadcast(self, message: object) -> None:
        for worker in list(self._workers.values()):
            self._send(worker, message)

    def _run(self) -> None:
        # Workers inherit this thread's mask. Until they ignore these signals themselves, 0.1 s after their start, a
        # Ctrl-C for the group would end them.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._drain_inbox()
            while not self._closing:
                self._hire()
                self._dispatch()
                for key, _ in self._selector.select(self._patience()):
                    if key.data is None:
                        self._drain_inbox()
                    else:
                        self._hear(key.data)
                self._kill_stuck()
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave waiters hanging
            _log.exception("the supervisor failed")
            self._broken = S3dlioError(f"internal error in the supervisor: {type(error).__name__}: {error}")
        finally:
            self._shut_down()

    def _patience(self) -> float | None:
        """Seconds until the first deadline."""
        first = min(
            (sent.deadline for worker in self._workers.values() for sent in worker.tasks.values()), default=_NEVER
        )
        return None if first == _NEVER else max(0.0, first - time.monotonic())

    def _drain_inbox(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._inbox:
            self._inbox.popleft()()

    # workers

    def _hire(self) -> None:
        """Start what is missing, unless workers die at birth."""
        while len(self._workers) < self._wanted and self._broken is None:
            try:
                started = start_worker(sum(self._room.values()))
            except S3dlioError as error:
                self._on_stillborn(str(error))
                continue
            worker = _Worker(started.process, Channel(started.sock, send_timeout=_SEND_TIMEOUT))
            self._workers[worker.process.pid] = worker
            self._selector.register(worker.channel, selectors.EVENT_READ, worker)
            for memory, (fd, size) in self._memories.items():
                self._send(worker, Attach(memory, size), (fd,))
            self._send(worker, Configure(logging.getLogger("s3dlio").getEffectiveLevel()))

    def _on_stillborn(self, reason: str) -> None:
        """A worker could not be started, or died before its first word: make do with those that live, if any."""
        self._stillborn += 1
        if self._stillborn < MAX_STILLBORN:
            return
        self._stillborn = 0
        if self._workers:
            self._wanted = len(self._workers)
            _log.warning("going on with %d workers: no more can be started: %s", self._wanted, reason)
            return
        self._broken = WorkerDiedError(f"no worker could be started, {MAX_STILLBORN} tries failed: {reason}")
        self._fail_queue(self._broken)

    def _send(self, worker: _Worker, message: object, fds: tuple[int, ...] = ()) -> bool:
        try:
            worker.channel.send(message, fds)
        except ChannelClosed:
            worker.process.kill()  # it is dead or wedged; its end of file follows
            return False
        return True

    def _hear(self, worker: _Worker) -> None:
        try:
            messages = worker.channel.receive()
        except ChannelClosed:
            self._bury(worker)
            return
        for message, _ in messages:
            match message:
                case ResultMessage():
                    self._on_result(worker, message)
                case LogMessage():
                    _relog(message)
                case Hello():
                    worker.ready = True
                    self._stillborn = 0
                    for sent in worker.tasks.values():
                        sent.deadline = time.monotonic() + self._task_timeout

    def _on_result(self, worker: _Worker, message: ResultMessage) -> None:
        sent = worker.tasks.pop(message.id)
        if isinstance(message.value, Failure):
            sent.owner.on_failed(sent.token, error_of(message.value))
        else:
            sent.owner.on_done(sent.token, message.value)

    def _bury(self, worker: _Worker) -> None:
        """A worker is gone: reap it, then send its tasks again."""
        self._selector.unregister(worker.channel)
        worker.channel.close()
        worker.process.kill()
        status = worker.process.wait()
        del self._workers[worker.process.pid]
        _log.warning(
            "worker %d died (status %d) with %d tasks in flight; its work is done again",
            worker.process.pid, status, len(worker.tasks),
        )  # fmt: skip
        if not worker.ready:
            self._on_stillborn(f"the last one ended with status {status}")
        for sent in worker.tasks.values():
            sent.sends -= not worker.ready  # it never saw its tasks
            if sent.sends >= MAX_SENDS or self._broken is not None:
                sent.owner.on_failed(sent.token, self._verdict(sent, status))
            else:
                self._backlog.put_back(sent)

    def _verdict(self, sent: Sent, status: int) -> S3dlioError:
        what = f"{type(sent.task).__name__} of {getattr(sent.task, 'key', 'memory')}"
        if sent.stuck:
            return DeadlineError(
                f"{what} made no progress for {self._task_timeout:g} s, {sent.sends} times; the storage hangs"
            )
        return self._broken or WorkerDiedError(
            f"{what}: {sent.sends} workers died on it, the last with status {status}; see their output above"
        )

    def _kill_stuck(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers.values()):
            late = [sent for sent in worker.tasks.values() if sent.deadline <= now]
            for sent in late:
                sent.stuck = True
                sent.deadline = _NEVER
            if late:
                worker.process.kill()

    # tasks

    def _dispatch(self) -> None:
        """Give waiting tasks, most urgent first, to the least busy workers."""
        level = logging.getLogger("s3dlio").getEffectiveLevel()
        if level != self._level:
            self._level = level
            self._broadcast(Configure(level))
        if self._broken is not None:
            self._fail_queue(self._broken)
            return
        while (sent := self._backlog.pop(self._has_room)) is not None:
            self._assign(self._least_busy(sent.remote), sent)

    def _has_room(self, remote: bool) -> bool:
        return any(worker.load(remote) < self._room[remote] for worker in self._workers.values())

    def _least_busy(self, remote: bool) -> _Worker:
        return min(self._workers.values(), key=lambda worker: worker.load(remote))

    def _assign(self, worker: _Worker, sent: Sent) -> None:
        number = next(self._sequence)
        sent.sends += 1
        sent.deadline = time.monotonic() + self._task_timeout + (0.0 if worker.ready else _START_TIMEOUT)
        worker.tasks[number] = sent
        self._send(worker, TaskMessage(number, sent.task))

    def _fail_queue(self, error: S3dlioError) -> None:
        for sent in self._backlog.drain():
            sent.owner.on_failed(sent.token, error)

    # the end

    def _shut_down(self) -> None:
        """End the workers, then fail whatever is left; nothing that an owner raises may leave another one waiting."""
        self._closing = True
        self._broken = error = self._broken or PoolClosedError("the worker pool is closed")
        for worker in self._workers.values():
            worker.channel.close()
        for worker in self._workers.values():
            _end_process(worker.process)
        # No process is left that could touch shared memory: now the owners may free what their tasks named.
        for worker in self._workers.values():
            for sent in worker.tasks.values():
                self._guarded(partial(sent.owner.on_failed, sent.token, error))
        self._workers.clear()
        with self._gate:
            self._ended = True
        while self._inbox or self._backlog:
            while self._inbox:
                self._guarded(self._inbox.popleft())
            self._guarded(partial(self._fail_queue, error))
        if self._on_end is not None:
            self._guarded(partial(self._on_end, error))
        self._selector.close()
        self._close_wake_fd()

    @staticmethod
    def _guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - a bug of ours, told here; the rest must still be ended
            _log.exception("the supervisor failed while it ended")


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """Wait for a worker that was told to go; kill it where it does not."""
    try:
        process.wait(_EXIT_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.wait(_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:  # deep in a system call, of a hung network file system perhaps
            _log.error("worker %d does not end; it is left behind", process.pid)


def _relog(message: LogMessage) -> None:
    logger = logging.getLogger(message.name)
    if logger.isEnabledFor(message.level) and not (message.once and message.text in _told):
        if message.once:
            _told.add(message.text)
        record = logging.LogRecord(message.name, message.level, "", 0, message.text, (), None)
        record.created = message.created
        logger.handle(record)
