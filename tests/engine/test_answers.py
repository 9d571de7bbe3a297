"""A question to a store is put once, by one thread; the workers of a pool tell each other the answer."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from s3dlio.engine.backends.answers import SIZE, Question, share
from s3dlio.engine.errors import StorageError
from tests.engine.waiters import Waiters

LANES = 8

_ASKED_ELSEWHERE = """
import mmap, os, sys
from s3dlio.engine.backends.answers import SIZE, Question, share
share(memoryview(mmap.mmap(int(sys.argv[1]), SIZE)))
question = Question("what?")
if sys.argv[2] == "dies":
    question.answer(lambda: os._exit(7))
print(question.answer(lambda: 200))
"""


def never() -> int:
    raise AssertionError("asked")


@pytest.fixture
def shared() -> Iterator[memoryview]:
    memory = memoryview(bytearray(SIZE))
    share(memory)
    yield memory
    share(None)


def in_all_lanes(question: Question, waiters: Waiters, outcome: Callable[[], int]) -> list[Future[int]]:
    """Ask in many threads; the one that does ends with ``outcome`` once all others wait for it."""

    def ask() -> int:
        waiters.wait(LANES - 1)
        return outcome()

    with ThreadPoolExecutor(LANES) as lanes:
        return [lanes.submit(question.answer, ask) for _ in range(LANES)]


def test_one_asks_and_the_others_wait_for_its_answer(waiters: Waiters) -> None:
    question, numbers = Question("what?"), itertools.count(1)
    found = in_all_lanes(question, waiters, lambda: next(numbers))
    assert [future.result() for future in found] == [1] * LANES
    assert question.answer(never) == 1


def test_an_error_is_shared_by_those_who_waited_and_by_nobody_else(waiters: Waiters) -> None:
    question, asked = Question("what?"), []

    def fail() -> int:
        asked.append(1)
        raise StorageError("no answer", transient=True)

    for future in in_all_lanes(question, waiters, fail):
        with pytest.raises(StorageError, match="no answer"):
            future.result()
    assert len(asked) == 1
    assert question.answer(lambda: 3) == 3
    assert question.answer(never) == 3


@pytest.mark.parametrize("found", [0, 1, 255])
def test_an_answer_is_known_to_all_who_share_the_memory(shared: memoryview, found: int) -> None:
    assert Question("what?").answer(lambda: found) == found
    assert Question("what?").answer(never) == found
    assert Question("what else?").answer(lambda: 7) == 7
    share(None)
    assert Question("what?").answer(lambda: 9) == 9


def test_what_is_not_shared_is_not_known_elsewhere() -> None:
    assert Question("what?").answer(lambda: 1) == 1
    assert Question("what?").answer(lambda: 2) == 2


def test_an_error_is_not_shared_between_processes(shared: memoryview) -> None:
    with pytest.raises(AssertionError, match="asked"):
        Question("what?").answer(never)
    assert not any(shared)
    assert Question("what?").answer(lambda: 4) == 4


def test_questions_of_one_place_never_have_each_other_s_answer(shared: memoryview) -> None:
    """Many more than places: each place has the last one's."""
    asked = []

    def answered(number: int) -> int:
        def ask() -> int:
            asked.append(number)
            return number % 256

        return Question(f"what {number}?").answer(ask)

    for _ in range(2):
        assert [answered(number) for number in range(SIZE)] == [number % 256 for number in range(SIZE)]
    assert len(asked) > 2 * SIZE - SIZE // 8


def test_processes_share_what_they_map() -> None:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, SIZE)
        memory = mmap.mmap(fd, SIZE)
        share(memoryview(memory))

        def elsewhere(how: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", _ASKED_ELSEWHERE, str(fd), how]
            return subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, timeout=60, check=False)

        assert elsewhere("dies").returncode == 7  # while it asks: nobody waits for it
        assert elsewhere("asks").stdout == "200\n"
        assert Question("what?").answer(never) == 200
        share(None)
        memory.close()
    finally:
        share(None)
        os.close(fd)
