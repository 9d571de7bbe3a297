"""A shard far larger than the memory number, while workers die at random: every byte is compared on its way back."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from s3dlio import CheckpointStore
from s3dlio.content import width_runs
from s3dlio.engine.job import SaveJob
from s3dlio.ids import IdClock
from s3dlio.reader import ShardReader, Wanted
from s3dlio.records import ShardRecord
from s3dlio.writer import ShardWriter

from .killing import Killer
from .pattern import Pattern

MIB = 1 << 20
PIECE = 64 * MIB
"""Bytes of one comparison while loading."""


@dataclass(frozen=True)
class Size:
    """``total`` bytes through ``memory`` in chunks of ``chunk``; a worker dies every ``every`` results in the mean."""

    total: int
    memory: int
    chunk: int
    every: int


FULL = Size(total=8 << 30, memory=512 * MIB, chunk=16 * MIB, every=30)
REDUCED = Size(total=256 * MIB + 12345, memory=64 * MIB, chunk=2 * MIB, every=20)
SIZES = [
    pytest.param(FULL, marks=[pytest.mark.stress, pytest.mark.timeout(400)], id="8GiB"),
    pytest.param(REDUCED, marks=pytest.mark.slow, id="256MiB"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)  # gigabytes: not for pytest to keep


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Killer]:
    """Killers put here are told of every result of a save."""
    killers: list[Killer] = []
    on_done = SaveJob.on_done

    def told(job: SaveJob, token: Any, value: Any) -> None:
        for killer in killers:
            killer.tick()
        on_done(job, token, value)

    monkeypatch.setattr(SaveJob, "on_done", told)
    return killers


def save_source(store: CheckpointStore, pattern: Pattern) -> ShardRecord:
    """Stage the pattern as a state's bytes are, from several threads."""
    writer = ShardWriter(store._use_pool(), store.location, store.config)
    shard = writer.shard(IdClock().mint(1), 0, 0)
    job = writer.start(shard, pattern.total, width_runs(((0, pattern.total, 4),)))
    assert job.stage(pattern)
    return writer.finish(shard, job.future.result())


def save_stream(store: CheckpointStore, pattern: Pattern) -> ShardRecord:
    """Write the pattern as a stream, in pieces that are no chunks."""
    piece = ctypes.create_string_buffer(5 * MIB + 1)
    with store.writer(1, 0).get_distributed_shard_stream(1, 0, "bytes") as stream:
        for at in range(0, pattern.total, len(piece)):
            count = min(len(piece), pattern.total - at)
            pattern.fill(ctypes.addressof(piece), at, at + count)
            assert stream.write_chunk(memoryview(piece)[:count]) == count
        return ShardRecord.from_dict(stream.finalize())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("scheme", "codec", "save"),
    [
        ("direct", "none", save_source),
        ("file", "zstd-grouped", save_source),
        ("direct", "zstd", save_stream),
        ("file", "none", save_stream),
    ],
    ids=["raw", "grouped", "zstd-stream", "raw-stream"],
)
def test_every_byte_survives(
    folder: Path, killed: list[Killer], size: Size, scheme: str, codec: str, save: Any
) -> None:
    pattern = Pattern(20261123, size.total, smooth=codec != "none")
    before = psutil.Process().memory_info().rss
    store = CheckpointStore(
        f"{scheme}://{folder}",
        memory=size.memory,
        chunk_size=size.chunk,
        workers=2,
        compression=codec,
        compression_level=1,
    )
    with store:
        assert store.latest() is None  # the workers run
        killed.append(Killer(store._use_pool(), seed=1, every=size.every))
        record = save(store, pattern)
        assert killed[0].kills >= 3
        assert record.raw_size == size.total
        assert (record.size < 0.95 * size.total) == (codec != "none")
        store.writer(1, 0).finalize_distributed_checkpoint(1, 0, "bytes", [record.to_dict()])
        load_and_compare(store, record, pattern, Killer(store._use_pool(), seed=2, every=size.every))
        pool = store._use_pool()
        assert pool.arena.free == pool.arena.slots
        grown = psutil.Process().memory_info().rss - before
        assert grown < size.memory + 96 * MIB, f"{grown >> 20} MiB"


def load_and_compare(store: CheckpointStore, record: ShardRecord, pattern: Pattern, killer: Killer) -> None:
    """Read the shard through slots, comparing each chunk where it lies."""
    reader = ShardReader(store._use_pool(), store.location)
    index = reader.index(record)
    assert index is not None
    compared: list[int] = []

    def take(first: int) -> Any:
        def compare(address: int, start: int, stop: int) -> None:
            pattern.check(address, first + start, first + stop)
            compared.append(stop - start)
            killer.tick()

        return compare

    total = pattern.total
    reader.pieces(record, index, [Wanted(at, min(at + PIECE, total), take(at)) for at in range(0, total, PIECE)])
    assert sum(compared) == total
    assert killer.kills >= 3
