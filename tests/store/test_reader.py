"""Shards read back: whole, in pieces and for the checks alone, ours and those without an index."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from s3dlio import CheckpointStore
from s3dlio.engine.checksum import crc32c, format_crc32c
from s3dlio.engine.errors import (
    CancelledError,
    CorruptError,
    ManifestError,
    MemoryLimitError,
    NotFoundError,
    PoolClosedError,
    StorageError,
)
from s3dlio.engine.messages import Fetch
from s3dlio.reader import ShardReader, Wanted, batches, copy_to_memory
from s3dlio.records import IndexRef, ShardRecord

from .fake import make_id, make_record
from .live import MIB, open_store, random_bytes, smooth_floats

DATA = smooth_floats(900_000).tobytes() + random_bytes(MIB + 77)
CODECS = ["none", "zstd", "zstd-grouped"]


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def saved(kept_pool: CheckpointStore, folder: Path, codec: str) -> Iterator[tuple[ShardReader, ShardRecord, Path]]:
    """A reader, the record of a shard of ``DATA`` and its file."""
    with open_store(folder, compression=codec) as store:
        record = ShardRecord.from_dict(store.writer(1, 0).save_distributed_shard(1, 0, "bytes", DATA))
        yield store._reader(), record, folder / record.key


@pytest.fixture
def reader(store: CheckpointStore) -> ShardReader:
    return store._reader()


def foreign(folder: Path, stored: bytes, **changes: Any) -> ShardRecord:
    """The record of a shard as the published package leaves it: no index, perhaps no checksum."""
    record = make_record(make_id(1), payload=stored, **{"checksum": None, "raw_size": None, **changes})
    path = folder / record.key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stored)
    return record


def take(reader: ShardReader, record: ShardRecord, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The wanted ranges through ``pieces``."""
    index = reader.index(record)
    assert index is not None
    buffers = [ctypes.create_string_buffer(max(stop - start, 1)) for start, stop in ranges]
    wanted = [
        Wanted(start, stop, copy_to_memory(ctypes.addressof(buffer)))
        for (start, stop), buffer in zip(ranges, buffers, strict=True)
    ]
    reader.pieces(record, index, wanted)
    return [buffer.raw[: stop - start] for (start, stop), buffer in zip(ranges, buffers, strict=True)]


class TestOurs:
    def test_whole(self, saved: tuple[ShardReader, ShardRecord, Path]) -> None:
        reader, record, _ = saved
        seen: list[int] = []
        assert reader.whole(record, reader.index(record), seen.append) == DATA
        assert sum(seen) == len(DATA)

    def test_pieces_give_each_its_bytes(self, saved: tuple[ShardReader, ShardRecord, Path]) -> None:
        reader, record, _ = saved
        size = len(DATA)
        ranges = [(size - 5, size), (0, 10), (MIB - 3, 2 * MIB + 3), (5, 9), (0, size), (7, 7), (MIB, MIB + 1)]
        assert take(reader, record, ranges) == [DATA[start:stop] for start, stop in ranges]

    def test_pieces_fetch_each_chunk_once(
        self, saved: tuple[ShardReader, ShardRecord, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader, record, _ = saved
        fetched: list[int] = []
        run = reader._pool.run

        def watch(task: Any) -> Any:
            if isinstance(task, Fetch):
                fetched.append(task.offset)
            return run(task)

        monkeypatch.setattr(reader._pool, "run", watch)
        take(reader, record, [(0, 10), (5, 20), (100, 200), (3 * MIB + MIB // 2, 3 * MIB + MIB // 2 + 9)])
        assert len(fetched) == len(set(fetched)) == 2

    def test_no_pieces_read_nothing(self, saved: tuple[ShardReader, ShardRecord, Path]) -> None:
        reader, record, path = saved
        path.unlink()
        assert take(reader, record, []) == []

    def test_a_consumers_error_is_raised_and_frees_its_slots(
        self, saved: tuple[ShardReader, ShardRecord, Path]
    ) -> None:
        reader, record, _ = saved
        index = reader.index(record)
        assert index is not None

        def refuse(*_: int) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            reader.pieces(record, index, [Wanted(0, len(DATA), refuse)])
        arena = reader._pool.arena
        assert arena.free == arena.slots

    @pytest.mark.parametrize("memory", [6 * MIB, 64 * MIB])
    def test_larger_chunks_than_the_pools_are_landed(self, tmp_path: Path, memory: int) -> None:
        with open_store(tmp_path, chunk_size=4 * MIB, workers=1, compression="zstd") as store:
            data = DATA * 4
            record = ShardRecord.from_dict(store.writer(1, 0).save_distributed_shard(1, 0, "bytes", data))
        with open_store(tmp_path, memory=memory, workers=1) as store:
            reader, size = store._reader(), len(data)
            assert take(reader, record, [(0, 5), (size - 5, size)]) == [data[:5], data[-5:]]
            assert take(reader, record, [(0, size)]) == [data]
            assert reader.whole(record, reader.index(record)) == data

    def test_only_wanted_chunks_are_landed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_store(tmp_path, chunk_size=4 * MIB, workers=1) as store:
            record = ShardRecord.from_dict(store.writer(1, 0).save_distributed_shard(1, 0, "bytes", DATA * 4))
        with open_store(tmp_path, workers=1) as store:
            monkeypatch.setattr("s3dlio.engine.pool.headroom", lambda: 16 * MIB)
            assert take(store._reader(), record, [(5 * MIB, 5 * MIB + 5)]) == [(DATA * 4)[5 * MIB : 5 * MIB + 5]]

    def test_verify_counts_the_raw_bytes(self, saved: tuple[ShardReader, ShardRecord, Path]) -> None:
        reader, record, _ = saved
        seen: list[int] = []
        assert reader.verify(record, seen.append) == len(DATA) == sum(seen)

    def test_damage_is_found_by_every_way(self, saved: tuple[ShardReader, ShardRecord, Path]) -> None:
        reader, record, path = saved
        index = reader.index(record)
        assert index is not None
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(data)
        with pytest.raises(CorruptError, match=r"rank-0\.bin"):
            reader.whole(record, index)
        with pytest.raises(CorruptError, match=r"rank-0\.bin"):
            reader.verify(record)
        with pytest.raises(CorruptError, match=r"rank-0\.bin"):
            take(reader, record, [(len(DATA) - 1, len(DATA))])
        assert take(reader, record, [(0, 9)]) == [DATA[:9]]  # of another chunk

    def test_another_checksum_in_the_manifest_is_damage(self, saved: tuple[ShardReader, ShardRecord, Path]) -> None:
        reader, record, _ = saved
        index = reader.index(record)
        with pytest.raises(CorruptError, match=r"not match its checksum \(recorded crc32c:00000000, found crc32c:"):
            reader.whole(replace(record, checksum="crc32c:00000000"), index)
        with pytest.raises(ManifestError, match=r"the index of .* says"):
            reader.index(replace(record, checksum="crc32c:00000000"))

    def test_a_torn_index_is_damage(self, saved: tuple[ShardReader, ShardRecord, Path]) -> None:
        reader, record, path = saved
        index = path.parent / "rank-0.idx"
        index.write_bytes(index.read_bytes()[:-1])
        with pytest.raises((CorruptError, StorageError), match=r"rank-0\.idx"):
            reader.index(record)
        index.unlink()
        with pytest.raises(NotFoundError, match=r"rank-0\.idx"):
            reader.index(record)

    def test_memory_is_asked_for_before_it_is_taken(
        self, saved: tuple[ShardReader, ShardRecord, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader, record, _ = saved
        index = reader.index(record)
        monkeypatch.setattr("s3dlio.engine.pool.headroom", lambda: 2 * len(DATA))  # for its bytes, not for the reading
        with pytest.raises(MemoryLimitError, match=f"{record.key} needs .* {2 * len(DATA)} are left.*or load with"):
            reader.whole(record, index)
        monkeypatch.setattr("s3dlio.engine.pool.headroom", lambda: MIB)
        with pytest.raises(MemoryLimitError, match=f"{record.key} needs .* {MIB} are left: free memory$"):
            reader.verify(record)

    def test_what_a_network_brings_needs_memory_for_a_block_only(
        self, saved: tuple[ShardReader, ShardRecord, Path], monkeypatch: pytest.MonkeyPatch, codec: str
    ) -> None:
        reader, record, _ = saved
        index = reader.index(record)
        assert index is not None
        monkeypatch.setattr("s3dlio.engine.plan.BLOCK", MIB // 4)
        near = reader._buffers(index.chunks)
        assert near > MIB
        monkeypatch.setattr("s3dlio.reader.OBJECT_STORES", {"file"})
        blocks = MIB // 4 * min(reader._pool.width(reader._location), len(index.chunks))
        assert reader._buffers(index.chunks) == (blocks if codec == "none" else near)

    def test_an_interrupt_waits_until_nobody_writes(
        self, saved: tuple[ShardReader, ShardRecord, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader, record, _ = saved
        index = reader.index(record)
        ended: list[Future[Any]] = []
        result = Future.result

        def interrupted(future: Future[Any], timeout: float | None = None) -> Any:
            if threading.current_thread() is threading.main_thread() and not ended:
                ended.append(future)
                raise KeyboardInterrupt
            return result(future, timeout)

        monkeypatch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.whole(record, index)
        assert ended[0].done()
        assert isinstance(ended[0].exception(), CancelledError | None.__class__)

    def test_of_a_closed_pool(self, tmp_path: Path) -> None:
        with open_store(tmp_path, workers=1) as store:
            record = ShardRecord.from_dict(store.writer(1, 0).save_distributed_shard(1, 0, "bytes", b"x" * 99))
            reader = store._reader()
            index = reader.index(record)
        with pytest.raises(PoolClosedError):
            reader.whole(record, index)
        with pytest.raises(PoolClosedError):
            reader.verify(record)


class TestEmpty:
    def test_is_read_without_bytes(self, store: CheckpointStore, folder: Path) -> None:
        record = ShardRecord.from_dict(store.writer(1, 0).save_distributed_shard(1, 0, "bytes", b""))
        reader = store._reader()
        assert reader.whole(record, reader.index(record)) == b""
        assert reader.verify(record) == 0
        (folder / record.key).write_bytes(b"!")
        for ask in (lambda: reader.whole(record, reader.index(record)), lambda: reader.verify(record)):
            with pytest.raises(CorruptError, match=r"rank-0\.bin has 1 bytes instead of 0"):
                ask()
        (folder / record.key).unlink()
        with pytest.raises(NotFoundError):
            reader.verify(record)


class TestForeign:
    """Shards of the published package: no index, a null checksum, perhaps zstd."""

    def test_plain(self, reader: ShardReader, folder: Path) -> None:
        record = foreign(folder, DATA)
        assert reader.index(record) is None
        assert reader.whole(record, None) == DATA
        assert reader.verify(record) == len(DATA)

    def test_with_a_checksum(self, reader: ShardReader, folder: Path) -> None:
        record = foreign(folder, DATA, checksum=format_crc32c(crc32c(DATA)))
        assert reader.whole(record, None) == DATA
        bad = replace(record, checksum="crc32c:00000001")
        for ask in (lambda: reader.whole(bad, None), lambda: reader.verify(bad)):
            with pytest.raises(CorruptError, match="does not match its checksum"):
                ask()

    @pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1, 2**62])
    def test_of_another_size_is_damage_whatever_the_size(self, reader: ShardReader, folder: Path, size: int) -> None:
        record = replace(foreign(folder, DATA), size=size)
        for ask in (lambda: reader.whole(record, None), lambda: reader.verify(record)):
            with pytest.raises(CorruptError, match=f"has {len(DATA)} bytes instead of {size}"):
                ask()

    def test_zstd_of_unknown_size(self, reader: ShardReader, folder: Path) -> None:
        compressor = zstandard.ZstdCompressor(level=1, write_content_size=False)
        stored = compressor.compress(DATA[:MIB]) + compressor.compress(DATA[MIB:])
        record = foreign(folder, stored, codec="zstd", checksum=format_crc32c(crc32c(DATA)))
        assert reader.whole(record, None) == DATA
        assert reader.verify(record) == len(DATA)
        with pytest.raises(CorruptError, match="does not match its checksum"):
            reader.whole(replace(record, checksum="crc32c:00000001"), None)

    def test_zstd_of_nothing(self, reader: ShardReader, folder: Path) -> None:
        record = foreign(folder, zstandard.ZstdCompressor().compress(b""), codec="zstd")
        assert reader.whole(record, None) == b""
        assert reader.verify(record) == 0

    def test_torn_zstd_is_damage(self, reader: ShardReader, folder: Path) -> None:
        stored = zstandard.ZstdCompressor().compress(DATA)[:-3]
        record = foreign(folder, stored, codec="zstd")
        with pytest.raises(CorruptError):
            reader.whole(record, None)

    def test_a_zstd_bomb_is_stopped_by_the_memory_there_is(
        self, reader: ShardReader, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
        record = foreign(folder, stored, codec="zstd")
        monkeypatch.setattr("s3dlio.engine.pool.headroom", lambda: 64 * MIB)  # of which half is for all else
        with pytest.raises(MemoryLimitError):
            reader.whole(record, None)


def test_an_index_larger_than_a_message_comes_through_memory(store: CheckpointStore, folder: Path) -> None:
    state = {"text": [f"{number:0100d}" for number in range(20_000)], "w": np.arange(5)}
    store.save(1, state)
    (index,) = folder.glob("shards/*/rank-0.idx")
    assert index.stat().st_size > MIB
    assert store.load()["text"] == state["text"]
    assert store.verify().ok
    data = bytearray(index.read_bytes())
    data[-100] ^= 1
    index.write_bytes(data)
    with pytest.raises(CorruptError, match=r"rank-0\.idx is damaged"):
        store.load()
    index.write_bytes(data[:-5])
    with pytest.raises(CorruptError, match=r"rank-0\.idx"):
        store.load()


def test_a_record_may_lie_about_its_index(store: CheckpointStore) -> None:
    record = ShardRecord.from_dict(store.writer(1, 0).save_distributed_shard(1, 0, "bytes", DATA))
    assert record.index is not None
    lie = replace(record, index=IndexRef(record.index.key, 2 * MIB, record.index.checksum))
    with pytest.raises(CorruptError, match=r"rank-0\.idx"):
        store._reader().index(lie)


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 100))
@settings(max_examples=50)
def test_batches_hold_what_fits(sizes: list[int], most: int) -> None:
    items = list(enumerate(sizes))
    found = list(batches(items, lambda item: item[1], most))
    assert [item for batch in found for item in batch] == items
    for batch in found:
        assert len(batch) == 1 or sum(size for _, size in batch) <= most
    for one, other in itertools.pairwise(found):
        assert sum(size for _, size in one) + other[0][1] > most
