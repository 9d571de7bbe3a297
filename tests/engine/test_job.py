"""Saves and loads of one object through real workers, onto files."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3dlio.engine import crew, deadlines
from s3dlio.engine.actions import StoredObject
from s3dlio.engine.checksum import crc32c
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import (
    CancelledError,
    CorruptError,
    MemoryLimitError,
    NotFoundError,
    PoolClosedError,
    S3dlioError,
    StorageError,
    WorkerDiedError,
)
from s3dlio.engine.fetch import FetchJob, fetch_through_slots
from s3dlio.engine.job import Coding, SaveJob
from s3dlio.engine.messages import Fetch, Runs
from s3dlio.engine.pool import Pool, PoolConfig
from s3dlio.engine.source import BufferSource, buffer_address
from s3dlio.engine.stream import StreamJob
from tests.engine.live import MIB, all_free, ask, await_, in_flight, python, sabotage, stopped

Make = Callable[..., Pool]
CODECS = ["none", "zstd", "zstd-grouped"]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Pool] = []

    def make_(**options: object) -> Pool:
        config = {"memory": 8 * MIB, "workers": 2, "slot_size": MIB, **options}
        made.append(Pool(PoolConfig(**config)))  # type: ignore[arg-type]
        return made[-1]

    yield make_
    for pool in made:
        pool.close(timeout=0)


def payload(size: int, seed: int = 0) -> bytes:
    """Bytes of which every second chunk shrinks."""
    parts: list[bytes] = []
    while sum(len(part) for part in parts) < size:
        parts += [random.Random(seed).randbytes(MIB), bytes(MIB)]
        seed += 1
    return b"".join(parts)[:size]


def save(
    pool: Pool, folder: Path, key: str, data: bytes, *, codec: str = "none", whole_below: int = 0, quiet: bool = False
) -> SaveJob:
    """A staged job."""
    job = new_job(pool, folder, key, len(data), codec=codec, whole_below=whole_below)
    assert job.stage(BufferSource(memoryview(data)), quiet=quiet)
    return job


def new_job(pool: Pool, folder: Path, key: str, total: int, *, codec: str = "none", whole_below: int = 0) -> SaveJob:
    location = Location("file", str(folder))
    coding = Coding(codec, level=1, runs=lambda start, stop: ((0, stop - start - (stop - start) % 4, 4),))
    return SaveJob(pool, location, key, total=total, coding=coding, whole_below=whole_below)


def fetches(folder: Path, stored: StoredObject) -> list[Fetch]:
    location = Location("file", str(folder))
    return [
        Fetch(
            location, stored.info.key, chunk.stored_offset, chunk.stored_length, chunk.codec, chunk.raw_length,
            chunk.crc, None,
        )
        for chunk in stored.chunks
    ]  # fmt: skip


def load(pool: Pool, folder: Path, stored: StoredObject) -> bytes:
    """The object's raw bytes, read through slots."""
    data = bytearray(stored.raw_size)
    address = buffer_address(memoryview(data))
    items = [
        (task, lambda source, to=address + chunk.raw_offset, size=chunk.raw_length: move(to, source, size))
        for task, chunk in zip(fetches(folder, stored), stored.chunks, strict=True)
    ]
    fetch_through_slots(pool, items)
    return bytes(data)


def move(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)


class Gate:
    """A source that stops in the middle, at chunk ``at``, until it is let on."""

    threads = 1

    def __init__(self, data: bytes, at: int = 2) -> None:
        self._source = BufferSource(memoryview(data))
        self._at = at
        self.total = len(data)
        self.reached = threading.Event()
        self.open = threading.Event()

    def fill(self, address: int, start: int, stop: int) -> None:
        if start >= self._at * MIB:
            self.reached.set()
            assert self.open.wait(60)
        self._source.fill(address, start, stop)


def staging(job: SaveJob, source: Gate) -> tuple[threading.Thread, list[object]]:
    """A thread that stages, once it is in the middle."""
    outcome: list[object] = []

    def stage() -> None:
        try:
            outcome.append(job.stage(source))
        except S3dlioError as error:
            outcome.append(error)

    thread = threading.Thread(target=stage)
    thread.start()
    assert source.reached.wait(60)
    return thread, outcome


# what is saved is loaded


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 1, 4097, MIB, MIB + 1, 5 * MIB + 13, 20 * MIB])
@pytest.mark.parametrize("whole_below", [0, 2 * MIB])
def test_round_trip(pool: Pool, tmp_path: Path, codec: str, size: int, whole_below: int) -> None:
    data = payload(size)
    job = save(pool, tmp_path, "a/b", data, codec=codec, whole_below=whole_below)
    stored = job.future.result(60)
    assert (stored.raw_size, stored.crc) == (size, crc32c(data))
    assert stored.info.size == (tmp_path / "a" / "b").stat().st_size
    assert {chunk.codec for chunk in stored.chunks} <= {codec, "none"}
    if codec == "none":
        assert (tmp_path / "a" / "b").read_bytes() == data
    elif size > 4 * MIB:
        assert stored.info.size < size * 0.7
    assert load(pool, tmp_path, stored) == data
    progress = job.progress()
    assert (progress.staged, progress.total, progress.phase) == (size, size, "stored")
    assert progress.stored == stored.info.size
    assert progress.encoded == (0 if codec == "none" else size)


def test_a_batch_of_fetches_verifies(pool: Pool, tmp_path: Path) -> None:
    data = payload(5 * MIB)
    stored = save(pool, tmp_path, "a", data, codec="zstd").future.result(60)
    seen: list[int] = []
    crcs = FetchJob(pool, fetches(tmp_path, stored), seen.append).future.result(60)
    assert crcs == [chunk.crc for chunk in stored.chunks]
    assert sum(seen) == len(data)
    assert FetchJob(pool, []).future.result(60) == []


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sizes", [[], [0], [3 * MIB + 5], [1, MIB - 1, 1], [700_000] * 9])
def test_streams(pool: Pool, tmp_path: Path, codec: str, sizes: list[int]) -> None:
    data = payload(sum(sizes))
    job = StreamJob(pool, Location("file", str(tmp_path)), "a", coding=Coding(codec, 1))
    start = 0
    for size in sizes:
        job.feed(memoryview(data)[start : start + size])
        start += size
    job.end()
    stored = job.future.result(60)
    assert load(pool, tmp_path, stored) == data
    assert job.progress().total == len(data)


def test_views_of_other_formats_count_in_bytes(pool: Pool, tmp_path: Path) -> None:
    job = StreamJob(pool, Location("file", str(tmp_path)), "a", coding=Coding())
    job.feed(memoryview(bytes(range(64))).cast("Q"))
    job.end()
    job.future.result(60)
    assert (tmp_path / "a").read_bytes() == bytes(range(64))


def test_a_quiet_save_sends_nothing_until_all_is_staged(pool: Pool, tmp_path: Path) -> None:
    data = payload(4 * MIB)
    job, source = new_job(pool, tmp_path, "a", len(data)), Gate(data, at=3)
    thread = threading.Thread(target=job.stage, args=(source,), kwargs={"quiet": True})
    thread.start()
    assert source.reached.wait(60)
    assert ask(pool.supervisor, lambda: in_flight(pool.supervisor) == 0 and not pool.supervisor._backlog)
    source.open.set()
    thread.join()
    job.future.result(60)
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.parametrize("codec", CODECS)
def test_a_quiet_save_larger_than_the_arena_streams_through_it(pool: Pool, tmp_path: Path, codec: str) -> None:
    data = payload(30 * MIB)
    stored = save(pool, tmp_path, "a", data, codec=codec, quiet=True).future.result(60)
    assert load(pool, tmp_path, stored) == data


@pytest.mark.parametrize("codec", CODECS)
def test_several_saves_share_a_tiny_arena(make: Make, tmp_path: Path, codec: str) -> None:
    pool = make(memory=6 * MIB, lanes=1)
    datas = [payload(4 * MIB + number, number) for number in range(6)]
    jobs: dict[int, SaveJob] = {}

    def work(numbers: range) -> None:
        for number in numbers:
            jobs[number] = save(pool, tmp_path, str(number), datas[number], codec=codec)

    threads = [threading.Thread(target=work, args=(range(first, 6, 3),)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, data in enumerate(datas):
        assert load(pool, tmp_path, jobs[number].future.result(60)) == data
    assert all_free(pool)


@pytest.mark.parametrize("codec", CODECS)
def test_a_store_of_large_parts(make: Make, codec: str) -> None:
    """As S3: chunks are smaller than parts, so several are gathered, moved together and cut."""
    pool = make(memory=40 * MIB, workers=1)
    location = Location("memory", "parts", (("alignment", 4096), ("part_min", 3 * MIB), ("parts_max", 10)))
    data = payload(29 * MIB + 17)
    job = SaveJob(pool, location, "a", total=len(data), coding=Coding(codec, 1), whole_below=0)
    assert job.stage(BufferSource(memoryview(data)))
    stored = job.future.result(60)
    tasks = [replace(task, location=location) for task in fetches(Path("/"), stored)]
    assert FetchJob(pool, tasks).future.result(60) == [chunk.crc for chunk in stored.chunks]
    assert stored.crc == crc32c(data)
    assert all_free(pool)


def test_one_chunk_of_memory_is_enough(make: Make, tmp_path: Path) -> None:
    pool = make(memory=MIB, workers=1)
    data = payload(5 * MIB)
    assert load(pool, tmp_path, save(pool, tmp_path, "a", data).future.result(60)) == data
    with pytest.raises(MemoryLimitError, match="raise memory="):
        new_job(pool, tmp_path, "a", len(data), codec="zstd")


# sources and stores that fail


class Failing:
    total = 6 * MIB
    threads = 1

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def fill(self, address: int, start: int, stop: int) -> None:
        if start >= 3 * MIB:
            raise self._error


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("error", [ValueError("bad tensor"), KeyboardInterrupt(), CorruptError("ours")])
def test_an_error_of_the_source_ends_the_save(pool: Pool, tmp_path: Path, codec: str, error: BaseException) -> None:
    job = new_job(pool, tmp_path, "a", 6 * MIB, codec=codec)
    with pytest.raises(type(error)):
        job.stage(Failing(error))
    found = job.future.exception(60)
    if isinstance(error, S3dlioError):
        assert found is error
    else:
        assert isinstance(found, CancelledError)
        assert f"the save of a was given up: {type(error).__name__}" in str(found)
        assert found.__cause__ is error
    assert job.progress().phase == "failed"
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_runs_ends_the_save(pool: Pool, tmp_path: Path) -> None:
    def runs(start: int, _stop: int) -> Runs:
        raise ZeroDivisionError(str(start))

    coding = Coding("zstd-grouped", runs=runs)
    job = SaveJob(pool, Location("file", str(tmp_path)), "a", total=3 * MIB, coding=coding, whole_below=0)
    with pytest.raises(ZeroDivisionError):
        job.stage(BufferSource(memoryview(payload(3 * MIB))))
    assert isinstance(job.future.exception(60), CancelledError)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("whole_below", [0, 64 * MIB])
def test_an_error_of_the_store_ends_the_save(pool: Pool, tmp_path: Path, codec: str, whole_below: int) -> None:
    (tmp_path / "file").write_bytes(b"")
    data = payload(3 * MIB)
    job = new_job(pool, tmp_path / "file", "a", len(data), codec=codec, whole_below=whole_below)
    job.stage(BufferSource(memoryview(data)))
    error = job.future.exception(60)
    assert isinstance(error, S3dlioError)
    assert str(tmp_path / "file") in str(error)


def test_an_upload_that_fails_in_the_middle_leaves_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(
        monkeypatch,
        """
from s3dlio.engine.errors import StorageFullError
def run(self, task):
    if isinstance(task, StorePart) and task.number == 3:
        raise StorageFullError("no space left")
    return real(self, task)
""",
    )
    pool = make()
    data = payload(20 * MIB)
    job = new_job(pool, tmp_path, "a", len(data))
    job.stage(BufferSource(memoryview(data)))
    assert isinstance(job.future.exception(60), StorageError)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert all_free(pool)


# giving up


@pytest.mark.parametrize("codec", CODECS)
def test_cancel_while_staging(pool: Pool, tmp_path: Path, codec: str) -> None:
    data = payload(6 * MIB)
    job, source = new_job(pool, tmp_path, "a", len(data), codec=codec), Gate(data)
    thread, outcome = staging(job, source)
    job.cancel()
    job.cancel()
    assert isinstance(job.future.exception(60), CancelledError)
    source.open.set()
    thread.join()
    assert outcome == [False]
    ask(pool.supervisor, lambda: None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("whole_below", [0, 8 * MIB])
def test_cancel_while_storing(pool: Pool, tmp_path: Path, codec: str, whole_below: int) -> None:
    data = payload(3 * MIB)
    job = new_job(pool, tmp_path, "a", len(data), codec=codec, whole_below=whole_below)
    with stopped(pool.supervisor):
        job.stage(BufferSource(memoryview(data)))
        await_(pool.supervisor, lambda: in_flight(pool.supervisor) > 0)
        job.cancel(CorruptError("my reason"))
        job.cancel()
        assert not job.future.done()  # workers may be at its slots
        assert not all_free(pool)
    assert isinstance(job.future.exception(60), CorruptError)
    if not whole_below:
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_cancel_before_and_after(pool: Pool, tmp_path: Path) -> None:
    job = new_job(pool, tmp_path, "a", 3)
    job.cancel()
    assert isinstance(job.future.exception(60), CancelledError)
    assert not job.stage(BufferSource(memoryview(b"abc")))
    assert list(tmp_path.iterdir()) == []
    job = save(pool, tmp_path, "a", b"abc")
    job.future.result(60)
    job.cancel()
    ask(pool.supervisor, lambda: None)
    assert job.future.result(0).raw_size == 3


def test_a_future_cannot_be_cancelled_behind_the_workers_back(pool: Pool, tmp_path: Path) -> None:
    job = new_job(pool, tmp_path, "a", 3)
    assert not job.future.cancel()
    job.stage(BufferSource(memoryview(b"abc")))
    job.future.result(60)
    assert not FetchJob(pool, []).future.cancel()


def test_ctrl_c_while_staging(pool: Pool, tmp_path: Path) -> None:
    data = payload(6 * MIB)
    job = new_job(pool, tmp_path, "a", len(data))

    class Interrupting(Gate):
        def fill(self, address: int, start: int, stop: int) -> None:
            if start == 3 * MIB:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                assert stopping.wait(60)
            super().fill(address, start, stop)

    stopping = threading.Event()
    cancel = job.cancel

    def noticed(error: S3dlioError | None = None) -> None:
        stopping.set()
        cancel(error)

    job.cancel = noticed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        job.stage(Interrupting(data, at=100))
    error = job.future.exception(60)
    assert isinstance(error, CancelledError)
    assert "KeyboardInterrupt" in str(error)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ctrl_c_while_loading(pool: Pool, tmp_path: Path) -> None:
    stored = save(pool, tmp_path, "a", payload(8 * MIB)).future.result(60)
    consumed: list[int] = []
    once = threading.Lock()

    def consume(address: int) -> None:
        if once.acquire(blocking=False):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        consumed.append(address)

    with pytest.raises(KeyboardInterrupt):
        fetch_through_slots(pool, [(task, consume) for task in fetches(tmp_path, stored) * 50])
    assert len(consumed) < 400


@pytest.mark.parametrize("codec", CODECS)
def test_closing_the_pool_ends_a_save_that_is_being_staged(
    make: Make, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_EXIT_TIMEOUT", 0.5)
    pool = make()
    data = payload(20 * MIB)
    job, source = new_job(pool, tmp_path, "a", len(data), codec=codec), Gate(data)
    thread, outcome = staging(job, source)
    closer = threading.Thread(target=pool.close, args=(0,))
    closer.start()
    pool.supervisor._thread.join()
    source.open.set()
    thread.join()
    closer.join()
    assert outcome == [False]
    assert isinstance(job.future.exception(0), PoolClosedError)
    assert all_free(pool)
    job.cancel()
    late = new_job(pool, tmp_path, "b", 3)
    assert not late.stage(BufferSource(memoryview(b"abc")))
    assert isinstance(late.future.exception(0), PoolClosedError)


def test_closing_the_pool_ends_saves_that_wait_for_slots(make: Make, tmp_path: Path) -> None:
    pool = make(memory=2 * MIB)
    slots = [pool.arena.lease(), pool.arena.lease()]
    jobs = [new_job(pool, tmp_path, str(number), 3) for number in range(3)]
    threads = [threading.Thread(target=job.stage, args=(BufferSource(memoryview(b"abc")),)) for job in jobs]
    for thread in threads:
        thread.start()
    pool.close(timeout=0)
    for thread in threads:
        thread.join()
    assert all(isinstance(job.future.exception(0), PoolClosedError) for job in jobs)
    pool.arena.release(slots)


def test_closing_waits_for_saves_in_flight(make: Make, tmp_path: Path) -> None:
    pool = make()
    data = payload(20 * MIB)
    job = save(pool, tmp_path, "a", data)
    pool.close()
    assert job.future.result(0).raw_size == len(data)
    assert (tmp_path / "a").read_bytes() == data


# memory that is short


@pytest.mark.parametrize("codec", CODECS)
def test_a_machine_without_memory_gives_an_error_and_no_hang(make: Make, tmp_path: Path, codec: str) -> None:
    pool = make(memory=100 * MIB)
    needed = new_job(pool, tmp_path, "a", 20 * MIB, codec=codec)._plan.needed
    pool.arena._room = lambda: 0 if sum(pool.arena._grown) >= needed - 1 else 1 << 40
    job = new_job(pool, tmp_path, "a", 20 * MIB, codec=codec)
    with pytest.raises(MemoryLimitError, match="0 bytes of memory are left"):
        job.stage(BufferSource(memoryview(payload(20 * MIB))))
    assert isinstance(job.future.exception(60), MemoryLimitError)
    assert all_free(pool)


@pytest.mark.parametrize("codec", CODECS)
def test_a_machine_with_little_memory_streams_through_it(make: Make, tmp_path: Path, codec: str) -> None:
    pool = make(memory=100 * MIB)
    data = payload(20 * MIB)
    job = new_job(pool, tmp_path, "a", len(data), codec=codec)
    needed = job._plan.needed
    pool.arena._room = lambda: 0 if sum(pool.arena._grown) >= needed else 1 << 40
    assert job.stage(BufferSource(memoryview(data)))
    assert load(pool, tmp_path, job.future.result(60)) == data
    assert sum(pool.arena._grown) == needed


# streams


def test_an_idle_stream_does_not_stop_a_save(make: Make, tmp_path: Path) -> None:
    pool = make(memory=10 * MIB)
    location = Location("file", str(tmp_path))
    stream = StreamJob(pool, location, "stream", coding=Coding())
    stream.feed(memoryview(b"begun"))
    data = payload(30 * MIB)
    assert save(pool, tmp_path, "a", data, codec="none").future.result(60).raw_size == len(data)
    stream.end()
    stream.future.result(60)
    assert (tmp_path / "stream").read_bytes() == b"begun"


def test_a_save_that_open_streams_leave_too_little_is_told(make: Make, tmp_path: Path) -> None:
    pool = make(memory=10 * MIB)
    location = Location("file", str(tmp_path))
    streams = [StreamJob(pool, location, str(number), coding=Coding()) for number in range(2)]
    job = new_job(pool, tmp_path, "a", 20 * MIB, codec="zstd")
    pool.reserve_stream(1)
    with pytest.raises(MemoryLimitError, match="open streams hold"):
        job.stage(BufferSource(memoryview(payload(20 * MIB))))
    assert isinstance(job.future.exception(60), MemoryLimitError)
    pool.release_stream(1)
    for stream in streams:
        stream.drop()
        assert isinstance(stream.future.exception(60), CancelledError)
    assert pool._held_by_streams == 0
    assert all_free(pool)


def test_too_many_streams(make: Make, tmp_path: Path) -> None:
    pool = make(memory=4 * MIB)
    location = Location("file", str(tmp_path))
    streams = [StreamJob(pool, location, str(number), coding=Coding()) for number in range(2)]
    with pytest.raises(MemoryLimitError, match="too many open streams"):
        StreamJob(pool, location, "third", coding=Coding())
    for stream in streams:
        stream.drop()
        stream.future.exception(60)
    StreamJob(pool, location, "third", coding=Coding()).drop()
    pool.close(timeout=60)


def test_a_dropped_stream_leaves_nothing(pool: Pool, tmp_path: Path) -> None:
    job = StreamJob(pool, Location("file", str(tmp_path)), "a", coding=Coding())
    job.feed(memoryview(payload(2 * MIB + 5)))
    job.drop()
    job.drop()
    assert isinstance(job.future.exception(60), CancelledError)
    with pytest.raises(CancelledError):
        job.feed(memoryview(b"more"))
    ask(pool.supervisor, lambda: None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_stream_that_was_interrupted_cannot_be_finished(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = StreamJob(pool, Location("file", str(tmp_path)), "a", coding=Coding())
    job.feed(memoryview(b"12345"))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "_flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            job.feed(memoryview(bytes(2 * MIB)))
    job.end()
    assert "KeyboardInterrupt" in str(job.future.exception(60))
    ask(pool.supervisor, lambda: None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_failed_stream_tells_its_writer(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    job = StreamJob(pool, Location("file", str(tmp_path / "file")), "a", coding=Coding())
    error = job.future.exception(60)
    assert error is not None
    with pytest.raises(type(error)):
        job.feed(memoryview(b"12345"))


def test_closing_the_pool_ends_open_streams(make: Make, tmp_path: Path) -> None:
    pool = make()
    job = StreamJob(pool, Location("file", str(tmp_path)), "a", coding=Coding())
    job.feed(memoryview(payload(MIB + 5)))
    pool.close()
    assert isinstance(job.future.exception(0), PoolClosedError)
    with pytest.raises(PoolClosedError):
        job.feed(memoryview(b"more"))
    with pytest.raises(PoolClosedError):
        job.end()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# loads that fail


def test_a_flipped_bit_is_found(pool: Pool, tmp_path: Path) -> None:
    stored = save(pool, tmp_path, "a", payload(4 * MIB)).future.result(60)
    with open(tmp_path / "a", "r+b") as file:
        file.seek(2 * MIB + 7)
        file.write(b"\xff")
    tasks = fetches(tmp_path, stored)
    with pytest.raises(CorruptError, match="do not match their checksum"):
        load(pool, tmp_path, stored)
    assert isinstance(FetchJob(pool, tasks).future.exception(60), CorruptError)


def test_a_missing_object_is_told(pool: Pool, tmp_path: Path) -> None:
    stored = save(pool, tmp_path, "a", payload(4 * MIB)).future.result(60)
    os.unlink(tmp_path / "a")
    with pytest.raises(NotFoundError):
        load(pool, tmp_path, stored)
    assert isinstance(FetchJob(pool, fetches(tmp_path, stored)).future.exception(60), NotFoundError)


def test_an_error_of_the_consumer_is_raised(pool: Pool, tmp_path: Path) -> None:
    stored = save(pool, tmp_path, "a", payload(4 * MIB)).future.result(60)

    def consume(_address: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fetch_through_slots(pool, [(task, consume) for task in fetches(tmp_path, stored)])


def test_a_chunk_larger_than_a_slot_is_refused(pool: Pool, tmp_path: Path) -> None:
    task = Fetch(Location("file", str(tmp_path)), "a", 0, 1, "none", MIB + 1, None, None)
    with pytest.raises(MemoryLimitError, match="does not fit a slot"):
        fetch_through_slots(pool, [(task, lambda _address: None)])


def test_a_cancelled_batch_ends_once_nothing_is_in_flight(pool: Pool, tmp_path: Path) -> None:
    stored = save(pool, tmp_path, "a", payload(8 * MIB)).future.result(60)
    with stopped(pool.supervisor):
        job = FetchJob(pool, fetches(tmp_path, stored))
        await_(pool.supervisor, lambda: in_flight(pool.supervisor) == 4)
        job.cancel(CancelledError("enough"))
        ask(pool.supervisor, lambda: None)
        assert not job.future.done()
    with pytest.raises(CancelledError, match="enough"):
        job.future.result(60)
    job.cancel(CancelledError("late"))


def test_a_closed_pool_loads_nothing(make: Make, tmp_path: Path) -> None:
    pool = make()
    stored = save(pool, tmp_path, "a", payload(MIB)).future.result(60)
    job = FetchJob(pool, fetches(tmp_path, stored))
    pool.close()
    job.cancel(CancelledError("late"))
    assert job.future.result(0)
    with pytest.raises(PoolClosedError):
        load(pool, tmp_path, stored)


# workers that die


@pytest.mark.parametrize("codec", CODECS)
def test_workers_killed_with_tasks_in_flight(make: Make, tmp_path: Path, codec: str) -> None:
    pool = make(memory=16 * MIB)
    data = payload(6 * MIB + 5)
    job = new_job(pool, tmp_path, "a", len(data), codec=codec)
    with stopped(pool.supervisor) as pids:
        job.stage(BufferSource(memoryview(data)))
        await_(pool.supervisor, lambda: in_flight(pool.supervisor) > 0)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert load(pool, tmp_path, job.future.result(60)) == data
    assert not set(pids) & set(pool.supervisor.pids())
    assert all_free(pool)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Begin", "Encode", "StorePart", "Complete", "PutWhole", "Fetch"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_killed_at_each_kind_of_task(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    flag = tmp_path / "died"
    sabotage(
        monkeypatch,
        f"""
def run(self, task):
    if not isinstance(task, {kind}):
        return real(self, task)
    if {when == "after"}:
        value = real(self, task)
    try:
        os.close(os.open({str(flag)!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return real(self, task)
    os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    pool = make(memory=16 * MIB, workers=1)
    data = payload(4 * MIB + 5)
    whole_below = 1 << 30 if kind == "PutWhole" else 0
    folder = tmp_path / "store"
    stored = save(pool, folder, "a", data, codec="zstd", whole_below=whole_below).future.result(60)
    assert load(pool, folder, stored) == data
    assert flag.exists()
    assert all_free(pool)


@pytest.mark.slow
def test_workers_that_always_die_end_the_save(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(
        monkeypatch,
        """
def run(self, task):
    if isinstance(task, StorePart):
        os._exit(9)
    return real(self, task)
""",
    )
    monkeypatch.setattr(deadlines, "MAX_SENDS", 2)
    pool = make()
    job = save(pool, tmp_path, "a", payload(3 * MIB))
    with pytest.raises(WorkerDiedError, match="2 workers died on it, the last with status 9"):
        job.future.result(60)
    assert all_free(pool)


def test_an_interpreter_that_ends_finishes_its_saves(tmp_path: Path) -> None:
    code = """
import sys
from s3dlio.engine.contract import Location
from s3dlio.engine.job import Coding, SaveJob
from s3dlio.engine.pool import Pool, PoolConfig
from s3dlio.engine.source import BufferSource
pool = Pool(PoolConfig(memory=8 << 20, workers=1, slot_size=1 << 20))
data = memoryview(bytes(range(256)) * (32 << 12))
job = SaveJob(pool, Location("file", sys.argv[1]), "a", total=len(data), coding=Coding(), whole_below=0)
job.stage(BufferSource(data), quiet=True)
print(len(data), job.future.done())
"""
    size, done = python(code, str(tmp_path)).split()
    assert done == "False"
    assert (tmp_path / "a").stat().st_size == int(size)
