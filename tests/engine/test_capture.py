"""Captures: bytes in slots before anybody knows where they go, squeezed, handed to a job, or given back."""

from __future__ import annotations

import gc
import random
import threading
from pathlib import Path

import pytest

from s3dlio.engine.actions import StoredObject
from s3dlio.engine.arena import SharedMemory
from s3dlio.engine.capture import Capture, CapturedJob
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import ConfigError, MemoryLimitError, PoolClosedError
from s3dlio.engine.fetch import FetchJob
from s3dlio.engine.job import Coding, SaveJob
from s3dlio.engine.messages import Fetch, Span
from s3dlio.engine.pool import Pool, PoolConfig
from s3dlio.engine.source import BufferSource
from tests.engine.live import MIB, all_free, await_

CODECS = ["none", "zstd", "zstd-grouped"]


def capture_of(pool: Pool, folder: Path, data: bytes, codec: str = "none", whole_below: int = 0) -> Capture:
    capture = Capture(pool, Location("file", str(folder)), len(data), codec, whole_below)
    capture.fill(BufferSource(memoryview(data)))
    return capture


def hand_over(capture: Capture, folder: Path, codec: str = "none", whole_below: int = 0) -> StoredObject:
    coding = Coding(codec, level=1, runs=lambda start, stop: ((0, stop - start - (stop - start) % 4, 4),))
    job = CapturedJob(capture, Location("file", str(folder)), "object", coding=coding, whole_below=whole_below)
    job.hand_over()
    return job.future.result(timeout=60)


def read_back(pool: Pool, folder: Path, stored: StoredObject) -> bytes:
    memory = SharedMemory("test", stored.raw_size)
    number = pool.attach(memory)
    tasks = [
        Fetch(
            Location("file", str(folder)), "object", chunk.stored_offset, chunk.stored_length, chunk.codec,
            chunk.raw_length, chunk.crc, Span(number, chunk.raw_offset, chunk.raw_length),
        )
        for chunk in stored.chunks
    ]  # fmt: skip
    FetchJob(pool, tasks).future.result(timeout=60)
    with open(f"/proc/self/fd/{memory.fd}", "rb") as file:
        data = file.read()
    pool.detach(number, memory)
    return data


def smooth(size: int, seed: int = 1) -> bytes:
    """Bytes that shrink, and tell where they are."""
    chance = random.Random(seed)
    return b"".join(chance.randbytes(8) * 8 for _ in range(size // 64 + 1))[:size]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("whole_below", [0, 100 * MIB])
def test_what_is_captured_is_stored(pool: Pool, tmp_path: Path, codec: str, whole_below: int) -> None:
    data = smooth(4 * MIB + 12345)
    stored = hand_over(capture_of(pool, tmp_path, data, codec, whole_below), tmp_path, codec, whole_below)
    assert read_back(pool, tmp_path, stored) == data
    assert all_free(pool)


@pytest.mark.parametrize("codec", CODECS)
def test_gaps_are_closed_across_slots(pool: Pool, tmp_path: Path, codec: str) -> None:
    data = smooth(4 * MIB + 777)
    capture = capture_of(pool, tmp_path, data, codec)
    head = b"head" * 5
    kept = [(100, 300_000), (1_000_000, 2_500_000), (4_000_001, 4 * MIB + 777)]
    moves, at = [], len(head)
    for start, stop in kept:
        moves.append((at, start, stop - start))
        at += stop - start
    before = pool.arena.free
    capture.squeeze(moves, [head[:7], head[7:]], at)
    assert pool.arena.free > before, "the slots behind the end come free at once"
    stored = hand_over(capture, tmp_path, codec)
    assert read_back(pool, tmp_path, stored) == head + b"".join(data[start:stop] for start, stop in kept)
    assert all_free(pool)


def test_what_is_not_taken_goes_back(pool: Pool, tmp_path: Path) -> None:
    capture = capture_of(pool, tmp_path, smooth(3 * MIB))
    assert pool.arena.free == pool.arena.slots - 3
    capture.release()
    capture.release()
    assert pool.arena.free == pool.arena.slots


def test_what_is_collected_goes_back(pool: Pool, tmp_path: Path) -> None:
    capture = capture_of(pool, tmp_path, smooth(3 * MIB), "zstd")
    assert pool.arena.free < pool.arena.slots - 3
    del capture
    gc.collect()
    assert all_free(pool)


def test_an_error_of_the_source_gives_the_slots_back(pool: Pool, tmp_path: Path) -> None:
    class Broken(BufferSource):
        def fill(self, address: int, start: int, stop: int) -> None:
            raise OSError("the source is broken")

    capture = Capture(pool, Location("file", str(tmp_path)), 3 * MIB, "none", 0)
    with pytest.raises(OSError, match="the source is broken"):
        capture.fill(Broken(memoryview(bytes(3 * MIB))))
    assert all_free(pool)


@pytest.mark.parametrize("codec", CODECS)
def test_more_than_the_arena_is_refused(pool: Pool, tmp_path: Path, codec: str) -> None:
    with pytest.raises(MemoryLimitError, match="raise memory="):
        Capture(pool, Location("file", str(tmp_path)), pool.arena.size - 1, codec, 0)
    assert all_free(pool)


def test_the_hand_over_needs_no_turn(pool: Pool, tmp_path: Path) -> None:
    """Whoever waits for slots has the turn, and the hand-over is what frees them."""
    data = smooth(11 * MIB)
    first = capture_of(pool, tmp_path, data)
    with pool.turn:
        stored = hand_over(first, tmp_path)
    assert read_back(pool, tmp_path, stored) == data


def test_a_capture_waits_for_the_slots_of_saves_in_flight(pool: Pool, tmp_path: Path) -> None:
    slots = [pool.arena.lease() for _ in range(11)]
    second: list[Capture] = []
    thread = threading.Thread(target=lambda: second.append(capture_of(pool, tmp_path, smooth(2 * MIB))))
    thread.start()
    await_(pool.supervisor, pool.turn.locked)
    assert not second
    pool.arena.release(slots)
    thread.join(timeout=60)
    second[0].release()


def test_a_capture_does_not_wait_for_another(pool: Pool, tmp_path: Path) -> None:
    """That one may never be taken: of a save that failed, whose error somebody keeps."""
    first = capture_of(pool, tmp_path, smooth(8 * MIB))
    with pytest.raises(MemoryLimitError, match="8 are: raise memory="):
        capture_of(pool, tmp_path, smooth(4 * MIB))
    first.release()
    capture_of(pool, tmp_path, smooth(4 * MIB)).release()


def test_another_save_goes_through_beside_a_capture(pool: Pool, tmp_path: Path) -> None:
    capture = capture_of(pool, tmp_path, smooth(11 * MIB))
    job = SaveJob(pool, Location("file", str(tmp_path)), "other", total=9 * MIB, coding=Coding(), whole_below=0)
    job.stage(BufferSource(memoryview(smooth(9 * MIB))))
    assert job.future.result(timeout=60).raw_size == 9 * MIB
    capture.release()


def test_chunks_of_another_size_are_refused(pool: Pool, tmp_path: Path) -> None:
    capture = capture_of(pool, tmp_path, smooth(2 * MIB))
    with pytest.raises(ConfigError, match="of the scheme that it saves to"):
        hand_over(capture, tmp_path, "zstd")
    capture.release()


def test_a_closed_pool_takes_no_capture_and_stores_none(tmp_path: Path) -> None:
    pool = Pool(PoolConfig(memory=4 * MIB, workers=1, slot_size=MIB))
    capture = capture_of(pool, tmp_path, smooth(2 * MIB))
    job = CapturedJob(capture, Location("file", str(tmp_path)), "object", coding=Coding(), whole_below=0)
    pool.close(timeout=0)
    job.hand_over()
    with pytest.raises(PoolClosedError):
        job.future.result(timeout=60)
    with pytest.raises(PoolClosedError):
        Capture(pool, Location("file", str(tmp_path)), MIB, "none", 0)
    capture.release()


def test_a_failing_store_fails_the_job_and_frees_the_slots(pool: Pool, tmp_path: Path) -> None:
    capture = capture_of(pool, tmp_path, smooth(3 * MIB))
    (tmp_path / "file").write_bytes(b"")
    job = CapturedJob(capture, Location("file", str(tmp_path / "file")), "object", coding=Coding(), whole_below=0)
    job.hand_over()
    assert job.future.exception(timeout=60) is not None
    assert all_free(pool)
