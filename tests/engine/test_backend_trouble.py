"""What the retries tell of a store in trouble, and how long they insist on one that has never answered."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.backends.pace import Pace
from s3dlio.engine.backends.retry import REMOTE, RetryBackend, RetryPolicy
from s3dlio.engine.errors import BrokenReadError, NotFoundError, StorageError
from tests.engine.test_backend_retry import BUSY, THROTTLED, FakeTime, Flaky, flaky


@pytest.fixture(autouse=True)
def store() -> Iterator[MemoryBackend]:
    backend = MemoryBackend("test_backend_retry")
    backend.put("key", [memoryview(b"body")])
    yield backend
    forget("test_backend_retry")


def fails(backend: RetryBackend) -> None:
    with pytest.raises(StorageError):
        backend.head("key")


def test_a_request_that_fails_for_a_while_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeTime(now=100.0)
    backend = RetryBackend(flaky(1000), REMOTE, fake.timing())
    fails(backend)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("s3dlio.engine", logging.WARNING)
    assert record.getMessage() == (
        "head of 'key' failed 4 times in 3.9 s, the last time with: slow down; it is tried again for up to 116 s "
        "(a store's trouble is told once)"
    )
    fails(backend)  # the same stretch of trouble
    assert len(caplog.records) == 1
    fake.now += 61.0
    fails(backend)
    assert len(caplog.records) == 2


def test_stores_of_one_pace_have_one_trouble(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeTime(now=100.0)
    shared = Pace(timing=fake.timing())
    for _ in range(2):
        fails(RetryBackend(flaky(1000), REMOTE, fake.timing(), shared))
    assert len(caplog.records) == 1
    fails(RetryBackend(flaky(1000), REMOTE, fake.timing()))
    assert len(caplog.records) == 2


@pytest.mark.parametrize("failures", [3, 1000])
def test_what_mends_or_ends_before_is_not_told(failures: int, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeTime(now=100.0)
    backend = RetryBackend(flaky(failures), RetryPolicy(attempts=1000, deadline=4.9), fake.timing())
    if failures == 3:
        backend.head("key")
    else:
        fails(backend)
    assert caplog.records == []


def test_an_attempt_that_takes_long_to_fail_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """As a connection that nobody refuses: its time-out alone is longer."""
    fake = FakeTime(now=100.0)

    class Slow(Flaky):
        def _fail(self) -> None:
            fake.now += 20.0
            super()._fail()

    RetryBackend(Slow("test_backend_retry", [BUSY]), REMOTE, fake.timing()).head("key")
    (record,) = caplog.records
    assert record.getMessage().startswith("head of 'key' failed 1 times in 20.0 s")


# the first answer

HURRY = RetryPolicy(attempts=1000, cap=10.0, deadline=120.0, first_deadline=15.0)


def spent(backend: RetryBackend, fake: FakeTime) -> float:
    begun = fake.now
    fails(backend)
    return fake.now - begun


def test_a_store_that_never_answered_is_given_up_earlier() -> None:
    fake = FakeTime(now=100.0, uniform=lambda low, high: (low + high) / 2)
    backend = RetryBackend(flaky(1000), HURRY, fake.timing())
    assert 5.0 < spent(backend, fake) <= 15.0
    assert 5.0 < spent(backend, fake) <= 15.0
    assert spent(RetryBackend(flaky(1000), RetryPolicy(1000, 0.1, 1.0, 5.0, 15.0), fake.timing()), fake) <= 5.0


@pytest.mark.parametrize(
    "answer",
    [None, NotFoundError("no"), THROTTLED, BrokenReadError("cut", reached=1)],
    ids=lambda each: type(each).__name__,
)
def test_one_that_has_is_not(answer: Exception | None) -> None:
    """Success, a refusal and part of an answer are answers; one request's counts for all of the pace."""
    fake = FakeTime(now=100.0)
    shared = Pace(timing=fake.timing())
    first = RetryBackend(flaky(int(answer is not None), answer or BUSY), HURRY, fake.timing(), shared)
    try:
        first.get_range("key", 0, memoryview(bytearray(4)))
    except NotFoundError:
        pass
    fake.now += 100.0
    assert spent(RetryBackend(flaky(1000), HURRY, fake.timing(), shared), fake) > 100.0


def test_a_refusal_to_the_first_request_gives_it_the_whole_time() -> None:
    fake = FakeTime(now=100.0)
    assert spent(RetryBackend(flaky(1000, THROTTLED), HURRY, fake.timing()), fake) > 60.0


@pytest.mark.parametrize("call", ["list", "uploads", "head", "put"])
def test_every_call_notices_an_answer(store: MemoryBackend, call: str) -> None:
    store.begin("key")
    shared = Pace()
    backend = RetryBackend(flaky(0), HURRY, pace=shared)
    arguments: tuple[object, ...] = {"head": ("key",), "put": ("key", [])}.get(call, ())
    found = getattr(backend, call)(*arguments)
    if call in ("list", "uploads"):
        assert next(iter(found)).key == "key"
    assert shared.answered
