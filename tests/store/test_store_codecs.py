"""Compression through the store: what the index says, what lies in the folder, and when ``auto`` encodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from s3dlio import CheckpointStore
from s3dlio.catalog import find
from s3dlio.engine.auto import Auto

from .live import MIB, assert_same, contents, index_of, open_store, random_bytes, smooth_floats

STATE: dict[str, Any] = {"smooth": smooth_floats(1_000_000), "noise": np.frombuffer(random_bytes(3 * MIB), np.uint8)}


@pytest.fixture(autouse=True)
def pool(kept_pool: CheckpointStore) -> CheckpointStore:
    return kept_pool


def codecs(store: CheckpointStore, step: int) -> list[str]:
    """The codec of each chunk, in order."""
    return [chunk.codec for chunk in index_of(store, step).chunks]


def test_none_stores_raw_chunks(store: CheckpointStore) -> None:
    info = store.save(1, STATE)
    assert set(codecs(store, 1)) == {"none"}
    assert info.total_size == info.raw_size


@pytest.mark.parametrize("level", [1, 3])
def test_zstd_is_a_stream_that_any_zstd_reads(folder: Path, level: int) -> None:
    with open_store(folder, compression="zstd", compression_level=level) as store:
        info = store.save(1, STATE)
        assert set(codecs(store, 1)) == {"zstd"}
        assert info.total_size < (info.raw_size or 0)
        (key,) = (record.key for record in find(store.control(), 1).shards)
        assert key.endswith("rank-0.bin.zst")
        stream = zstandard.ZstdDecompressor().stream_reader(contents(folder)[key], read_across_frames=True)
        assert stream.read() == store.read_shard()
        assert_same(store.load(), STATE)


def test_grouped_keeps_what_does_not_shrink_raw(folder: Path) -> None:
    with open_store(folder, compression="zstd-grouped") as store:
        info = store.save(1, STATE)
        index = index_of(store, 1)
        assert {chunk.codec for chunk in index.chunks} == {"none", "zstd-grouped"}
        assert all((chunk.codec == "none") == (chunk.stored_size == chunk.raw_size) for chunk in index.chunks)
        assert index.codec == "zstd-grouped"
        assert info.total_size < (info.raw_size or 0)
        assert next(record.key for record in find(store.control(), 1).shards).endswith("rank-0.bin")
        assert_same(store.load(), STATE)


def test_auto_encodes_the_chunks_that_it_chose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = iter([True, False] * 50)
    monkeypatch.setattr(Auto, "choose", lambda _: next(choices))
    with open_store(folder, compression="auto") as store:
        store.save(1, {"smooth": STATE["smooth"]})
        found = codecs(store, 1)
        assert len(found) > 3
        assert found == (["zstd-grouped", "none"] * 50)[: len(found)]
        assert next(record.codec for record in find(store.control(), 1).shards) == "auto"
        assert_same(store.load(), {"smooth": STATE["smooth"]})


def test_auto_probes_at_first(folder: Path) -> None:
    with open_store(folder, compression="auto") as store:
        store.save(1, {"smooth": STATE["smooth"]})
        assert codecs(store, 1)[0] == "zstd-grouped"


def test_auto_never_encodes_on_direct(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Auto, "choose", lambda _: True)
    with open_store(folder, "direct", compression="auto") as store:
        store.save(1, STATE)
        index = index_of(store, 1)
        assert (index.codec, index.chunks.codecs()) == ("none", {"none"})
        assert_same(store.load(), STATE)


@pytest.mark.parametrize("codec", ["zstd", "zstd-grouped"])
def test_direct_encodes_when_it_is_told_to(folder: Path, codec: str) -> None:
    with open_store(folder, "direct", compression=codec) as store:
        store.save(1, STATE)
        assert codec in index_of(store, 1).chunks.codecs()
        assert_same(store.load(), STATE)


@pytest.mark.parametrize("codec", ["none", "zstd", "zstd-grouped", "auto"])
def test_nothing_at_all_is_stored_plainly(folder: Path, codec: str) -> None:
    with open_store(folder, compression=codec) as store:
        info = store.save(1, b"")
        assert (info.total_size, info.raw_size) == (0, 0)
        assert contents(folder)[f"shards/{info.id}/rank-0.bin"] == b""
        assert store.load() == b""


def test_every_store_reads_every_codec(folder: Path) -> None:
    for step, codec in enumerate(["none", "zstd", "zstd-grouped", "auto"]):
        with open_store(folder, compression=codec) as store:
            store.save(step, STATE)
    with open_store(folder, "direct") as store:
        for step in range(4):
            assert_same(store.load(step), STATE)
            assert store.verify(step).ok
