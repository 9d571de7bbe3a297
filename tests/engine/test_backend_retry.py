from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.backends.pace import Pace, Timing
from s3dlio.engine.backends.retry import REMOTE, RetryBackend, RetryPolicy
from s3dlio.engine.contract import Backend, ObjectInfo, Page, PartReceipt, Segments, UploadInfo
from s3dlio.engine.errors import (
    BrokenReadError,
    CorruptError,
    NotFoundError,
    PreconditionError,
    StorageError,
    ThrottledError,
)

BUSY = StorageError("slow down", transient=True)
THROTTLED = ThrottledError("503 SlowDown", transient=True)


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

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        self._fail()
        super().get_range(key, offset, into, if_match=if_match)

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        self._fail()
        return super().list_page(prefix, shallow=shallow, after=after, limit=limit)

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        for info in super().uploads(prefix):
            self._fail()
            yield info


class Breaking(MemoryBackend):
    """Downloads that end early: each brings the next of ``reached`` bytes, takes ``seconds`` and then fails.

    ``broken`` is called after each failure.
    """

    def __init__(self, fake: FakeTime, reached: list[int], seconds: float = 0.0) -> None:
        super().__init__("test_backend_retry")
        self.reached = reached
        self.asked: list[tuple[int, int]] = []
        self._fake = fake
        self._seconds = seconds
        self.broken: Callable[[], object] = lambda: None

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        self.asked.append((offset, len(into)))
        self._fake.now += self._seconds
        if not self.reached:
            super().get_range(key, offset, into, if_match=if_match)
            return
        reached, etag = self.reached.pop(0), self.head(key).etag
        super().get_range(key, offset, into[:reached], if_match=if_match)
        self.broken()
        raise BrokenReadError("connection reset", reached=reached, etag=etag)


@dataclass
class FakeTime:
    """A clock that moves only when somebody sleeps."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)
    uniform: Callable[[float, float], float] = lambda low, high: high

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def draw(self, low: float, high: float) -> float:
        """By ``uniform`` as it is now; a test may change it meanwhile."""
        return self.uniform(low, high)

    def timing(self) -> Timing:
        return Timing(self.sleep, lambda: self.now, self.draw)


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


def test_a_listing_goes_on_where_it_failed(store: MemoryBackend) -> None:
    for number in range(5):
        store.put(f"list/{number}", [])
    inner = flaky(0)
    pages = RetryBackend(inner, timing=FakeTime().timing()).pages("list/", limit=2)
    begun = next(pages)
    inner.failures += [BUSY, BUSY]
    found = [info for page in (begun, *pages) for info in page.objects]
    assert found == list(store.list("list/"))
    assert len(found) == 5
    assert inner.calls == 3 + 2


def test_a_listing_of_uploads_goes_on_where_it_failed(store: MemoryBackend) -> None:
    for number in range(5):
        store.begin(f"list/{number}")
    whole = list(store.uploads("list/"))
    inner = flaky(0)
    items = RetryBackend(inner, timing=FakeTime().timing()).uploads("list/")
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


# downloads


@pytest.mark.usefixtures("store")
def test_a_broken_download_goes_on_from_the_byte_reached() -> None:
    fake = FakeTime()
    inner, into = Breaking(fake, [1, 0, 2]), bytearray(4)
    RetryBackend(inner, timing=fake.timing()).get_range("key", 0, memoryview(into))
    assert into == b"body"
    assert inner.asked == [(0, 4), (1, 3), (1, 3), (3, 1)]


def streamed(backend: Backend, key: str, offset: int, length: int, block: int) -> bytes:
    """A range by ``stream_range``."""
    room = memoryview(bytearray(block))
    return b"".join(map(bytes, backend.stream_range(key, offset, length, room)))


@pytest.mark.usefixtures("store")
def test_a_piece_that_never_became_whole_is_asked_for_again() -> None:
    fake = FakeTime()
    inner = Breaking(fake, [1, 0, 0])
    assert streamed(RetryBackend(inner, timing=fake.timing()), "key", 0, 4, 1) == b"body"
    assert inner.asked == [(0, 1), (0, 1), (0, 1), (0, 1), (1, 1), (2, 1), (3, 1)]
    assert len(fake.slept) == 3


@pytest.mark.usefixtures("store")
def test_pieces_that_arrive_begin_the_attempts_anew() -> None:
    fake = FakeTime()
    patient = RetryBackend(Stuttering(2), RetryPolicy(attempts=3), fake.timing())
    assert streamed(patient, "key", 0, 4, 2) == b"body"
    with pytest.raises(BrokenReadError, match=r"get_range of 'key' failed 3 times .* connection reset"):
        streamed(RetryBackend(Stuttering(3), RetryPolicy(attempts=3), fake.timing()), "key", 0, 4, 2)


def test_a_broken_stream_never_goes_on_with_another_version(store: MemoryBackend) -> None:
    fake = FakeTime()
    inner = Stuttering(1)
    patient = RetryBackend(inner, timing=fake.timing())
    pieces = patient.stream_range("key", 0, 4, memoryview(bytearray(2)))
    assert bytes(next(pieces)) == b"bo"
    store.put("key", [memoryview(b"BODY")])
    with pytest.raises(PreconditionError, match=r"key .*was overwritten while it was read"):
        next(pieces)


class Stuttering(MemoryBackend):
    """Streams that break off after each piece, and then ``failures`` times before the next, in one version's middle."""

    def __init__(self, failures: int) -> None:
        super().__init__("test_backend_retry")
        self._failures = failures
        self._left = 0

    def stream_range(
        self, key: str, offset: int, length: int, block: memoryview, *, if_match: str | None = None
    ) -> Iterator[memoryview]:
        etag = self.head(key).etag
        if self._left > 1:
            self._left -= 1
            raise BrokenReadError("connection reset", etag=etag)
        self._left = self._failures
        yield from super().stream_range(key, offset, min(length, len(block)), block, if_match=if_match)
        raise BrokenReadError("connection reset", reached=len(block), etag=etag)


@given(
    data=st.data(),
    size=st.integers(1, 100),
    start=st.integers(0, 20),
)
def test_no_download_asks_for_more_than_is_missing(data: st.DataObject, size: int, start: int) -> None:
    body, fake = random.Random(size).randbytes(start + size + 5), FakeTime()
    steps, left = [], size
    while left and data.draw(st.booleans()):
        steps.append(data.draw(st.integers(0, left - 1)))
        left -= steps[-1]
    inner = Breaking(fake, list(steps))
    inner.put("ranged", [memoryview(body)])
    memory = bytearray(b"x" * (size + 2))
    policy = RetryPolicy(attempts=1000, deadline=1e9)
    RetryBackend(inner, policy, fake.timing()).get_range("ranged", start, memoryview(memory)[1:-1])
    assert memory == b"x" + body[start : start + size] + b"x"
    reached = 0
    for (offset, length), step in zip(inner.asked, [*steps, 0], strict=True):
        assert (offset, length) == (start + reached, size - reached)
        reached += step
    forget("test_backend_retry")


@pytest.mark.usefixtures("store")
def test_a_download_whose_last_byte_came_before_it_broke_is_complete() -> None:
    fake = FakeTime()
    inner, into = Breaking(fake, [2, 2]), bytearray(4)
    RetryBackend(inner, timing=fake.timing()).get_range("key", 0, memoryview(into))
    assert into == b"body"
    assert inner.asked == [(0, 4), (2, 2)]  # a range of no bytes is none that a server knows


@pytest.mark.usefixtures("store")
def test_bytes_that_arrive_begin_the_attempts_anew() -> None:
    fake = FakeTime()
    inner, into = Breaking(fake, [0, 0, 1, 0, 2, 0]), bytearray(4)
    RetryBackend(inner, RetryPolicy(attempts=3), fake.timing()).get_range("key", 0, memoryview(into))
    assert into == b"body"
    inner.reached = [0, 1, 0, 0, 0]
    with pytest.raises(BrokenReadError, match=r"get_range of 'key' failed 3 times .* connection reset"):
        RetryBackend(inner, RetryPolicy(attempts=3), fake.timing()).get_range("key", 0, memoryview(into))


@pytest.mark.usefixtures("store")
def test_a_download_that_keeps_moving_has_no_deadline() -> None:
    fake = FakeTime()
    inner = Breaking(fake, [1] * 499, seconds=100.0)
    body = random.Random(1).randbytes(500)
    inner.put("slow", [memoryview(body)])
    into = bytearray(500)
    RetryBackend(inner, REMOTE, fake.timing()).get_range("slow", 0, memoryview(into))
    assert into == body
    assert fake.now >= 500 * 100.0


@pytest.mark.usefixtures("store")
def test_a_download_that_has_stopped_ends_at_the_deadline() -> None:
    fake = FakeTime(now=50.0)
    inner = Breaking(fake, [2] + [0] * 1000, seconds=1.0)
    with pytest.raises(
        BrokenReadError, match=r"get_range of 'key' failed \d+ times in \d+\.\d s, .*: connection reset"
    ):
        RetryBackend(inner, REMOTE, fake.timing()).get_range("key", 0, memoryview(bytearray(4)))
    assert fake.now <= 50.0 + 1.0 + REMOTE.deadline + 1.0  # from the last byte on, with the last attempt's own second
    assert set(inner.asked[1:]) == {(2, 2)}


@pytest.mark.parametrize("given", [False, True])
def test_a_broken_download_never_goes_on_with_another_version(store: MemoryBackend, given: bool) -> None:
    fake = FakeTime()
    inner, into = Breaking(fake, [2]), bytearray(4)
    inner.broken = lambda: store.put("key", [memoryview(b"BODY")])
    etag = store.head("key").etag
    with pytest.raises(PreconditionError, match=r"key .*was overwritten while it was read") as caught:
        RetryBackend(inner, timing=fake.timing()).get_range(
            "key", 0, memoryview(into), if_match=etag if given else None
        )
    assert not caught.value.transient
    assert into == b"bo\0\0"


@pytest.mark.usefixtures("store")
def test_a_download_of_which_nothing_came_may_be_of_any_version() -> None:
    fake = FakeTime()
    inner, into = Breaking(fake, [0]), bytearray(4)
    inner.broken = lambda: inner.put("key", [memoryview(b"BODY")])
    RetryBackend(inner, timing=fake.timing()).get_range("key", 0, memoryview(into))
    assert into == b"BODY"


# refusals


@pytest.mark.usefixtures("store")
def test_a_store_that_always_refuses_is_given_up_at_the_deadline() -> None:
    inner, fake = flaky(1000, THROTTLED), FakeTime(now=10.0)
    upload = inner.begin("key")
    with pytest.raises(ThrottledError) as caught:
        RetryBackend(inner, REMOTE, fake.timing()).put_part("key", upload, 7, 0, [])
    told = f"put_part 7 of 'key' failed {inner.calls} times in "
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith(" s, the last time with: 503 SlowDown")
    assert inner.calls > 5
    assert caught.value.transient
    assert caught.value.__cause__ is THROTTLED
    assert 10.0 + REMOTE.deadline / 2 < fake.now


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("deadline", [1.0, 10.0, 52.0, 120.0])
@pytest.mark.parametrize("least", [False, True])
def test_no_refused_attempt_begins_after_the_deadline(deadline: float, least: bool) -> None:
    """Not even where the pace, which others may have slowed, holds for longer than its own wait."""
    fake = FakeTime(uniform=min if least else max)
    begun: list[float] = []

    class Timed(Flaky):
        def _fail(self) -> None:
            begun.append(fake.now)
            super()._fail()

    inner = Timed("test_backend_retry", [THROTTLED] * 1000)
    with pytest.raises(ThrottledError):
        RetryBackend(inner, RetryPolicy(attempts=1000, cap=10.0, deadline=deadline), fake.timing()).head("key")
    assert max(begun) <= deadline


@pytest.mark.usefixtures("store")
def test_what_the_others_wait_for_is_waited_for_before_the_first_attempt() -> None:
    inner, fake = flaky(0), FakeTime(now=100.0)
    pace = Pace(base=4.0, timing=fake.timing())
    pace.slow_down()
    RetryBackend(inner, timing=fake.timing(), pace=pace).head("key")
    assert fake.slept == [6.0]


def test_a_listing_that_is_refused_goes_on_and_holds_back_the_others(store: MemoryBackend) -> None:
    for number in range(4):
        store.begin(f"list/{number}")
    inner, fake = flaky(0), FakeTime(now=100.0)
    pace = Pace(base=4.0, timing=fake.timing())
    items = RetryBackend(inner, timing=fake.timing(), pace=pace).uploads("list/")
    keys = [next(items).key]
    inner.failures += [THROTTLED]
    keys.append(next(items).key)
    assert fake.slept == [pytest.approx(0.3), pytest.approx(5.7)]  # its own wait, then what is left of the pace's
    keys += [info.key for info in items]
    assert keys == [f"list/{number}" for number in range(4)]


@pytest.mark.usefixtures("store")
def test_a_listing_that_is_always_refused_ends() -> None:
    backend = RetryBackend(flaky(1000, THROTTLED), REMOTE, FakeTime().timing())
    with pytest.raises(ThrottledError, match=r"list of 'k' failed \d+ times in .* 503 SlowDown"):
        list(backend.list("k"))


@given(seed=st.integers(0, 1000), refused=st.lists(st.booleans(), max_size=12))
def test_a_call_that_succeeds_in_time_was_made_as_often_as_it_failed_and_once_more(
    seed: int, refused: list[bool]
) -> None:
    fake = FakeTime(uniform=random.Random(seed).uniform)
    inner = Flaky("test_backend_retry", [THROTTLED if each else BUSY for each in refused])
    backend = RetryBackend(inner, RetryPolicy(attempts=1000, cap=10.0, deadline=1e9), fake.timing())
    backend.put("often", [])
    assert inner.calls == len(refused) + 1
    assert len(fake.slept) >= len(refused)
    assert sum(fake.slept) == pytest.approx(fake.now)
    forget("test_backend_retry")


def test_chance_is_not_the_training_runs() -> None:
    random.seed(1)
    before = random.getstate()
    waits = [Timing().uniform(0.0, 1.0) for _ in range(3)]
    assert len(set(waits)) == 3
    assert random.getstate() == before
