"""How long tasks may stay silent, and after how many tries they are given up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.backends import insistence
from s3dlio.engine.backends.retry import REMOTE
from s3dlio.engine.backlog import Backlog, Sent
from s3dlio.engine.contract import Location, Option
from s3dlio.engine.deadlines import MAX_SENDS, MAX_STUCK, time_limit, verdict
from s3dlio.engine.errors import DeadlineError, WorkerDiedError
from s3dlio.engine.messages import (
    Abort,
    Begin,
    Call,
    Complete,
    Encode,
    Fetch,
    Inflate,
    Populate,
    PutWhole,
    Span,
    StorePart,
    Task,
)

MIB = 1 << 20
FILE = Location("file", "/checkpoints")


def s3(**options: Option) -> Location:
    return Location("s3", "bucket", tuple(sorted(options.items())))


def az(**options: Option) -> Location:
    return Location("az", "account/box", tuple(sorted(options.items())))


def tasks(location: Location, size: int = 0) -> list[Task]:
    """One of each kind that names a location; those that move bytes move ``size``."""
    half = Span(0, 0, size // 2)
    rest = Span(0, 0, size - size // 2)
    return [
        StorePart(location, "key", "upload", 1, 0, (half, rest), False),
        PutWhole(location, "key", (half, rest), False),
        Fetch(location, "key", 0, size, "none", 1, None, None),
        Inflate(location, "key", size, 0, 1),
        Begin(location, "key", 1),
        Complete(location, "key", "upload", ()),
        Abort(location, "key", "upload"),
        Call(location, "head", ("key",)),
    ]


@pytest.mark.parametrize("location", [FILE, Location("direct", "/x"), s3(), az()])
def test_the_limit_of_silence_holds_where_nothing_takes_longer(location: Location) -> None:
    assert [time_limit(task, 300.0) for task in tasks(location)] == [300.0] * 8
    assert time_limit(Encode("zstd", 1, Span(0, 0, 1 << 30), None), 300.0) == 300.0
    assert time_limit(Populate(Span(0, 0, 1 << 30)), 300.0) == 300.0


@pytest.mark.parametrize("place", [s3, az])
def test_a_longer_insistence_has_a_longer_limit(place: Any) -> None:
    for task in tasks(place(retry_deadline=1000.0)):
        assert time_limit(task, 300.0) == 1060.0
    for task in tasks(place(retry_deadline=1000.0, connect_timeout=50.0, read_timeout=100.0)):
        assert time_limit(task, 300.0) == 1210.0
    assert time_limit(Call(place(read_timeout=600.0), "head", ("key",)), 300.0) == REMOTE.deadline + 660.0
    assert time_limit(Call(place(first_deadline=5.0), "head", ("key",)), 1.0) == REMOTE.deadline + 60.0


@pytest.mark.parametrize("location", [FILE, s3()])
def test_bytes_have_the_time_of_a_slow_link(location: Location) -> None:
    limits = [time_limit(task, 300.0) for task in tasks(location, 5000 * MIB)]
    assert limits == [5300.0] * 4 + [300.0] * 4
    assert time_limit(tasks(location, MIB // 2)[0], 0.25) >= 0.75


@given(
    silence=st.floats(0.01, 1e6),
    deadline=st.floats(0.001, 1e6),
    timeouts=st.tuples(st.floats(0.001, 1e4), st.floats(0.001, 1e4)),
    size=st.integers(0, 1 << 40),
)
def test_no_limit_ends_before_the_request_may(
    silence: float, deadline: float, timeouts: tuple[float, float], size: int
) -> None:
    location = s3(retry_deadline=deadline, connect_timeout=timeouts[0], read_timeout=timeouts[1])
    assert insistence(location) >= deadline + max(timeouts)
    for task in tasks(location, size):
        assert time_limit(task, silence) >= max(silence, insistence(location))


class Nobody:
    def on_done(self, token: object, value: object) -> None: ...

    def on_failed(self, token: object, error: object) -> None: ...


def sent(task: Task, *, sends: int, stuck: int = 0, limit: float = 300.0) -> Sent:
    backlog = Backlog()
    backlog.add(Nobody(), 0, task)
    (one,) = backlog.drain()
    one.sends, one.stuck, one.limit = sends, stuck, limit
    return one


PART = tasks(FILE)[0]
ABORT = Abort(FILE, "key", "upload")


@pytest.mark.parametrize("sends", range(MAX_SENDS))
@pytest.mark.parametrize("stuck", range(MAX_STUCK))
def test_what_may_yet_succeed_is_sent_again(sends: int, stuck: int) -> None:
    assert verdict(sent(PART, sends=sends, stuck=stuck), -9) is None


def test_a_deadly_task_is_given_up_after_five_workers() -> None:
    error = verdict(sent(PART, sends=MAX_SENDS, stuck=1), -11)
    assert isinstance(error, WorkerDiedError)
    assert str(error) == ("StorePart of key: 5 workers died on it, the last with status -11; see their output above")
    assert isinstance(verdict(sent(Populate(Span(0, 0, 1)), sends=MAX_SENDS), 1), WorkerDiedError)


@pytest.mark.parametrize("sends", [MAX_STUCK, MAX_SENDS + 1])
def test_a_hung_task_is_given_up_after_two(sends: int) -> None:
    error = verdict(sent(PART, sends=sends, stuck=2, limit=316.03125), -9)
    assert isinstance(error, DeadlineError)
    assert str(error) == "StorePart of key made no progress for 316 s, 2 times; the storage hangs"


def test_a_hung_abort_keeps_its_job_waiting_once() -> None:
    error = verdict(sent(ABORT, sends=1, stuck=1), -9)
    assert isinstance(error, DeadlineError)
    assert str(error) == "Abort of key made no progress for 300 s, once; the storage hangs"
    assert verdict(sent(ABORT, sends=1), -9) is None
