"""The workers of a pool: hired, spoken to, killed when they hang, buried when they die, ended with the pool.

Owns the processes, their channels and the memories that each of them must know; never decides what a worker does, nor
what becomes of the tasks of a dead one: that is the supervisor's, in whose thread all of this runs.
"""

from __future__ import annotations

import logging
import selectors
import subprocess
import time
from dataclasses import dataclass, field

from .backlog import Sent
from .channel import Channel, ChannelClosed
from .deadlines import START
from .errors import PoolClosedError, S3dlioError, WorkerDiedError
from .messages import Attach, Configure, Detach, Hello, LogMessage, ResultMessage
from .spawn import start_worker

_log = logging.getLogger("s3dlio.engine")

MAX_STILLBORN = 3
"""How many workers in a row may die before their first word."""
NEVER = float("inf")
_SEND_TIMEOUT = 30.0
_EXIT_TIMEOUT = 5.0
_told: set[str] = set()  # what was to be logged once, whichever worker of whichever pool says it


@dataclass(slots=True)
class Worker:
    """One process, and what it holds: ``tasks`` by their number. It is ``ready`` once it has greeted."""

    process: subprocess.Popen[bytes]
    channel: Channel
    tasks: dict[int, Sent] = field(default_factory=dict)
    ready: bool = False

    def load(self, remote: bool) -> int:
        """How many tasks of a kind it has."""
        return sum(sent.remote is remote for sent in self.tasks.values())

    def give(self, number: int, sent: Sent, limit: float) -> None:
        """Note a task that it is about to be sent, which may take ``limit`` seconds."""
        sent.sends += 1
        sent.limit = limit
        sent.deadline = time.monotonic() + limit + (0.0 if self.ready else START)
        self.tasks[number] = sent


class Crew:
    """Keeps ``wanted`` workers of ``lanes`` threads alive, each known to ``selector`` under its channel.

    ``broken`` tells, once no worker can be started any more or the pool is closed, why.
    """

    def __init__(self, wanted: int, lanes: int, selector: selectors.BaseSelector) -> None:
        self.wanted = wanted
        self.workers: dict[int, Worker] = {}
        self.broken: S3dlioError | None = None
        self._lanes = lanes
        self._selector = selector
        self._memories: dict[int, tuple[int, int]] = {}
        self._stillborn = 0

    def hire(self) -> None:
        """Start what is missing, unless workers die at birth."""
        while len(self.workers) < self.wanted and self.broken is None:
            try:
                started = start_worker(self._lanes)
            except S3dlioError as error:
                self._on_stillborn(str(error))
                continue
            worker = Worker(started.process, Channel(started.sock, send_timeout=_SEND_TIMEOUT))
            self.workers[worker.process.pid] = worker
            self._selector.register(worker.channel, selectors.EVENT_READ, worker)
            for memory, (fd, size) in self._memories.items():
                self.tell(worker, Attach(memory, size), (fd,))
            self.tell(worker, Configure(logging.getLogger("s3dlio").getEffectiveLevel()))

    def _on_stillborn(self, reason: str) -> None:
        """A worker could not be started, or died before its first word: make do with those that live, if any."""
        self._stillborn += 1
        if self._stillborn < MAX_STILLBORN:
            return
        self._stillborn = 0
        if self.workers:
            self.wanted = len(self.workers)
            _log.warning("going on with %d workers: no more can be started: %s", self.wanted, reason)
            return
        self.broken = WorkerDiedError(f"no worker could be started, {MAX_STILLBORN} tries failed: {reason}")

    def tell(self, worker: Worker, message: object, fds: tuple[int, ...] = ()) -> None:
        """Send a message; a worker that takes none is killed."""
        try:
            worker.channel.send(message, fds)
        except ChannelClosed:
            worker.process.kill()  # it is dead or wedged; its end of file follows

    def tell_all(self, message: object) -> None:
        """Send a message to all workers that live now."""
        for worker in list(self.workers.values()):
            self.tell(worker, message)

    def attach(self, memory: int, fd: int, size: int) -> None:
        """Make a memory known to all workers, those to come included; ``fd`` stays open until ``detach``."""
        self._memories[memory] = (fd, size)
        for worker in list(self.workers.values()):
            self.tell(worker, Attach(memory, size), (fd,))

    def detach(self, memory: int) -> None:
        """Have all workers unmap a memory."""
        self._memories.pop(memory, None)
        self.tell_all(Detach(memory))

    def hear(self, worker: Worker) -> list[ResultMessage]:
        """Take in what a worker says: its results; ``ChannelClosed`` if it is gone."""
        results = []
        for message, _ in worker.channel.receive():
            match message:
                case ResultMessage():
                    results.append(message)
                case LogMessage():
                    _relog(message)
                case Hello():
                    worker.ready = True
                    self._stillborn = 0
                    for sent in worker.tasks.values():
                        sent.deadline = time.monotonic() + sent.limit
        return results

    def bury(self, worker: Worker) -> int:
        """A worker is gone: reap it; its exit status. Its tasks stay with it for the supervisor to see to."""
        self._selector.unregister(worker.channel)
        worker.channel.close()
        worker.process.kill()
        status = worker.process.wait()
        del self.workers[worker.process.pid]
        _log.warning(
            "worker %d died (status %d) with %d tasks in flight; its work is done again",
            worker.process.pid, status, len(worker.tasks),
        )  # fmt: skip
        if not worker.ready:
            self._on_stillborn(f"the last one ended with status {status}")
            for sent in worker.tasks.values():  # it never saw its tasks
                sent.sends -= 1
        return status

    def patience(self) -> float | None:
        """Seconds until the first deadline of a task; ``None`` if there is none."""
        first = min(
            (sent.deadline for worker in self.workers.values() for sent in worker.tasks.values()), default=NEVER
        )
        return None if first == NEVER else max(0.0, first - time.monotonic())

    def kill_stuck(self) -> None:
        """Kill the workers that hold a task past its deadline; their end of file follows."""
        now = time.monotonic()
        for worker in list(self.workers.values()):
            late = [sent for sent in worker.tasks.values() if sent.deadline <= now]
            for sent in late:
                sent.stuck += worker.ready  # one that never greeted has not begun it
                sent.deadline = NEVER
            if late:
                worker.process.kill()

    def end(self) -> None:
        """Have all workers go, and kill who does not; no process touches shared memory afterwards."""
        for worker in self.workers.values():
            worker.channel.close()
        for worker in self.workers.values():
            _end_process(worker.process)

    def forget(self) -> None:
        """In a forked child: let go of the parent's workers without a word to them."""
        self.broken = PoolClosedError("the worker pool belongs to the process that this one was forked from")
        for worker in self.workers.values():
            worker.channel.close()
            worker.process.returncode = 0  # not this process's child: nothing to wait for, no warning at collection


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
