"""Streams of shards: bounded memory, and nothing left of one that is not finalized, however it ends."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from s3dlio import (
    CancelledError,
    CheckpointStore,
    MemoryLimitError,
    PoolClosedError,
    S3dlioError,
    StorageError,
    StorageFullError,
    UnsupportedError,
)
from s3dlio.engine.stream import StreamJob
from s3dlio.shards import ShardStream
from tests.faults.injected import Rule
from tests.faults.sabotage import Sabotage
from tests.store.live import MIB, contents, in_forked_child, open_store, random_bytes, workers_stopped


def open_stream(store: CheckpointStore, step: int = 1, *, world: int = 1, rank: int = 0) -> ShardStream:
    return store.writer(world, rank).get_distributed_shard_stream(step, 2, "pytorch")


def commit(store: CheckpointStore, *records: dict[str, Any]) -> str:
    step = records[0]["step"]
    return store.writer(len(records), 0).finalize_distributed_checkpoint(step, 2, "pytorch", list(records))


def read_back(store: CheckpointStore, rank: int = 0) -> Any:
    reader = store.reader()
    manifest = reader.load_latest_manifest()
    assert manifest is not None
    return reader.read_shard_by_rank(manifest, rank)


def job_of(stream: ShardStream) -> StreamJob:
    job = stream._stream._job
    assert job is not None
    return job


def assert_nothing_left(store: CheckpointStore, folder: Path) -> None:
    pool = store._use_pool()
    assert list(store.control().uploads()) == []
    assert contents(folder) == {}
    assert pool.arena.free == pool.arena.slots
    assert pool._held_by_streams == 0


SIZES = (1, 3 * MIB, 0, MIB - 1, 1, 700_001, 2 * MIB + 5)


@pytest.mark.parametrize("compression", [None, "zstd", "zstd-grouped", "auto"])
@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_chunks_of_any_size_become_one_shard(
    kept_pool: CheckpointStore, folder: Path, scheme: str, compression: str | None
) -> None:
    data = random_bytes(sum(SIZES) // 2).ljust(sum(SIZES), b"s")
    with open_store(folder, scheme, compression=compression) as store:
        stream = open_stream(store)
        at = 0
        for size in SIZES:
            assert stream.write_chunk(memoryview(data)[at : at + size]) == size
            at += size
            assert stream.bytes_written() == at
        record = stream.finalize()
        assert (record["rank"], record["step"], record["epoch"], record["raw_size"]) == (0, 1, 2, len(data))
        assert (folder / record["key"]).stat().st_size == record["size"]
        commit(store, record)
        assert read_back(store) == data
        assert store.verify().bytes == len(data)


def test_without_a_codec_the_shard_is_the_payload(store: CheckpointStore, folder: Path) -> None:
    stream = open_stream(store)
    stream.write_chunk(b"abc")
    stream.write_chunk(bytearray(b"def"))
    stream.write_chunk(np.array([1, 2], dtype="<u2")[::-1])
    record = stream.finalize()
    assert (folder / record["key"]).read_bytes() == b"abcdef\x02\x00\x01\x00"


def test_a_zstd_shard_is_a_standard_stream(kept_pool: CheckpointStore, folder: Path) -> None:
    data = random_bytes(MIB) + bytes(2 * MIB)
    with open_store(folder, compression="zstd") as store:
        stream = open_stream(store)
        stream.write_chunk(data)
        record = stream.finalize()
    assert record["key"].endswith(".bin.zst")
    with (folder / record["key"]).open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        assert reader.read(len(data) + 1) == data


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_stream_without_bytes_is_an_empty_shard(
    kept_pool: CheckpointStore, folder: Path, compression: str | None
) -> None:
    with open_store(folder, compression=compression) as store:
        stream = open_stream(store)
        stream.write_chunk(b"")
        record = stream.finalize()
        assert (record["size"], record["raw_size"], record["codec"]) == (0, 0, "none")
        commit(store, record)
        assert read_back(store) == b""


def test_streams_may_be_written_in_turn(store: CheckpointStore) -> None:
    streams = [open_stream(store, world=2, rank=rank) for rank in range(2)]
    for _ in range(30):
        for rank, stream in enumerate(streams):
            stream.write_chunk(bytes([rank]) * 100_001)
    commit(store, *(stream.finalize() for stream in streams))
    for rank in range(2):
        assert read_back(store, rank) == bytes([rank]) * 3_000_030


@pytest.mark.parametrize(("compression", "memory", "chunks"), [(None, 4 * MIB, 40), ("zstd", 10 * MIB, 50)])
def test_memory_stays_bounded_however_long_the_stream_is(
    folder: Path, compression: str | None, memory: int, chunks: int
) -> None:
    with open_store(folder, compression=compression, memory=memory) as store:
        stream = open_stream(store)
        stream.write_chunk(np.full(MIB // 8, 0, dtype=np.int64))
        tracemalloc.start()
        for number in range(1, chunks):
            stream.write_chunk(np.full(MIB // 8, number, dtype=np.int64))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        record = stream.finalize()
        arena = store._use_pool().arena
        assert os.fstat(arena.fd).st_blocks * 512 <= memory
        assert peak < 3 * MIB  # the test's own chunks
        assert arena.free == arena.slots
        commit(store, record)
        found = np.frombuffer(read_back(store), dtype=np.int64).reshape(chunks, -1)
        assert (found == np.arange(chunks)[:, None]).all()


def test_an_arena_too_small_for_a_compressed_stream_is_told(folder: Path) -> None:
    with open_store(folder, compression="zstd", memory=4 * MIB, workers=1) as store:
        stream = open_stream(store)
        with pytest.raises(MemoryLimitError, match="raise memory="):
            stream.write_chunk(b"abc")
        assert_nothing_left(store, folder)


def test_too_many_open_streams_are_refused(store: CheckpointStore, folder: Path) -> None:
    streams = [open_stream(store, world=64, rank=rank) for rank in range(64)]
    with pytest.raises(MemoryLimitError, match=r"too many open streams.*finish some"):
        write_to_all(streams)
    assert streams[1].write_chunk(b"y") == 1
    streams[0].cancel()
    other = open_stream(store)
    other.write_chunk(b"fits again")
    for stream in [*streams, other]:
        stream.cancel()
    assert_nothing_left(store, folder)


def test_cancel_leaves_nothing(store: CheckpointStore, folder: Path) -> None:
    stream = open_stream(store)
    stream.write_chunk(random_bytes(5 * MIB + 1))
    stream.cancel()
    assert_nothing_left(store, folder)
    assert repr(stream).endswith(f"{5 * MIB + 1} bytes, cancelled>")
    for use in (lambda: stream.write_chunk(b"x"), stream.finalize):
        with pytest.raises(CancelledError, match="is cancelled: start another"):
            use()
    stream.cancel()


def write_and_fail(stream: ShardStream) -> None:
    with stream:
        stream.write_chunk(b"x" * MIB)
        raise KeyError("of the user")


def test_leaving_the_context_without_finalize_cancels(store: CheckpointStore, folder: Path) -> None:
    with open_stream(store) as stream:
        stream.write_chunk(b"x" * MIB)
    assert_nothing_left(store, folder)
    with pytest.raises(KeyError):
        write_and_fail(open_stream(store))
    assert_nothing_left(store, folder)


def test_finalize_within_the_context_stays(store: CheckpointStore) -> None:
    with open_stream(store) as stream:
        stream.write_chunk(b"kept")
        record = stream.finalize()
    stream.cancel()
    commit(store, record)
    assert read_back(store) == b"kept"


def test_a_finalized_stream_takes_no_more(store: CheckpointStore) -> None:
    stream = open_stream(store)
    stream.write_chunk(b"all")
    stream.finalize()
    for use in (lambda: stream.write_chunk(b"x"), stream.finalize):
        with pytest.raises(S3dlioError, match="is finalized: start another"):
            use()
    assert stream.bytes_written() == 3


def write_to_all(streams: list[ShardStream]) -> None:
    for stream in streams:
        stream.write_chunk(b"x")


@pytest.mark.parametrize("cycle", [False, True])
def test_a_lost_stream_leaves_nothing(store: CheckpointStore, folder: Path, cycle: bool) -> None:
    stream = open_stream(store)
    stream.write_chunk(random_bytes(3 * MIB + 1))
    job = job_of(stream)
    if cycle:
        stream.me = stream  # type: ignore[attr-defined]
    del stream
    gc.collect()
    assert isinstance(job.future.exception(10), CancelledError)
    assert_nothing_left(store, folder)


def test_a_stream_keeps_its_store_alive(kept_pool: CheckpointStore, folder: Path) -> None:
    store = open_store(folder)
    stream, kept = open_stream(store), weakref.ref(store)
    del store
    gc.collect()
    stream.write_chunk(b"abc")
    assert stream.finalize()["size"] == 3
    found = kept()
    assert found is not None
    found.close()


def test_closing_the_store_ends_its_streams(kept_pool: CheckpointStore, folder: Path) -> None:
    store = open_store(folder)
    stream = open_stream(store)
    stream.write_chunk(random_bytes(3 * MIB + 1))
    store.close()
    with pytest.raises(CancelledError):
        stream.write_chunk(b"x")
    with open_store(folder) as again:
        assert_nothing_left(again, folder)


def test_what_is_no_buffer_leaves_the_stream_as_it_was(store: CheckpointStore) -> None:
    stream = open_stream(store)
    stream.write_chunk(b"good")
    for bad in ("text", 7, [1, 2], None, iter(b"ab")):
        with pytest.raises(UnsupportedError) as raised:
            stream.write_chunk(bad)
        assert isinstance(raised.value, TypeError)
    commit(store, stream.finalize())
    assert read_back(store) == b"good"


def test_an_interrupt_within_a_chunk_ends_the_stream(
    store: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(store)
    stream.write_chunk(b"x" * (2 * MIB + 5))

    def interrupt(self: StreamJob) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StreamJob, "_flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stream.write_chunk(b"y" * MIB)
    with pytest.raises(S3dlioError, match="is failed: start another"):
        stream.write_chunk(b"z")
    assert_nothing_left(store, folder)


def test_cancel_wakes_a_writer_that_waits_for_memory(warm: CheckpointStore, folder: Path) -> None:
    before = contents(folder)
    stream = open_stream(warm)
    stream.write_chunk(b"x")
    job = job_of(stream)
    posted = threading.Event()
    plain_cancel, raised = job.cancel, []

    def cancel(error: S3dlioError | None = None) -> None:
        plain_cancel(error)
        posted.set()

    def write() -> None:
        try:
            stream.write_chunk(bytes(100 * MIB))  # more than the arena holds
        except CancelledError as error:
            raised.append(error)

    job.cancel = cancel  # type: ignore[method-assign]
    threads = [threading.Thread(target=write), threading.Thread(target=stream.cancel)]
    with workers_stopped(warm):
        for thread in threads:
            thread.start()
        assert posted.wait(10)
    for thread in threads:
        thread.join()
    assert len(raised) == 1
    assert contents(folder) == before
    assert warm._use_pool().arena.free == warm._use_pool().arena.slots


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``sabotage(*rules)`` strikes the workers that this process starts from now on."""
    made: list[Sabotage] = []

    def start(*rules: Rule) -> Sabotage:
        made.append(Sabotage(tmp_path / "sabotage", *rules))
        monkeypatch.setattr(sys, "executable", made[-1].executable)
        return made[-1]

    yield start
    for one in made:
        one.close()


def write_chunks(stream: ShardStream, count: int) -> None:
    for _ in range(count):
        stream.write_chunk(bytes(MIB))


def test_an_error_of_the_storage_comes_with_the_next_chunks(sabotage: Any, folder: Path) -> None:
    sabotage(Rule("StorePart", at="io", do=errno.ENOSPC, times=1000))
    with open_store(folder, memory=16 * MIB, workers=1) as store:
        stream = open_stream(store)
        with pytest.raises(StorageFullError):
            write_chunks(stream, 64)
        for use in (lambda: stream.write_chunk(b"x"), stream.finalize):
            with pytest.raises(S3dlioError, match="is failed: start another") as raised:
                use()
            assert isinstance(raised.value.__cause__, StorageFullError)
        assert_nothing_left(store, folder)


def test_a_finalize_that_fails_leaves_nothing(sabotage: Any, folder: Path) -> None:
    sabotage(Rule("Call.put", at="io", key=".idx", do=errno.EROFS, times=1000))
    with open_store(folder, memory=16 * MIB, workers=1) as store:
        stream = open_stream(store)
        stream.write_chunk(bytes(2 * MIB))
        with pytest.raises(StorageError):
            stream.finalize()
        assert_nothing_left(store, folder)


def test_a_forked_child_cannot_write_and_does_no_harm(store: CheckpointStore) -> None:
    stream = open_stream(store)
    stream.write_chunk(b"parent")

    def child() -> None:
        with pytest.raises(PoolClosedError):
            stream.write_chunk(b"child")

    in_forked_child(child)
    commit(store, stream.finalize())
    assert read_back(store) == b"parent"


def test_a_forked_child_streams_through_a_writer_it_inherited(store: CheckpointStore) -> None:
    writer = store.writer(1, 0)
    writer.put_shard(b"parent")

    def child() -> None:
        stream = writer.get_distributed_shard_stream(1, 2, "pytorch")
        stream.write_chunk(b"child")
        commit(store, stream.finalize())
        writer.get_distributed_shard_stream(2, 2, "pytorch").write_chunk(b"left open")
        store.close()

    in_forked_child(child)
    assert read_back(store) == b"child"


_FORGETFUL = """
import sys
from s3dlio import PyCheckpointStore
store = PyCheckpointStore(sys.argv[1], memory=16 << 20, workers=1, chunk_size=1 << 20)
stream = store.writer(1, 0).get_distributed_shard_stream(1, 0, "f")
stream.write_chunk(bytes(17 << 20))
"""


def test_a_process_that_ends_with_an_open_stream_ends(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORGETFUL, f"file://{folder}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(folder) == {}
