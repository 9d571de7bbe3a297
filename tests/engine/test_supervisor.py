from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import psutil
import pytest

from s3dlio.engine import crew, deadlines
from s3dlio.engine.arena import SharedMemory
from s3dlio.engine.checksum import crc32c
from s3dlio.engine.contract import Location, ObjectInfo
from s3dlio.engine.errors import DeadlineError, NotFoundError, PoolClosedError, S3dlioError, WorkerDiedError
from s3dlio.engine.messages import Call, Encode, Encoded, Inflate, Populate, Span
from s3dlio.engine.spawn import WorkerProcess, start_worker
from s3dlio.engine.supervisor import Supervisor
from tests.engine.live import (
    Caller,
    all_ready,
    ask,
    await_,
    head,
    held,
    in_flight,
    put,
    python,
    sabotage,
    stop,
    stopped,
)

Start = Callable[..., Supervisor]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Supervisor] = []

    def start_(workers: int = 1, lanes: int = 1, *, task_timeout: float = 60.0, **options: object) -> Supervisor:
        supervisor = Supervisor(workers, lanes, task_timeout=task_timeout, **options)  # type: ignore[arg-type]
        started.append(supervisor)
        supervisor.start()
        return supervisor

    yield start_
    for supervisor in started:
        supervisor.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Supervisor]:
    """Two workers for the tests that leave them alive."""
    supervisor = Supervisor(2, 2, task_timeout=60.0)
    supervisor.start()
    await_(supervisor, lambda: all_ready(supervisor))
    yield supervisor
    supervisor.close()


def test_outcomes_reach_their_owner(shared: Supervisor, tmp_path: Path) -> None:
    caller = Caller(shared)
    caller.submit(put(tmp_path, "a", b"12345"))
    ((_, info),) = caller.wait()
    assert isinstance(info, ObjectInfo)
    assert info.size == 5
    assert (tmp_path / "a").read_bytes() == b"12345"


def test_a_failure_keeps_its_class_and_the_workers_traceback(shared: Supervisor, tmp_path: Path) -> None:
    caller = Caller(shared)
    caller.submit(head(tmp_path, "absent"))
    ((_, error),) = caller.wait()
    assert isinstance(error, NotFoundError)
    assert "absent" in str(error)
    assert "in a worker process" in str(error.__cause__)


def test_a_bug_in_a_task_is_a_failure_too(shared: Supervisor, tmp_path: Path) -> None:
    caller = Caller(shared)
    caller.submit(Populate(Span(99, 0, 1)))
    ((_, error),) = caller.wait()
    assert type(error) is S3dlioError
    assert "KeyError" in str(error)


def test_the_urgent_goes_first(start: Start, tmp_path: Path) -> None:
    supervisor = start()
    memory = SharedMemory("test", 4096)
    ask(supervisor, lambda: supervisor.attach(1, memory.fd, 4096))
    caller = Caller(supervisor)
    span = Span(1, 0, 4096)
    caller.submit(Populate(span), Encode("none", 0, span, None), put(tmp_path, "a", b""), put(tmp_path, "b", b""))
    assert [token for token, _ in caller.wait(4)] == [2, 3, 1, 0]
    memory.close()


def test_only_what_was_not_sent_can_be_withdrawn(start: Start, tmp_path: Path) -> None:
    supervisor = start()
    mine, other = Caller(supervisor), Caller(supervisor)
    with stopped(supervisor):
        mine.submit(*(put(tmp_path, str(number), b"") for number in range(3)))
        await_(supervisor, lambda: in_flight(supervisor) == 1)
        other.submit(put(tmp_path, "other", b""))
        assert ask(supervisor, lambda: sorted(map(str, supervisor.withdraw(mine)))) == ["1", "2"]
        assert ask(supervisor, lambda: supervisor.withdraw(mine)) == []
    assert [token for token, _ in mine.wait()] == [0]
    other.wait()
    assert len(mine.outcomes) == 1


def test_work_is_spread(start: Start, tmp_path: Path) -> None:
    supervisor = start(2, 2)
    caller = Caller(supervisor)
    with stopped(supervisor):
        caller.submit(*(put(tmp_path, str(number), b"") for number in range(9)))
        await_(supervisor, lambda: in_flight(supervisor) == 4)
        assert ask(supervisor, lambda: [len(worker.tasks) for worker in supervisor._crew.workers.values()]) == [2, 2]
    caller.wait(9)


# workers that die


def test_an_idle_worker_that_dies_is_replaced(start: Start, tmp_path: Path) -> None:
    supervisor = start()
    await_(supervisor, lambda: all_ready(supervisor))
    (pid,) = supervisor.pids()
    os.kill(pid, signal.SIGKILL)
    await_(supervisor, lambda: supervisor.pids() != [pid] and all_ready(supervisor))
    caller = Caller(supervisor)
    caller.submit(put(tmp_path, "a", b"1"))
    caller.wait()


@pytest.mark.slow
def test_many_deaths_of_idle_workers_are_no_reason_to_give_up(start: Start) -> None:
    supervisor = start()
    for _ in range(crew.MAX_STILLBORN + 1):
        await_(supervisor, lambda: all_ready(supervisor))
        (pid,) = supervisor.pids()
        os.kill(pid, signal.SIGKILL)
        await_(supervisor, lambda gone=pid: supervisor.pids() != [gone])  # type: ignore[misc]
    await_(supervisor, lambda: all_ready(supervisor))


def test_the_tasks_of_a_dead_worker_are_done_again(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = start(2, 2)
    caller = Caller(supervisor)
    with stopped(supervisor) as pids:
        caller.submit(*(put(tmp_path, str(number), b"x") for number in range(4)))
        await_(supervisor, lambda: in_flight(supervisor) == 4)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert sorted(str(token) for token, _ in caller.wait(4)) == ["0", "1", "2", "3"]
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2", "3"}
    assert f"worker {pids[0]} died (status -9) with 2 tasks in flight; its work is done again" in caplog.text


def test_a_task_that_kills_every_worker_fails(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = tmp_path / "tally"
    sabotage(
        monkeypatch,
        f"""
def run(self, task):
    if task.method == "head":
        open({str(tally)!r}, "a").write("x")
        os._exit(7)
    return real(self, task)
""",
    )
    monkeypatch.setattr(deadlines, "MAX_SENDS", 3)
    supervisor = start(2)
    caller = Caller(supervisor)
    caller.submit(head(tmp_path, "deadly"))
    ((_, error),) = caller.wait()
    assert isinstance(error, WorkerDiedError)
    assert "3 workers died on it, the last with status 7; see their output above" in str(error)
    assert tally.read_text() == "xxx"
    caller.submit(put(tmp_path, "a", b"1"))  # the others are not drawn in
    caller.wait(2)


def test_a_stuck_worker_is_killed_before_its_task_is_done_again(start: Start, tmp_path: Path) -> None:
    supervisor = start(2, task_timeout=0.3)
    await_(supervisor, lambda: all_ready(supervisor))
    first, _ = pids = supervisor.pids()
    caller = Caller(supervisor)
    stop(first)
    caller.submit(put(tmp_path, "0", b"x"), put(tmp_path, "1", b"x"))
    caller.wait(2)
    assert first not in supervisor.pids()
    assert pids[1] in supervisor.pids()


def test_a_task_that_always_hangs_fails(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the worker's sake and once more: then it is the storage, though fewer tries than a death has."""
    sabotage(monkeypatch, "def run(self, task):\n    signal.pause()")
    assert deadlines.MAX_STUCK == 2 < deadlines.MAX_SENDS
    supervisor = start(task_timeout=0.2)
    caller = Caller(supervisor)
    caller.submit(head(tmp_path, "a"))
    ((_, error),) = caller.wait()
    assert isinstance(error, DeadlineError)
    assert str(error) == "Call of memory made no progress for 0.2 s, 2 times; the storage hangs"


def test_a_longer_limit_of_a_task_is_waited_for(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of two tasks differ in one worker: the shorter one's end is that of the worker, and counts for it."""
    sabotage(monkeypatch, "def run(self, task):\n    signal.pause()")
    supervisor = start(lanes=2, task_timeout=0.2)
    patient, caller = Caller(supervisor), Caller(supervisor)
    patient.submit(Inflate(Location("file", str(tmp_path)), "long", 3600 << 20, 0, 1))
    caller.submit(head(tmp_path, "short"))
    assert isinstance(caller.wait()[0][1], DeadlineError)
    limits = ask(supervisor, lambda: [(sent.limit, sent.stuck) for sent in held(supervisor)])
    assert limits == [(3600.2, 0)]
    assert patient.outcomes == []


def test_a_worker_that_hangs_before_its_first_word_blames_no_task(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, "signal.pause()")
    monkeypatch.setattr(crew, "START", 0.2)
    supervisor = start(task_timeout=0.01)
    caller = Caller(supervisor)
    caller.submit(head(tmp_path, "a"))
    ((_, error),) = caller.wait()
    assert isinstance(error, WorkerDiedError)
    assert "no worker could be started, 3 tries failed: the last one ended with status -9" in str(error)


class Quitting(Caller):
    """An owner that sends nothing more once a task of its has failed."""

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        self.withdrawn = self._supervisor.withdraw(self)
        super().on_failed(token, error)


def test_an_owner_that_gives_up_gets_back_what_died_along(start: Start, tmp_path: Path) -> None:
    supervisor = start(lanes=2)
    owner = Quitting(supervisor)
    with stopped(supervisor) as (pid,):
        owner.submit(put(tmp_path, "first", b""), put(tmp_path, "second", b""))
        await_(supervisor, lambda: in_flight(supervisor) == 2)
        ask(supervisor, lambda: setattr(held(supervisor)[0], "sends", deadlines.MAX_SENDS))  # as after four deaths
        os.kill(pid, signal.SIGKILL)
        ((token, error),) = owner.wait()
    assert token == 0
    assert isinstance(error, WorkerDiedError)
    assert owner.withdrawn == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_stopped_reading_is_replaced(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_SEND_TIMEOUT", 0.5)  # beyond the start of the next worker
    supervisor = start()
    await_(supervisor, lambda: all_ready(supervisor))
    (pid,) = supervisor.pids()
    stop(pid)
    caller = Caller(supervisor)
    caller.submit(put(tmp_path, "a", bytes(4 << 20)))
    caller.wait()
    assert supervisor.pids() != [pid]
    assert (tmp_path / "a").stat().st_size == 4 << 20


def test_memories_are_known_to_workers_to_come(start: Start) -> None:
    supervisor = start()
    memory = SharedMemory("test", 1 << 16)
    ask(supervisor, lambda: supervisor.attach(7, memory.fd, 1 << 16))
    await_(supervisor, lambda: all_ready(supervisor))
    (pid,) = supervisor.pids()
    os.kill(pid, signal.SIGKILL)
    os.pwrite(memory.fd, b"hello", 100)
    caller = Caller(supervisor)
    caller.submit(Encode("none", 0, Span(7, 100, 5), None))
    ((_, result),) = caller.wait()
    assert isinstance(result, Encoded)
    assert result.crc == crc32c(b"hello")
    ask(supervisor, lambda: supervisor.detach(7))
    memory.close()
    caller.submit(Encode("none", 0, Span(7, 100, 5), None))
    assert "KeyError" in str(caller.wait(2)[1][1])


# workers that cannot start


def test_a_python_that_does_not_exist(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    supervisor = start(2)
    caller = Caller(supervisor)
    caller.submit(head(tmp_path, "a"))
    ((_, error),) = caller.wait()
    assert isinstance(error, WorkerDiedError)
    assert "no worker could be started, 3 tries failed: cannot start a worker" in str(error)
    assert "/nonexistent/python" in str(error)
    caller.submit(head(tmp_path, "a"))
    assert isinstance(caller.wait(2)[1][1], WorkerDiedError)


@pytest.mark.parametrize("executable", ["", None])
def test_an_embedded_python_is_told(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(S3dlioError, match=r"sys\.executable is not set"):
        start_worker(1)


@pytest.mark.slow
def test_workers_that_die_at_birth(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "os._exit(3)")
    supervisor = start(2)
    caller = Caller(supervisor)
    caller.submit(head(tmp_path, "a"))
    ((_, error),) = caller.wait()
    assert isinstance(error, WorkerDiedError)
    assert "no worker could be started" in str(error)
    assert "status 3" in str(error)


def test_it_makes_do_with_the_workers_that_start(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def start_one(lanes: int) -> WorkerProcess:
        calls.append(lanes)
        if len(calls) > 1:
            raise S3dlioError("cannot start a worker: no more processes")
        return start_worker(lanes)

    monkeypatch.setattr(crew, "start_worker", start_one)
    supervisor = start(4)
    caller = Caller(supervisor)
    caller.submit(*(put(tmp_path, str(number), b"") for number in range(4)))
    caller.wait(4)
    assert len(supervisor.pids()) == 1
    assert "going on with 1 workers: no more can be started: cannot start a worker: no more processes" in caplog.text


@pytest.mark.slow
def test_a_worker_that_cannot_attach_a_memory_does_not_come_back_for_ever(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(
        monkeypatch,
        """
from s3dlio.engine.attached import Memories
def attach(self, number, fd, size):
    raise OSError(12, "Cannot allocate memory")
Memories.attach = attach
""",
    )
    supervisor = start()
    memory = SharedMemory("test", 4096)
    supervisor.post(lambda: supervisor.attach(1, memory.fd, 4096))
    caller = Caller(supervisor)
    await_(supervisor, lambda: supervisor._crew.broken is not None)
    caller.submit(head(tmp_path, "a"))
    assert "status 1" in str(caller.wait()[0][1])
    memory.close()


# signals


def test_workers_leave_signals_for_the_group_to_the_parent(shared: Supervisor, tmp_path: Path) -> None:
    await_(shared, lambda: all_ready(shared))
    pids = shared.pids()
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    caller = Caller(shared)
    caller.submit(*(put(tmp_path, str(number), b"") for number in range(8)))
    caller.wait(8)
    assert shared.pids() == pids


def test_so_do_workers_that_are_only_starting(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, f"open({str(tmp_path / 'status')!r}, 'w').write(open('/proc/self/status').read())")
    supervisor = start()
    await_(supervisor, lambda: all_ready(supervisor))
    status = dict(line.split(":\t", 1) for line in (tmp_path / "status").read_text().splitlines())
    for number in (signal.SIGINT, signal.SIGTERM):
        assert int(status["SigBlk"], 16) >> (number - 1) & 1


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed_though_its_forked_child_lives() -> None:
    code = """
import os, signal
from s3dlio.engine.pool import Pool, PoolConfig
pool = Pool(PoolConfig(memory=4 << 20, workers=2, slot_size=1 << 20))
pool.warmup()
child = os.fork()
if child == 0:  # like a DataLoader's worker
    os.closerange(0, 3)
    while True:
        signal.pause()
print(child, *pool.supervisor.pids(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    child, *workers = map(int, python(code, expect=-signal.SIGKILL).split())
    try:
        assert len(workers) == 2
        for pid in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).wait(30)
        memory = Path(f"/proc/{child}/maps").read_text()
        descriptors = [os.readlink(path) for path in Path(f"/proc/{child}/fd").iterdir()]
        assert "s3dlio-arena" not in memory + " ".join(descriptors)
    finally:
        os.kill(child, signal.SIGKILL)


# logging


def test_workers_logs_arrive(shared: Supervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caller = Caller(shared)
    caller.submit(put(tmp_path, "quiet", b""))
    caller.wait()
    with caplog.at_level(logging.DEBUG, "s3dlio"):
        caller.submit(put(tmp_path, "loud", b""))
        caller.wait(2)
        ask(shared, lambda: None)
    caller.submit(put(tmp_path, "quiet again", b""))
    caller.wait(3)
    ask(shared, lambda: None)
    records = [record for record in caplog.records if record.name == "s3dlio.engine.backend"]
    assert any("loud" in record.getMessage() for record in records)
    assert not any("quiet" in record.getMessage() for record in records)
    assert all(record.levelno == logging.DEBUG for record in records)


# the end


def test_nothing_is_taken_after_the_end(start: Start, tmp_path: Path) -> None:
    supervisor = start()
    supervisor.close()
    with pytest.raises(PoolClosedError, match="closed"):
        Caller(supervisor).submit(head(tmp_path, "a"))
    supervisor.close()
    supervisor._wake()  # as a late post would


def test_the_end_fails_what_is_in_flight_or_waits_and_kills_who_does_not_go(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_EXIT_TIMEOUT", 0.05)
    ends: list[S3dlioError] = []
    supervisor = start(on_end=ends.append)
    caller = Caller(supervisor)
    with stopped(supervisor):
        caller.submit(*(put(tmp_path, str(number), b"") for number in range(3)))
        await_(supervisor, lambda: in_flight(supervisor) == 1)
        supervisor.close()
    assert [token for token, _ in caller.outcomes] == [0, 1, 2]
    assert all(isinstance(error, PoolClosedError) for _, error in caller.outcomes)
    assert len(ends) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_posted_while_it_ends_is_answered(start: Start, tmp_path: Path) -> None:
    """Whatever the moment, ``post`` either raises or runs."""
    supervisor = start()
    lost: list[int] = []
    begun = threading.Event()

    def post_until_closed() -> None:
        count = 0
        while True:
            ran = threading.Event()
            begun.set()
            try:
                supervisor.post(ran.set)
            except PoolClosedError:
                return
            count += 1
            if not ran.wait(30):
                lost.append(count)

    threads = [threading.Thread(target=post_until_closed) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait()
    supervisor.close()
    for thread in threads:
        thread.join()
    assert lost == []


class Broken(Caller):
    """An owner with a bug."""

    def on_done(self, token: object, value: object) -> None:
        raise ZeroDivisionError("a bug of ours")


def test_a_bug_in_an_owner_ends_all_and_nobody_waits_for_ever(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[S3dlioError] = []
    supervisor = start(on_end=ends.append)
    broken, caller = Broken(supervisor), Caller(supervisor)
    with stopped(supervisor):
        broken.submit(put(tmp_path, "a", b""), put(tmp_path, "b", b""))
        caller.submit(put(tmp_path, "c", b""))
    ((_, error),) = caller.wait()
    assert "internal error in the supervisor: ZeroDivisionError: a bug of ours" in str(error)
    supervisor._thread.join()
    assert ends == [error]
    assert "the supervisor failed" in caplog.text
    with pytest.raises(PoolClosedError, match="a bug of ours"):
        caller.submit(put(tmp_path, "d", b""))


def test_a_bug_in_an_event_ends_all(start: Start, tmp_path: Path) -> None:
    supervisor = start()
    caller = Caller(supervisor)

    def event() -> None:
        supervisor.submit(caller, 0, put(tmp_path, "a", b""))
        raise ZeroDivisionError("a bug of ours")

    supervisor.post(event)
    ((_, error),) = caller.wait()
    assert "a bug of ours" in str(error)


def test_without_descriptors_it_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", refuse)
    with pytest.raises(S3dlioError, match="raise the limit of open files"):
        Supervisor(1, 1, task_timeout=1)


def test_without_descriptors_no_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("socket.socketpair", refuse)
    with pytest.raises(S3dlioError, match="raise the limit of open files"):
        start_worker(1)


def test_a_location_is_opened_in_the_worker_only(shared: Supervisor, tmp_path: Path) -> None:
    caller = Caller(shared)
    caller.submit(Call(Location("nonsense", "x"), "head", ("a",)))
    assert "unknown scheme 'nonsense'" in str(caller.wait()[0][1])
