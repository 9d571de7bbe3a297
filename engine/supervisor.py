"""The supervisor: one thread that hands tasks to workers, hears their results, and sends again what a dead one held.

Owns the queue of what waits and the table of who asked for it; never touches tensor bytes and never blocks on anything
but its one wait. ``crew`` has the processes, ``deadlines`` the rules by which work is given up. Jobs (``Owner``) live
in this thread: other threads reach them by ``post``.

    post(fn) ─▶ inbox ─┐
    workers' results ──┼─▶ one wait ─▶ owner.on_done / on_failed ─▶ submit(...) ─▶ queue ─▶ the least busy worker
    deadlines ─────────┘

A worker's end of file is its death: its tasks are sent again to others, a replacement starts. A task that outlasts its
time limit costs its worker its life, and only then is it sent again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
import signal
import threading
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial

from .backlog import Backlog, Owner, Sent
from .channel import ChannelClosed
from .crew import Crew, Worker
from .deadlines import time_limit, verdict
from .errors import PoolClosedError, S3dlioError
from .messages import Configure, Failure, Forget, ResultMessage, Task, TaskMessage, error_of

_log = logging.getLogger("s3dlio.engine")


class Supervisor:
    """Has ``workers`` processes at work until ``close``.

    Each runs up to ``lanes`` tasks at once that want a core or a disk, and ``connections`` that wait for a network.
    ``task_timeout``: seconds that a task may stay silent at least (``deadlines.time_limit``). ``on_end`` is the last
    thing called in its thread, when no worker is left, with the reason of the end.
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
        self._crew = Crew(workers, lanes + connections, self._selector)
        self._backlog = Backlog()
        self._sequence = itertools.count()
        self._level = -1
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
                raise PoolClosedError(str(self._crew.broken))
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
        return [worker.process.pid for worker in list(self._crew.workers.values())]

    def forget(self) -> None:
        """In a forked child: close what was inherited, so that the parent's death is still seen by its workers."""
        self._gate = threading.RLock()  # a thread that does not exist here may hold the old one
        self._crew.forget()
        self._ended = True
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
        self._crew.attach(memory, fd, size)

    def detach(self, memory: int) -> None:
        """Have all workers unmap a memory; none of their tasks may name it."""
        self._crew.detach(memory)

    def forget_upload(self, key: str, upload: str) -> None:
        """The upload is finished: its worker need not abort it at the end."""
        self._crew.tell_all(Forget(key, upload))

    def _run(self) -> None:
        # Workers inherit this thread's mask. Until they ignore these signals themselves, 0.1 s after their start, a
        # Ctrl-C for the group would end them.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._drain_inbox()
            while not self._closing:
                self._crew.hire()
                self._dispatch()
                for key, _ in self._selector.select(self._crew.patience()):
                    if key.data is None:
                        self._drain_inbox()
                    else:
                        self._hear(key.data)
                self._crew.kill_stuck()
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave waiters hanging
            _log.exception("the supervisor failed")
            self._crew.broken = S3dlioError(f"internal error in the supervisor: {type(error).__name__}: {error}")
        finally:
            self._shut_down()

    def _drain_inbox(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._inbox:
            self._inbox.popleft()()

    # what workers say

    def _hear(self, worker: Worker) -> None:
        try:
            results = self._crew.hear(worker)
        except ChannelClosed:
            self._send_again(worker, self._crew.bury(worker))
            return
        for message in results:
            self._on_result(worker, message)

    def _on_result(self, worker: Worker, message: ResultMessage) -> None:
        sent = worker.tasks.pop(message.id)
        if isinstance(message.value, Failure):
            sent.owner.on_failed(sent.token, error_of(message.value))
        else:
            sent.owner.on_done(sent.token, message.value)

    def _send_again(self, worker: Worker, status: int) -> None:
        """The tasks of a dead worker: first those that wait again, so that an owner whose other task fails has them."""
        failed: list[tuple[Sent, S3dlioError]] = []
        for sent in worker.tasks.values():
            error = verdict(sent, status) or self._crew.broken
            if error is None:
                self._backlog.put_back(sent)
            else:
                failed.append((sent, error))
        for sent, error in failed:
            sent.owner.on_failed(sent.token, error)

    # tasks

    def _dispatch(self) -> None:
        """Give waiting tasks, most urgent first, to the least busy workers."""
        level = logging.getLogger("s3dlio").getEffectiveLevel()
        if level != self._level:
            self._level = level
            self._crew.tell_all(Configure(level))
        if self._crew.broken is not None:
            self._fail_queue(self._crew.broken)
            return
        while (sent := self._backlog.pop(self._has_room)) is not None:
            self._assign(self._least_busy(sent.remote), sent)

    def _has_room(self, remote: bool) -> bool:
        return any(worker.load(remote) < self._room[remote] for worker in self._crew.workers.values())

    def _least_busy(self, remote: bool) -> Worker:
        return min(self._crew.workers.values(), key=lambda worker: worker.load(remote))

    def _assign(self, worker: Worker, sent: Sent) -> None:
        number = next(self._sequence)
        worker.give(number, sent, time_limit(sent.task, self._task_timeout))
        self._crew.tell(worker, TaskMessage(number, sent.task))

    def _fail_queue(self, error: S3dlioError) -> None:
        for sent in self._backlog.drain():
            sent.owner.on_failed(sent.token, error)

    # the end

    def _shut_down(self) -> None:
        """End the workers, then fail whatever is left; nothing that an owner raises may leave another one waiting."""
        self._closing = True
        self._crew.broken = error = self._crew.broken or PoolClosedError("the worker pool is closed")
        self._crew.end()
        # No process is left that could touch shared memory: now the owners may free what their tasks named.
        for worker in self._crew.workers.values():
            for sent in worker.tasks.values():
                self._guarded(partial(sent.owner.on_failed, sent.token, error))
        self._crew.workers.clear()
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
