from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from s3dlio.engine import crew
from s3dlio.engine import pool as pool_module
from s3dlio.engine.arena import SharedMemory
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import (
    ConfigError,
    MemoryLimitError,
    NotFoundError,
    PoolClosedError,
    PreconditionError,
    S3dlioError,
)
from s3dlio.engine.messages import Encode, Span
from s3dlio.engine.pool import Pool, PoolConfig
from tests.engine.live import MIB, all_ready, ask, await_, in_flight, put, python, sabotage, stopped

Make = Callable[..., Pool]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Pool] = []

    def make_(**options: object) -> Pool:
        config = {"memory": 4 * MIB, "workers": 1, "slot_size": MIB, **options}
        made.append(Pool(PoolConfig(**config)))  # type: ignore[arg-type]
        return made[-1]

    yield make_
    for pool in made:
        pool.close(timeout=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slot_size": MIB + 1}, "chunk_size must be a multiple of 1 MiB"),
        ({"slot_size": 0}, "chunk_size must be"),
        ({"workers": 0}, "workers must be a positive number, not 0"),
        ({"lanes": -1}, "lanes must be"),
        ({"memory": "1G"}, "memory must be a positive number, not '1G'"),
        ({"ranks_on_host": 0}, "ranks_on_host must be"),
        ({"task_timeout": 0}, "task_timeout must be positive"),
    ],
)
def test_a_wrong_size_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PoolConfig(**options)  # type: ignore[arg-type]


def test_ranks_share_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "headroom", lambda: 80 * MIB)
    assert PoolConfig().memory_bytes() == 40 * MIB
    assert PoolConfig(ranks_on_host=4).memory_bytes() == 10 * MIB
    assert PoolConfig(memory=7 * MIB, ranks_on_host=4).memory_bytes() == 7 * MIB


def test_workers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(24)))
    assert [PoolConfig(ranks_on_host=ranks).worker_count() for ranks in (1, 8, 24)] == [4, 3, 2]
    assert PoolConfig(workers=9).worker_count() == 9


def test_too_little_memory_starts_nothing() -> None:
    with pytest.raises(MemoryLimitError, match="cannot hold one chunk"):
        Pool(PoolConfig(memory=MIB - 1, slot_size=MIB))


def test_the_small_operations(pool: Pool, tmp_path: Path) -> None:
    control = pool.control(Location("file", str(tmp_path)))
    info = control.put("a/b", [memoryview(b"123"), memoryview(b"45")])
    assert info.size == 5
    assert control.read("a/b", limit=10)[0] == b"12345"
    assert control.head("a/b") == info
    assert [found.key for found in control.list("a/")] == ["a/b"]
    with pytest.raises(PreconditionError):
        control.put("a/b", [memoryview(b"x")], if_absent=True)
    with pytest.raises(PreconditionError):
        control.put("a/b", [memoryview(b"x")], if_match="another")
    assert control.put("a/b", [memoryview(b"x")], if_match=info.etag).size == 1
    assert list(control.uploads()) == []
    control.abort("a/b", "unknown")
    control.delete("a/b")
    with pytest.raises(NotFoundError):
        control.head("a/b")


def test_limits_are_asked_once(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = Location("file", str(tmp_path))
    limits = pool.limits(location)
    monkeypatch.setattr(pool, "run", None)
    assert pool.limits(location) is limits


def test_a_task_cannot_be_cancelled_from_outside(pool: Pool, tmp_path: Path) -> None:
    with stopped(pool.supervisor):
        future = pool.run(put(tmp_path, "a", b"1"))
        assert not future.cancel()
    future.result(60)
    assert not pool.closed


def test_warming_up(make: Make) -> None:
    pool = make(memory=8 * MIB)
    assert pool.warmup(3 * MIB) == 3 * MIB
    assert pool.warmup() == 8 * MIB
    assert pool.arena.free == 8


def test_where_memory_is_short_it_makes_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(memory=8 * MIB)
    pool.warmup()

    def left() -> int:
        return 18 * MIB - os.fstat(pool.arena.fd).st_blocks * 512

    monkeypatch.setattr(pool_module, "headroom", left)
    assert pool.make_room(10 * MIB) == 10 * MIB
    assert left() == 10 * MIB
    assert pool.make_room(12 * MIB) == 12 * MIB
    assert pool.make_room(100 * MIB) == 18 * MIB


def test_a_memory_of_ones_own(pool: Pool) -> None:
    memory = SharedMemory("test", 4096)
    number = pool.attach(memory)
    pool.run(Encode("none", 0, Span(number, 0, 4096), None)).result(60)
    pool.detach(number, memory)
    with pytest.raises(S3dlioError, match="KeyError"):
        pool.run(Encode("none", 0, Span(number, 0, 4096), None)).result(60)
    assert memory.fd == -1


def test_how_it_looks(make: Make) -> None:
    pool = make()
    slot = pool.arena.lease()
    assert repr(pool) == "<Pool of 1 workers x 2 lanes, 1 MiB, 1 of 4 slots in use>"
    pool.arena.release([slot])
    pool.close()
    assert repr(pool) == "<Pool of 1 workers x 2 lanes, 1 MiB, closed>"


# closing


def test_a_closed_pool_takes_nothing(make: Make, tmp_path: Path) -> None:
    pool = make()
    pool.close()
    pool.close()
    assert pool.closed
    with pytest.raises(PoolClosedError):
        pool.run(put(tmp_path, "a", b""))
    with pytest.raises(PoolClosedError), pool.in_use():
        pass
    with pytest.raises(PoolClosedError):
        pool.warmup()
    memory = SharedMemory("test", 4096)
    pool.detach(1, memory)
    assert memory.fd == -1


def test_closing_waits_for_jobs(make: Make) -> None:
    pool = make()
    future: Future[object] = Future()
    pool.watch(future)
    closer = threading.Thread(target=pool.close)
    closer.start()
    ask(pool.supervisor, lambda: None)
    assert not pool.closed
    future.set_result(None)
    closer.join()
    assert pool.closed


def test_closing_does_not_wait_beyond_its_timeout_and_tells_every_job(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_EXIT_TIMEOUT", 0.05)
    pool = make()
    waited: Future[object] = Future()
    unwaited: Future[object] = Future()
    ended: Future[object] = Future()
    ended.set_result("fine")
    pool.watch(waited)
    pool.watch(unwaited, wait=False)
    pool.watch(ended)
    with stopped(pool.supervisor):
        task = pool.run(put(tmp_path, "a", b""))
        await_(pool.supervisor, lambda: in_flight(pool.supervisor) == 1)
        pool.close(timeout=0)
    for future in (waited, unwaited, task):
        assert isinstance(future.exception(0), PoolClosedError)
    assert ended.result() == "fine"


def test_closing_by_several_at_once(make: Make) -> None:
    pool = make()
    closers = [threading.Thread(target=pool.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    assert pool.closed


def test_nothing_is_unmapped_while_it_is_in_use(make: Make) -> None:
    pool = make()
    with pool.in_use():
        closer = threading.Thread(target=pool.close)
        closer.start()
        pool.supervisor._thread.join()
        assert pool.arena.fd >= 0
    closer.join()
    assert pool.arena.fd == -1


def test_open_streams_hold_half_at_most(make: Make) -> None:
    pool = make(memory=8 * MIB)
    pool.reserve_stream(3)
    with pytest.raises(MemoryLimitError, match="too many open streams: this one holds 2 chunks of 1048576 bytes"):
        pool.reserve_stream(2)
    pool.check_streams(5)
    with pytest.raises(MemoryLimitError, match=r"open streams hold 3 of the 8 chunks .* this save needs 6"):
        pool.check_streams(6)
    pool.release_stream(3)
    pool.check_streams(8)


# processes


@pytest.mark.slow
def test_sixty_four_descriptors_are_enough(tmp_path: Path) -> None:
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from s3dlio.engine.contract import Location
from s3dlio.engine.pool import Pool, PoolConfig
pool = Pool(PoolConfig(memory=4 << 20, workers=4, slot_size=1 << 20))
control = pool.control(Location("file", sys.argv[1]))
for number in range(100):
    control.put(str(number), [memoryview(b"x")])
print(len(list(control.list())))
pool.close()
"""
    assert python(code, str(tmp_path)) == "100"


def test_without_descriptors_it_does_not_hang() -> None:
    code = """
import os, resource
from s3dlio.engine.errors import S3dlioError
from s3dlio.engine.messages import Call
from s3dlio.engine.contract import Location
from s3dlio.engine.pool import Pool, PoolConfig
used = len(os.listdir("/proc/self/fd"))
for spare in range(6):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, 4096))
    try:
        pool = Pool(PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20))
        pool.run(Call(Location("memory", "x"), "head", ("a",))).result()
    except S3dlioError as error:
        assert "raise the limit of open files" in str(error) or "cannot start a worker" in str(error), error
        print(spare)
"""
    assert python(code).split() == list("012345")


@pytest.mark.slow
def test_a_forked_child_forgets_the_pool_and_starts_its_own(tmp_path: Path) -> None:
    code = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import PoolClosedError
from s3dlio.engine.pool import Pool, PoolConfig
location = Location("file", sys.argv[1])
pool = Pool(PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20))
pool.control(location).put("before", [memoryview(b"x")])
held = threading.Event()
def hold():
    with pool._idle, pool.arena._changed, pool.supervisor._gate:
        held.set()
        forked.wait()
forked = threading.Event()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    assert pool.closed
    assert "closed" in repr(pool)
    try:
        pool.control(location).put("never", [memoryview(b"x")])
    except PoolClosedError as error:
        assert "forked" in str(error), error
    pool.arena.wake()
    pool.close()
    own = Pool(PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20))
    own.control(location).put("child", [memoryview(b"x")])
    own.close()
    os._exit(0)
forked.set()
thread.join()
_, status = os.waitpid(child, 0)
pool.control(location).put("after", [memoryview(b"x")])
pool.close()
print(status)
"""
    assert python(code, str(tmp_path)) == "0"
    assert {path.name for path in tmp_path.iterdir()} == {"before", "child", "after"}


def test_an_interpreter_may_end_without_closing(tmp_path: Path) -> None:
    code = """
import sys
from s3dlio.engine.contract import Location
from s3dlio.engine.pool import Pool, PoolConfig
pool = Pool(PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20))
pool.control(Location("file", sys.argv[1])).put("a", [memoryview(b"x")])
print(*pool.supervisor.pids())
"""
    pid = python(code, str(tmp_path))
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_a_daemonic_process_may_have_a_pool(tmp_path: Path) -> None:
    code = """
import multiprocessing, sys
def work(folder):
    from s3dlio.engine.contract import Location
    from s3dlio.engine.pool import Pool, PoolConfig
    pool = Pool(PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20))
    pool.control(Location("file", folder)).put("a", [memoryview(b"x")])
    pool.close()
if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],), daemon=True)
    process.start()
    process.join()
    print(process.exitcode)
"""
    assert python(code, str(tmp_path)) == "0"


def test_a_worker_that_dies_loses_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "died"
    sabotage(
        monkeypatch,
        f"""
def run(self, task):
    if isinstance(task, Call) and task.method == "put" and not os.path.exists({str(flag)!r}):
        open({str(flag)!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, task)
""",
    )
    pool = make()
    pool.control(Location("file", str(tmp_path))).put("a", [memoryview(b"12345")])
    assert flag.exists()
    assert (tmp_path / "a").read_bytes() == b"12345"


@pytest.mark.slow
def test_uploads_of_a_parent_that_is_gone_are_aborted(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from s3dlio.engine.contract import Location
from s3dlio.engine.messages import Begin
from s3dlio.engine.pool import Pool, PoolConfig
pool = Pool(PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20))
location = Location("file", sys.argv[1])
pool.run(Begin(location, "a", 1 << 20)).result()
assert [found.key for found in pool.control(location).uploads()] == ["a"]
(pid,) = pool.supervisor.pids()
print(pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    pid = python(code, str(tmp_path), expect=-signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid)).wait(30)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_all_are_ready_soon(make: Make) -> None:
    pool = make(workers=2)
    await_(pool.supervisor, lambda: all_ready(pool.supervisor))
    assert len(pool.supervisor.pids()) == 2
