"""The pace: how long everybody is held back after a refusal, and who everybody is."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.backends.pace import SIZE, Pace, place_of, private
from s3dlio.engine.backends.retry import RetryBackend
from s3dlio.engine.contract import Location, ObjectInfo
from s3dlio.engine.errors import StorageError, ThrottledError
from tests.engine.test_backend_retry import FakeTime

SLOW_DOWN = ThrottledError("503 SlowDown", transient=True)
BUSY = StorageError("500 InternalError", transient=True)

_REFUSED_ELSEWHERE = """
import mmap, sys
from s3dlio.engine.backends.pace import Pace, SIZE
Pace(memoryview(mmap.mmap(int(sys.argv[1]), SIZE)), base=1000.0, cap=1000.0).slow_down()
"""


class Refusing(MemoryBackend):
    """Raises the next of ``failures`` before a call; ``heads``: when each head came."""

    def __init__(self, fake: FakeTime, *failures: Exception) -> None:
        super().__init__("test_backend_pace")
        self.failures = list(failures)
        self.heads: list[float] = []
        self._fake = fake

    def head(self, key: str) -> ObjectInfo:
        self.heads.append(self._fake.now)
        if self.failures:
            raise self.failures.pop(0)
        return super().head(key)


@pytest.fixture
def store() -> Iterator[MemoryBackend]:
    backend = MemoryBackend("test_backend_pace")
    backend.put("key", [memoryview(b"body")])
    yield backend
    forget("test_backend_pace")


def pace(fake: FakeTime, memory: memoryview | None = None) -> Pace:
    return Pace(memory, base=1.0, cap=10.0, timing=fake.timing())


def low(fake: FakeTime) -> FakeTime:
    fake.uniform = lambda least, most: least
    return fake


# how long


def test_nobody_waits_before_the_first_refusal() -> None:
    assert pace(FakeTime()).remaining() == 0.0
    assert pace(FakeTime(now=1e6)).remaining() == 0.0


def test_a_refusal_holds_for_half_to_all_of_base_and_a_chance_more() -> None:
    fake = FakeTime(now=100.0)
    most = pace(fake)
    most.slow_down()
    assert most.remaining() == 1.5
    fake.now += 0.75
    assert most.remaining() == 0.75
    fake.now += 0.25
    assert most.remaining() == 0.0
    least = pace(low(fake))
    least.slow_down()
    assert least.remaining() == 0.5


def test_refusals_during_a_hold_count_for_nothing() -> None:
    fake = FakeTime(now=100.0)
    once = pace(fake)
    for _ in range(50):
        once.slow_down()
    assert once.remaining() == 1.5
    fake.now += 0.875
    once.slow_down()
    fake.now += 0.125
    assert once.remaining() == 0.0
    once.slow_down()
    assert once.remaining() == 3.0  # twice, not 2^51 times


def test_each_refusal_after_a_hold_doubles_it_up_to_the_cap() -> None:
    fake = FakeTime(now=100.0)
    growing, held = pace(fake), []
    for _ in range(7):
        growing.slow_down()
        fake.uniform = lambda least, most: least
        held.append(growing.remaining())
        fake.uniform = lambda least, most: most
        fake.now += held[-1]
    assert held == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_it_forgets_after_eight_waits_without_a_refusal() -> None:
    fake = FakeTime(now=128.0)
    growing = pace(fake)
    growing.slow_down()
    fake.now += 1.0 + 8.0
    growing.slow_down()  # 8 waits after the end of the hold: not yet forgotten
    assert growing.remaining() == 3.0
    fake.now += 2.0 + 16.0 + 0.125
    growing.slow_down()
    assert growing.remaining() == 1.5


@given(
    steps=st.lists(st.tuples(st.floats(0, 100), st.booleans())),
    chances=st.randoms(use_true_random=False),
    base=st.floats(0.001, 1),
    cap=st.floats(1, 20),
)
def test_no_hold_is_longer_than_the_cap(
    steps: list[tuple[float, bool]], chances: random.Random, base: float, cap: float
) -> None:
    fake = FakeTime(now=1.0, uniform=chances.uniform)
    held = Pace(base=base, cap=cap, timing=fake.timing())
    for passed, refused in steps:
        fake.now += passed
        free = held.remaining() == 0
        if refused:
            held.slow_down()
            assert not free or held.remaining() >= 0.499 * base
        assert 0 <= held.remaining() <= 1.501 * cap


# who


def test_two_paces_of_one_memory_are_one() -> None:
    fake, memory = FakeTime(now=100.0), private()
    first, second = pace(fake, memory), pace(fake, memory)
    first.slow_down()
    assert second.remaining() == 1.5
    second.slow_down()
    fake.now += 1.0
    second.slow_down()
    assert first.remaining() == 3.0


def test_paces_without_memory_are_their_own() -> None:
    fake = FakeTime(now=100.0)
    first, second = pace(fake), pace(fake)
    first.slow_down()
    assert second.remaining() == 0.0


def test_a_bucket_has_one_place_whatever_the_prefix() -> None:
    fake, memory = FakeTime(now=100.0), private()
    here = Location("s3", "bucket/runs/a", (("endpoint_url", "http://one"), ("region", "x")))
    same = Location("s3", "bucket/runs/b", (("endpoint_url", "http://one"),))
    others = [
        Location("s3", "other/runs/a", (("endpoint_url", "http://one"),)),
        Location("s3", "bucket/runs/a", (("endpoint_url", "http://two"),)),
        Location("az", "bucket/runs/a", (("endpoint_url", "http://one"),)),
        Location("s3", "bucket/runs/a"),
    ]
    pace(fake, place_of(here, memory)).slow_down()
    assert pace(fake, place_of(same, memory)).remaining() == 1.5
    assert [pace(fake, place_of(other, memory)).remaining() for other in others] == [0.0] * 4


@given(root=st.text(), endpoint=st.text())
def test_every_place_lies_in_the_memory_and_overlaps_no_other(root: str, endpoint: str) -> None:
    memory = memoryview(bytearray(SIZE))
    place = place_of(Location("s3", root, (("endpoint_url", endpoint),)), memory)
    place[:] = b"\1" * len(place)
    at = bytes(memory).index(b"\1")
    assert (len(place), at % 64) == (64, 0)
    Pace(place).slow_down()  # fits


def test_processes_share_what_they_map() -> None:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, SIZE)
        memory = mmap.mmap(fd, SIZE)
        here = Pace(memoryview(memory))
        assert here.remaining() == 0.0
        subprocess.run([sys.executable, "-c", _REFUSED_ELSEWHERE, str(fd)], pass_fds=[fd], check=True, timeout=60)
        assert 0.0 < here.remaining() <= 1500.0
        before = bytes(memory[:32])
        here.slow_down()  # within their hold: nothing new
        assert bytes(memory[:32]) == before
        del here
        memory.close()
    finally:
        os.close(fd)


# trouble and answers


def test_trouble_is_news_once_and_again_after_a_quiet_minute() -> None:
    fake, memory = FakeTime(now=100.0), private()
    first, second = pace(fake, memory), pace(fake, memory)
    assert first.trouble()
    for _ in range(10):
        fake.now += 59.0
        assert not second.trouble()
        assert not first.trouble()
    fake.now += 60.5
    assert second.trouble()
    assert not first.trouble()


def test_a_store_has_answered_for_all_who_share_its_place() -> None:
    fake, memory = FakeTime(now=100.0), private()
    first, second, other = pace(fake, memory), pace(fake, memory), pace(fake)
    assert not second.answered
    first.slow_down()
    assert not second.answered
    first.answer()
    assert second.answered
    assert not other.answered
    assert second.remaining() == 1.5
    assert second.trouble()


# what the retries make of it


@pytest.mark.usefixtures("store")
def test_one_refusal_holds_back_every_backend_of_the_pace() -> None:
    fake, memory = FakeTime(now=100.0), private()
    refused, other = Refusing(fake, SLOW_DOWN, StorageError("enough")), Refusing(fake)
    with pytest.raises(StorageError, match="enough"):
        RetryBackend(refused, timing=fake.timing(), pace=pace(fake, memory)).head("key")
    fake.now, fake.slept = 100.0, []
    RetryBackend(other, timing=fake.timing(), pace=pace(fake, memory)).head("key")
    assert fake.slept == [1.5]
    assert other.heads == [101.5]


@pytest.mark.usefixtures("store")
def test_a_failure_that_is_no_refusal_holds_back_nobody_else() -> None:
    fake, memory = FakeTime(now=100.0), private()
    failing, other = Refusing(fake, BUSY, BUSY), Refusing(fake)
    RetryBackend(failing, timing=fake.timing(), pace=pace(fake, memory)).head("key")
    fake.now, fake.slept = 100.0, []
    RetryBackend(other, timing=fake.timing(), pace=pace(fake, memory)).head("key")
    assert fake.slept == []
