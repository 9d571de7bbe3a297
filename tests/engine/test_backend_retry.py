from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.backends.retry import RetryBackend, RetryPolicy, Timing
from s3dlio.engine.contract import ObjectInfo, PartReceipt, Segments, UploadInfo
from s3dlio.engine.errors import CorruptError, NotFoundError, PreconditionError, StorageError

BUSY = StorageError("slow down", transient=True)


class Flaky(MemoryBackend):
    """Raises the next of ``failures`` before each call, until there are none."""

    def __init__(self, root: str, failures: list[Exception]) -> None:
        super().__init__(root)
        self.failures = failures
        self.calls = 0

    def _fail(self) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)

    def head(self, key: str) -> ObjectInfo:
        self._fail()
        return super().head(key)

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        self._fail()
        return super().put(key, data, if_absent=if_absent, if_match=if_match)

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        self._fail()
        return super().put_part(key, upload, number, offset, data)

    def get_range(self, key: str, offset: int, into: memoryview) -> None:
        self._fail()
        super().get_range(key, offset, into)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            self._fail()
            yield info

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        for info in super().uploads(prefix):
            self._fail()
            yield info


@dataclass
class FakeTime:
    """A clock that moves only when somebody sleeps."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)
    uniform: Callable[[float, float], float] = lambda low, high: high

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def timing(self) -> Timing:
        return Timing(self.sleep, lambda: self.now, self.uniform)


@pytest.fixture
def store() -> Iterator[MemoryBackend]:
    backend = MemoryBackend("test_backend_retry")
    backend.put("key", [memoryview(b"body")])
    yield backend
    forget("test_backend_retry")


def flaky(failures: int, error: Exception = BUSY) -> Flaky:
    return Flaky("test_backend_retry", [error] * failures)


@pytest.mark.usefixtures("store")
def test_a_transient_failure_is_tried_again() -> None:
    inner, fake = flaky(3), FakeTime()
    into = bytearray(4)
    RetryBackend(inner, timing=fake.timing()).get_range("key", 0, memoryview(into))
    assert into == b"body"
    assert inner.calls == 4
    assert fake.slept == [pytest.approx(0.3), pytest.approx(0.9), pytest.approx(2.7)]


@pytest.mark.parametrize(
    "error",
    [StorageError("no"), NotFoundError("no"), PreconditionError("no"), CorruptError("no"), ZeroDivisionError("no")],
)
@pytest.mark.usefixtures("store")
def test_any_other_failure_is_not(error: Exception) -> None:
    inner, fake = flaky(1, error), FakeTime()
    with pytest.raises(type(error)) as caught:
        RetryBackend(inner, timing=fake.timing()).head("key")
    assert caught.value is error
    assert (inner.calls, fake.slept) == (1, [])


@pytest.mark.usefixtures("store")
def test_attempts_are_bounded_and_told() -> None:
    inner, fake = flaky(100), FakeTime()
    with pytest.raises(StorageError, match=r"put of 'other' failed 4 times in 3\.9 s, .* slow down") as caught:
        RetryBackend(inner, RetryPolicy(attempts=4), fake.timing()).put("other", [])
    assert caught.value.transient
    assert caught.value.__cause__ is BUSY
    assert inner.calls == 4


@pytest.mark.usefixtures("store")
def test_no_attempt_begins_after_the_deadline() -> None:
    inner, fake = flaky(100), FakeTime()
    with pytest.raises(StorageError, match="failed 13 times"):
        RetryBackend(inner, RetryPolicy(attempts=100, deadline=52.0), fake.timing()).head("key")
    assert fake.now <= 52.0


class Rejected(StorageError):
    pass


@pytest.mark.usefixtures("store")
def test_the_last_failure_keeps_its_class() -> None:
    inner = flaky(9, Rejected("later", transient=True))
    with pytest.raises(Rejected, match="later"):
        RetryBackend(inner, RetryPolicy(attempts=2), FakeTime().timing()).head("key")


@given(seed=st.integers(0, 1000), base=st.floats(0.01, 1), cap=st.floats(1, 10), attempts=st.integers(1, 9))
def test_waits_lie_between_base_and_cap(seed: int, base: float, cap: float, attempts: int) -> None:
    fake = FakeTime(uniform=random.Random(seed).uniform)
    inner = Flaky("test_backend_retry", [BUSY] * 100)
    with pytest.raises(StorageError):
        RetryBackend(inner, RetryPolicy(attempts, base, cap, 1e9), fake.timing()).head("key")
    assert len(fake.slept) == attempts - 1
    assert all(min(base, cap) <= wait <= cap for wait in fake.slept)


@pytest.mark.parametrize("listing", ["list", "uploads"])
def test_a_listing_goes_on_where_it_failed(store: MemoryBackend, listing: str) -> None:
    for number in range(5):
        store.put(f"list/{number}", [])
        store.begin(f"list/{number}")
    whole = list(getattr(store, listing)("list/"))
    inner = flaky(0)
    items = getattr(RetryBackend(inner, timing=FakeTime().timing()), listing)("list/")
    begun = [next(items), next(items)]
    inner.failures += [BUSY, BUSY]
    assert begun + list(items) == whole
    assert len(whole) == 5
    assert inner.failures == []


@pytest.mark.usefixtures("store")
def test_a_listing_that_keeps_failing_ends() -> None:
    backend = RetryBackend(flaky(99), RetryPolicy(attempts=3), FakeTime().timing())
    with pytest.raises(StorageError, match="list of '' failed 3 times"):
        list(backend.list())


def test_chance_is_not_the_training_runs() -> None:
    random.seed(1)
    before = random.getstate()
    waits = [Timing().uniform(0.0, 1.0) for _ in range(3)]
    assert len(set(waits)) == 3
    assert random.getstate() == before
