"""Tasks behind a training loop's back: in order, and no failure is lost or told twice."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from s3dlio.frameworks.background import Background


@pytest.fixture
def work() -> Background:
    return Background("s3dlio-test")


def fail() -> None:
    raise ValueError("first")


def test_tasks_run_in_order_and_the_thread_ends(work: Background) -> None:
    seen: list[int] = []
    for number in range(20):
        work.submit(lambda number=number: seen.append(number))  # type: ignore[misc]
    work.close()
    assert seen == list(range(20))
    work.submit(lambda: seen.append(20))  # and starts again
    work.wait()
    assert seen[-1] == 20
    work.close()


def test_a_failure_is_raised_once_by_the_next_call_and_stops_nothing(work: Background) -> None:
    seen: list[int] = []
    failed = work.submit(fail)
    work.submit(lambda: seen.append(1)).result()
    assert isinstance(failed.exception(), ValueError)
    with pytest.raises(ValueError, match="first"):
        work.check()
    work.check()
    work.close()
    assert seen == [1]


@pytest.mark.parametrize("method", ["wait", "close"])
def test_waiting_raises_what_failed_meanwhile(work: Background, method: str) -> None:
    gate = threading.Event()
    work.submit(gate.wait)  # type: ignore[arg-type]
    work.submit(fail)
    gate.set()
    with pytest.raises(ValueError, match="first"):
        getattr(work, method)()
    work.close()


FORK = """
import os, threading
from s3dlio.frameworks.background import Background

work, gate, seen = Background("s3dlio-test"), threading.Event(), []
work.submit(gate.wait)
pid = os.fork()
if pid == 0:
    work.wait()
    work.submit(lambda: seen.append(1))
    work.wait()
    work.close()
    os._exit(seen[0])
gate.set()
work.close()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_child_has_none_of_its_parents_tasks() -> None:
    """In a process of its own: one in which JAX has run warns of every fork."""
    said = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == ["1"]


def test_an_interpreter_that_ends_runs_what_was_handed_in() -> None:
    body = "from s3dlio.frameworks.background import Background\nBackground('t').submit(lambda: print('ran'))"
    said = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == ["ran"]
