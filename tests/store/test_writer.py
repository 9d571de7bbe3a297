"""One shard written: how it is coded and named, what its record and index say, and that a failed one is removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3dlio import CheckpointConfig, CheckpointStore, Strategy
from s3dlio.content import width_runs
from s3dlio.engine.checksum import crc32c, format_crc32c
from s3dlio.engine.errors import StorageError
from s3dlio.engine.source import BufferSource
from s3dlio.index import open_index
from s3dlio.writer import Shard, ShardWriter

from .fake import make_id
from .live import MIB, SMALL, contents, open_store, random_bytes, smooth_floats

ID = make_id(7)
DATA = smooth_floats(600_000).tobytes() + random_bytes(MIB)


@pytest.fixture
def make(store: CheckpointStore) -> Any:
    """``make(scheme, **options)``: a writer in the folder of ``store``."""

    def writer(scheme: str = "file", **options: Any) -> ShardWriter:
        location = replace(store.location, scheme=scheme)
        return ShardWriter(store._use_pool(), location, CheckpointConfig(**{**SMALL, **options}))

    return writer


def put(writer: ShardWriter, shard: Shard, data: bytes, **options: Any) -> Any:
    job = writer.start(shard, len(data), width_runs(((0, len(data) // 4 * 4, 4),)))
    assert job.stage(BufferSource(memoryview(data)))
    return writer.finish(shard, job.future.result(60), **options)


@pytest.mark.parametrize(
    ("scheme", "compression", "empty", "codec"),
    [
        ("file", None, False, "none"),
        ("file", "none", False, "none"),
        ("file", "zstd", False, "zstd"),
        ("file", "zstd-grouped", False, "zstd-grouped"),
        ("file", "auto", False, "auto"),
        ("direct", "auto", False, "none"),
        ("direct", "zstd", False, "zstd"),
        ("direct", "zstd-grouped", False, "zstd-grouped"),
        ("file", "zstd", True, "none"),
        ("file", "auto", True, "none"),
    ],
)
def test_the_codec_of_a_shard(make: Any, scheme: str, compression: str | None, empty: bool, codec: str) -> None:
    shard = make(scheme, compression=compression).shard(ID, 0, 1, empty=empty)
    assert shard.codec == codec
    assert shard.key == f"shards/{ID.name}/rank-0.bin" + (".zst" if codec == "zstd" else "")


@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_key_of_a_shard(make: Any, strategy: Strategy) -> None:
    shard = make(strategy=strategy).shard(ID, 5, 1, label="mine")
    assert shard.key == f"shards/{strategy.prefix(5)}{ID.name}/rank-5.bin"
    assert (shard.id, shard.rank, shard.epoch, shard.label) == (ID, 5, 1, "mine")


@pytest.mark.parametrize("threshold", [0, 64 * MIB])
@pytest.mark.parametrize("codec", ["none", "zstd", "zstd-grouped", "auto"])
def test_the_record_tells_what_is_stored(make: Any, folder: Path, codec: str, threshold: int) -> None:
    writer = make(compression=codec, multipart_threshold=threshold)
    shard = writer.shard(ID, 3, 9, label="mine")
    record = put(writer, shard, DATA)
    stored = contents(folder)
    assert set(stored) == {shard.key, f"shards/{ID.name}/rank-3.idx"}
    assert (record.rank, record.step, record.epoch, record.timestamp) == (3, 7, 9, ID.timestamp)
    assert (record.key, record.codec, record.label) == (shard.key, codec, "mine")
    assert (record.size, record.raw_size) == (len(stored[shard.key]), len(DATA))
    assert record.checksum == format_crc32c(crc32c(DATA))
    assert record.index is not None
    assert record.index.key == f"shards/{ID.name}/rank-3.idx"
    index = open_index(stored[record.index.key], record)
    assert (index.tree, index.table) == (None, None)
    assert (index.chunks.raw_size, index.chunks.stored_size) == (record.raw_size, record.size)
    if codec == "none":
        assert stored[shard.key] == DATA


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_tree_and_table_stand_in_the_index_whatever_their_size(make: Any, folder: Path, size: int) -> None:
    writer = make()
    tree = b'"' + b"x" * size + b'"'
    record = put(writer, writer.shard(ID, 0, 0), b"abc", tree=iter([tree[:5], tree[5:]]), table=iter([b"{}"]))
    index = open_index(contents(folder)[record.index.key], record)
    assert (index.tree, index.table) == ("x" * size, {})


def test_a_stream_is_stored_like_a_whole(make: Any, folder: Path) -> None:
    writer = make(compression="zstd")
    shard = writer.shard(ID, 0, 0)
    job = writer.start_stream(shard)
    for at in range(0, len(DATA), 700_001):
        job.feed(memoryview(DATA)[at : at + 700_001])
    job.end()
    record = writer.finish(shard, job.future.result(60))
    assert record.checksum == format_crc32c(crc32c(DATA))
    index = open_index(contents(folder)[record.index.key], record)
    assert index.chunks.raw_size == len(DATA)
    assert index.chunks.codecs() == {"zstd"}


def test_discard_removes_what_a_failed_save_published(make: Any, folder: Path) -> None:
    writer = make()
    shard, other = writer.shard(ID, 0, 0), writer.shard(ID, 1, 0)
    put(writer, shard, b"one")
    put(writer, other, b"two")
    writer.discard(shard)
    assert set(contents(folder)) == {other.key, f"shards/{ID.name}/rank-1.idx"}
    writer.discard(shard)  # again is fine


def test_discard_gives_up_where_the_store_does(make: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make()
    shard = writer.shard(ID, 0, 0)
    put(writer, shard, b"one")
    before = contents(folder)

    def refuse(*_: object) -> None:
        raise StorageError("read-only")

    monkeypatch.setattr("s3dlio.engine.pool.PoolControl.delete", refuse)
    writer.discard(shard)
    assert contents(folder) == before


def test_an_index_that_cannot_be_stored_fails_the_shard(tmp_path: Path, kept_pool: CheckpointStore) -> None:
    with open_store(tmp_path) as store:
        writer = store._writer()
        shard = writer.shard(ID, 0, 0)
        (tmp_path / "shards" / ID.name / "rank-0.idx").mkdir(parents=True)
        job = writer.start(shard, 3)
        job.stage(BufferSource(memoryview(b"abc")))
        with pytest.raises(StorageError, match=r"rank-0\.idx"):
            writer.finish(shard, job.future.result(60))
