"""Where a load lands: how it is cut, and that nothing of it is left."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.arena import SharedMemory
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import MemoryLimitError, PoolClosedError
from s3dlio.engine.fetch import FetchJob, in_turn
from s3dlio.engine.landing import Landing, cut
from s3dlio.engine.messages import Fetch, Populate
from s3dlio.engine.pool import Pool, PoolConfig

PAGE = mmap.PAGESIZE
MIB = 1 << 20


def heard(pool: Pool) -> None:
    """Wait until the supervisor has dealt with what was posted so far."""
    event = threading.Event()
    pool.supervisor.post(event.set)
    assert event.wait(60)


@given(st.lists(st.integers(0, 9 * PAGE), min_size=1, max_size=40), st.integers(1, 9))
def test_lots_begin_where_pieces_and_pages_do(lengths: list[int], most: int) -> None:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    size = starts.pop() + 1
    found = cut(starts, size, most)
    assert found[0] == 0
    assert found == sorted(set(found))
    assert len(found) <= most
    assert all(start % PAGE == 0 and start in starts for start in found)


@pytest.mark.parametrize(
    ("starts", "size", "found"),
    [
        ([0], 100, [0]),
        ([0], 0, [0]),
        (range(0, 16 * PAGE, PAGE), 16 * PAGE, [0, 4 * PAGE, 8 * PAGE, 12 * PAGE]),
        (range(0, 2 * PAGE, PAGE), 2 * PAGE, [0, PAGE]),
        (range(0, 16 * PAGE, PAGE - 1), 16 * PAGE, [0]),
        ([0, 1, 9 * PAGE, 9 * PAGE + 1, 70 * PAGE], 100 * PAGE, [0, 70 * PAGE]),
    ],
)
def test_lots_are_of_much_the_same_size(starts: range | list[int], size: int, found: list[int]) -> None:
    assert cut(starts, size, 4) == found


@given(st.lists(st.sampled_from([None, 3, 4, 5]), max_size=30))
def test_tasks_of_all_memories_are_sent_in_turn(memories: list[int | None]) -> None:
    order = in_turn(memories)
    assert sorted(order) == list(range(len(memories)))
    rounds = [memories[: index + 1].count(memories[index]) for index in order]
    assert rounds == sorted(rounds)
    for memory in set(memories):
        mine = [index for index in order if memories[index] == memory]
        assert mine == sorted(mine)


def test_tasks_without_a_memory_keep_their_order() -> None:
    assert in_turn([None] * 5) == [0, 1, 2, 3, 4]
    assert in_turn([7, 7, 8, 8, 8]) == [0, 2, 1, 3, 4]


def test_pieces_land_one_behind_another(pool: Pool, tmp_path: Path) -> None:
    data = os.urandom(40 * PAGE + 17)
    (tmp_path / "object").write_bytes(data)
    step = 3 * PAGE
    places = range(0, len(data), step)
    with Landing(pool, places, len(data)) as landing:
        assert len(landing.files) == 8
        assert sum(size for _, size in landing.files) == len(data)
        tasks = []
        for at in places:
            length = min(step, len(data) - at)
            place = Location("file", str(tmp_path))
            tasks.append(Fetch(place, "object", at, length, "none", length, None, landing.span(at, length)))
        FetchJob(pool, tasks).future.result(60)
        assert b"".join(os.pread(fd, size, 0) for fd, size in landing.files) == data
    assert landing.files == []


def test_its_memory_goes_with_it(pool: Pool) -> None:
    with Landing(pool, [0, PAGE], 2 * PAGE) as landing:
        span = landing.span(PAGE, PAGE)
        (_, (fd, _)) = landing.files
        pool.run(Populate(span)).result(60)
        assert os.fstat(fd).st_blocks * 512 == PAGE
    heard(pool)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_lot_that_cannot_be_made_takes_the_others_along(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SharedMemory] = []

    class Third(SharedMemory):
        def __init__(self, name: str, size: int) -> None:
            if len(made) == 2:
                raise MemoryLimitError("no third")
            super().__init__(name, size)
            made.append(self)

    monkeypatch.setattr("s3dlio.engine.landing.SharedMemory", Third)
    with pytest.raises(MemoryLimitError, match="no third"):
        Landing(pool, range(0, 8 * PAGE, PAGE), 8 * PAGE)
    heard(pool)
    assert [memory.fd for memory in made] == [-1, -1]


def test_a_closed_pool_has_none() -> None:
    pool = Pool(PoolConfig(workers=1, memory=MIB, slot_size=MIB))
    pool.close()
    with pytest.raises(PoolClosedError):
        Landing(pool, [0], PAGE)
