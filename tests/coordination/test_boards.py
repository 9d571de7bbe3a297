"""Each kind of board under its own launcher, in processes of their own: several topics at once, from threads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from s3dlio.coordination import store_board
from s3dlio.coordination.boards import Seat, StoreCoordinator, seat_of
from s3dlio.coordination.council import Council
from s3dlio.coordination.store_board import COORDINATION, StoreBoard
from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.contract import ObjectInfo
from s3dlio.engine.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RANKS = 3


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def member(kind: str) -> list[str]:
    return [sys.executable, "-m", "tests.coordination.member", kind]


def processes(kind: str) -> list[tuple[list[str], dict[str, str]]]:
    """Command and environment of each process to start."""
    port = str(free_port())
    if kind == "mpi":
        return [([str(Path(sys.executable).with_name("mpiexec")), "-n", str(RANKS), *member(kind)], {})]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "COORDINATOR": f"127.0.0.1:{port}"}
    return [
        (member(kind), {**place, "RANK": str(rank), "WORLD_SIZE": str(RANKS), "JAX_PLATFORMS": "cpu"})
        for rank in range(RANKS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "jax", "mpi"])
def test_a_council_over_what_the_job_runs_on(kind: str) -> None:
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command, env in processes(kind)
    ]
    try:
        told = "".join(process.communicate(timeout=90)[0] for process in started)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * len(started), told
    for rank in range(RANKS):
        assert f"rank {rank} of {RANKS} has heard all" in told


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    yield MemoryBackend("coordination")
    forget("coordination")


def test_ranks_that_share_only_the_store(backend: MemoryBackend) -> None:
    def attend(rank: int) -> bytes:
        seat = Seat(council_of(backend, rank))
        topic = seat.topic("save")
        seat.council.say(topic, bytes(3 << 20) + b"from %d" % rank)
        if seat.council.presides:
            words = dict(seat.council.gather(topic, range(RANKS)))
            seat.council.announce(topic, b" ".join(word[3 << 20 :] for word in words.values()))
        return seat.council.hear(topic)

    with ThreadPoolExecutor(RANKS) as pool:
        assert list(pool.map(attend, range(RANKS))) == [b"from 0 from 1 from 2"] * RANKS
    left = [item.key for item in backend.list(COORDINATION)]
    assert left == [f"{COORDINATION}run%201/store/save-0/all"]


def council_of(backend: MemoryBackend, rank: int) -> Council:
    return Council(StoreBoard(backend, "run 1", rank, RANKS), "store", 10.0)


@pytest.mark.parametrize("run", [StoreCoordinator("", 0, 2), StoreCoordinator("a", 2, 2), StoreCoordinator("a", -1, 2)])
def test_a_run_needs_a_name_and_a_rank(backend: MemoryBackend, run: StoreCoordinator) -> None:
    with pytest.raises(ConfigError, match="a run needs a name and a rank below"):
        seat_of(run, "memory://x", lambda: backend, 1.0)


def test_a_later_store_of_the_process_goes_on_with_the_topics(backend: MemoryBackend) -> None:
    run = StoreCoordinator("again", 0, 2)
    first = seat_of(run, "memory://coordination", lambda: backend, 1.0)
    assert first is not None
    assert [first.topic("save"), first.topic("load")] == ["save-0", "load-1"]
    second = seat_of(run, "memory://coordination", lambda: backend, 1.0)
    assert second is not None
    assert second.topic("save") == "save-2"


@pytest.mark.parametrize("coordinator", ["mpi", "", 1])
def test_what_is_no_coordinator_is_refused(backend: MemoryBackend, coordinator: str) -> None:
    with pytest.raises(ConfigError, match="coordinator must be 'auto', None or a StoreCoordinator"):
        seat_of(coordinator, "memory://coordination", lambda: backend, 1.0)


def test_a_process_of_its_own_needs_no_council(backend: MemoryBackend) -> None:
    assert seat_of("auto", "memory://coordination", lambda: backend, 1.0) is None


def test_the_patience_is_that_of_the_store_that_asks(backend: MemoryBackend) -> None:
    run = StoreCoordinator("patience", 0, 2)
    for timeout in (5.0, 1.0):
        seat = seat_of(run, "memory://coordination", lambda: backend, timeout)
        assert seat is not None
        assert seat.council.timeout == timeout


def test_who_waits_looks_ever_more_seldom(backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look costs a request, and a council asks once a second whether its wait is still wanted."""
    board = StoreBoard(backend, "run", 0, 2)
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(store_board, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    looks: list[float] = []
    plain = backend.read

    def read(key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        looks.append(now)
        return plain(key, limit=limit)

    monkeypatch.setattr(backend, "read", read)
    for _ in range(60):
        assert board.get("word", 1.0) is None
    assert len([look for look in looks if look < 1]) > 5
    assert len([look for look in looks if look > 50]) <= 3 * 10
    board.put("word", b"said")
    assert board.get("word", 1.0) == b"said"
    before = len(looks)
    assert board.get("next", 1.0) is None
    assert len(looks) - before > 5, "another word is looked for eagerly"
