"""Helpers for tests with real workers: workers with a fault of their own, stopped ones, questions to the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from s3dlio.engine import spawn
from s3dlio.engine.backlog import Sent
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import S3dlioError
from s3dlio.engine.messages import Call, Task
from s3dlio.engine.pool import Pool
from s3dlio.engine.supervisor import Supervisor

MIB = 1 << 20
T = TypeVar("T")


class Caller:
    """An owner of tasks that keeps what became of them; ``expect`` tells how many."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._changed = threading.Condition()
        self.outcomes: list[tuple[Hashable, object]] = []

    def on_done(self, token: Hashable, value: object) -> None:
        with self._changed:
            self.outcomes.append((token, value))
            self._changed.notify_all()

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        self.on_done(token, error)

    def submit(self, *tasks: Task) -> None:
        """Queue tasks under the numbers from 0, all before any is sent."""

        def event() -> None:
            for token, task in enumerate(tasks):
                self._supervisor.submit(self, token, task)

        self._supervisor.post(event)

    def wait(self, count: int = 1) -> list[tuple[Hashable, object]]:
        """The first ``count`` outcomes, in the order they came."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outcomes) >= count, 60), "no answer"
        return self.outcomes[:count]


def ask(supervisor: Supervisor, question: Callable[[], T]) -> T:
    """The answer of the supervisor's thread."""
    answer: Future[T] = Future()
    supervisor.post(lambda: answer.set_result(question()))
    return answer.result(60)


def await_(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    """Wait until the condition, asked in the supervisor's thread, holds; the test's time limit ends it."""
    while not ask(supervisor, condition):
        pass


def held(supervisor: Supervisor) -> list[Sent]:
    """Tasks that workers hold; to be asked in the supervisor's thread."""
    return [sent for worker in supervisor._crew.workers.values() for sent in worker.tasks.values()]


def in_flight(supervisor: Supervisor) -> int:
    """How many; to be asked there, too."""
    return len(held(supervisor))


def all_ready(supervisor: Supervisor) -> bool:
    """Whether all workers have greeted; to be asked in the supervisor's thread."""
    workers = supervisor._crew.workers.values()
    return len(workers) == supervisor._crew.wanted and all(worker.ready for worker in workers)


def stop(pid: int) -> None:
    """Stop a worker; it has stopped when this returns."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


@contextmanager
def stopped(supervisor: Supervisor) -> Iterator[list[int]]:
    """All workers stopped: what is sent to them stays in flight."""
    await_(supervisor, lambda: all_ready(supervisor))
    pids = supervisor.pids()
    for pid in pids:
        stop(pid)
    try:
        yield pids
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass


def sabotage(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers started from now on run ``code`` before they begin; ``run(self, task)`` in it replaces the real one."""
    before, call = spawn._BOOTSTRAP.rsplit("main(", 1)
    prepare = (
        "import os, signal, time\nfrom s3dlio.engine.messages import *\nfrom s3dlio.engine.tasks import TaskRunner\n"
    )
    replace = "if 'run' in globals():\n    TaskRunner.run = run\n"
    monkeypatch.setattr(spawn, "_BOOTSTRAP", f"{before}{prepare}real = TaskRunner.run\n{code}\n{replace}main({call}")


def head(folder: Path, key: str) -> Call:
    return Call(Location("file", str(folder)), "head", (key,))


def put(folder: Path, key: str, data: bytes) -> Call:
    return Call(Location("file", str(folder)), "put", (key, (data,)))


def all_free(pool: Pool) -> bool:
    """Whether the arena has all its slots back.

    What was being copied when a save failed is given back by an event that may come after the end of its future.
    """
    if not pool.closed:
        ask(pool.supervisor, lambda: None)
    return pool.arena.free == pool.arena.slots


def python(code: str, *arguments: str, expect: int = 0) -> str:
    """What a process of its own, which runs ``code``, prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == expect, done.stderr
    return done.stdout.strip()
