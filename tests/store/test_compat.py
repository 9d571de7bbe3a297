"""``PyCheckpointStore`` and the bytes level: what is saved comes back."""

from __future__ import annotations

import array
import json
import mmap
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from s3dlio import (
    CheckpointInfo,
    CheckpointStore,
    ManifestError,
    PyCheckpointStore,
)
from s3dlio.payload import Payload
from tests.store.live import MIB, SMALL, open_store, random_bytes
from tests.store.ranks import commit, save_world


@pytest.mark.parametrize("level", [None, 3])
@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        (None, ["", ""]),
        ("FLAT", ["", ""]),
        ("RoundRobin", ["rr/00/", "rr/01/"]),
        ("binary", ["bin/0000/", "bin/1000/"]),
    ],
)
@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_every_rank_reads_its_bytes(
    kept_pool: CheckpointStore, folder: Path, scheme: str, strategy: str | None, folders: list[str], level: int | None
) -> None:
    data = [random_bytes(MIB).ljust(2 * MIB, b"x"), b"rank one"]
    with PyCheckpointStore(f"{scheme}://{folder}", strategy, None, level, **SMALL) as store:
        records = [store.writer(2, r).save_distributed_shard(7, 3, "jax", data[r]) for r in range(2)]
        key = store.writer(2, 1).finalize_distributed_checkpoint(7, 3, "jax", records[::-1], {"loss": 0.5})
        manifest = store.reader().load_latest_manifest()
        assert manifest is not None
        for rank, prefix in enumerate(folders):
            found = store.reader().read_shard_by_rank(manifest, rank)
            assert found == data[rank]
            assert isinstance(found, Payload)
            record = manifest["shards"][rank]
            assert record["key"].startswith(f"shards/{prefix}ckpt-7-")
            assert record["key"].endswith(f"/rank-{rank}.bin{'' if level is None else '.zst'}")
            assert record["size"] == (folder / record["key"]).stat().st_size
    assert key == f"manifests/ckpt-7-{records[0]['timestamp']}.json"
    stored = json.loads((folder / key).read_text())
    assert stored.pop("checksum").startswith("crc32c:")
    assert stored == manifest
    assert {name: value for name, value in manifest.items() if name not in ("shards", "wall_time")} == {
        "format_version": 1,
        "framework": "jax",
        "global_step": 7,
        "epoch": 3,
        "world_size": 2,
        "status": "complete",
        "user_meta": {"loss": 0.5},
        "label": None,
    }


def test_a_record_is_a_plain_dict(published: PyCheckpointStore) -> None:
    record = published.writer(2, 1).save_distributed_shard(4, 2, "pytorch", b"123456789")
    assert json.loads(json.dumps(record)) == record
    expected = {"rank": 1, "size": 9, "step": 4, "epoch": 2, "checksum": "crc32c:e3069283", "codec": "none"}
    assert {name: record[name] for name in expected} == expected
    assert record["key"] == f"shards/ckpt-4-{record['timestamp']}/rank-1.bin"
    assert record["etag"]


def test_one_rank_saves_and_loads(published: PyCheckpointStore) -> None:
    assert published.load_latest() is None
    assert published.reader().load_latest_manifest() is None
    assert published.list_checkpoints() == []
    assert published.delete_checkpoint(1) is False
    keys = [published.save(step, 1, "jax", f"step {step}".encode(), {"n": step}) for step in (10, 5)]
    latest = published.load_latest()
    assert latest is not None
    assert (latest, latest.to_bytes(), latest.decode(), len(latest)) == (b"step 5", b"step 5", "step 5", 6)
    infos = published.list_checkpoints()
    assert all(isinstance(info, CheckpointInfo) for info in infos)
    assert [(i.step, i.epoch, i.total_size, i.manifest_key, i.user_meta) for i in infos] == [
        (10, 1, 7, keys[0], {"n": 10}),
        (5, 1, 6, keys[1], {"n": 5}),
    ]
    assert published.delete_checkpoint(5) is True
    assert published.load_latest() == b"step 10"


def test_an_empty_payload_is_a_checkpoint(published: PyCheckpointStore) -> None:
    published.save(1, 0, "", b"")
    assert published.load_latest() == b""


GRID = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "data",
    [
        bytearray(b"abc"),
        memoryview(b"abcdef").cast("H"),
        memoryview(b"abcdef")[::2],
        array.array("d", [1.5, 2.5]),
        GRID,
        GRID.T,
        GRID[::2, 1::2],
        np.asfortranarray(GRID),
        np.array(7, dtype=np.int64),
        np.empty((0, 3), dtype=np.float64),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["2026-01-01"], dtype="datetime64[ns]"),
        np.array([5], dtype="timedelta64[s]"),
        np.array([(1, 2.0)], dtype=[("a", "i2"), ("b", "f8")]),
        np.array([1, 2], dtype=">i4"),
        np.arange(4, dtype=ml_dtypes.bfloat16),
        np.arange(8, dtype=ml_dtypes.bfloat16)[::2],
        np.arange(4, dtype=ml_dtypes.float8_e4m3fn),
    ],
    ids=lambda data: f"{type(data).__name__}-{getattr(data, 'dtype', '')}-{getattr(data, 'shape', '')}",
)
def test_any_buffer_is_saved(published: PyCheckpointStore, data: Any) -> None:
    published.save(1, 0, "numpy", data)
    assert published.load_latest() == np.ascontiguousarray(data).tobytes()


def test_a_mapping_and_a_loaded_payload_are_saved(published: PyCheckpointStore) -> None:
    with mmap.mmap(-1, 4096) as mapping:
        mapping[:3] = b"abc"
        published.save(1, 0, "", mapping)
    loaded = published.load_latest()
    published.save(2, 0, "", loaded)
    assert published.load_latest() == b"abc".ljust(4096, b"\0")


def test_numpy_integers_are_numbers(published: PyCheckpointStore) -> None:
    writer = published.writer(np.int64(1), np.int32(0))
    record = writer.save_distributed_shard(np.int64(3), np.int16(4), "jax", b"x")
    assert (record["step"], record["epoch"]) == (3, 4)
    writer.finalize_distributed_checkpoint(np.uint64(3), np.int16(4), "jax", [record])
    manifest = published.reader().load_latest_manifest()
    assert manifest is not None
    assert published.reader().read_shard_by_rank(manifest, np.uint8(0)) == b"x"


def test_a_step_saved_twice_at_once_is_there_twice(published: PyCheckpointStore) -> None:
    start = threading.Barrier(4)
    keys: list[str] = []

    def save(number: int) -> None:
        start.wait()
        keys.append(published.save(1, 0, "", bytes([number]) * 100_000, number))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    infos = published.list_checkpoints()
    assert sorted(info.manifest_key for info in infos) == sorted(keys)
    assert len(set(keys)) == 4
    read = published.reader().read_shard_by_rank
    for info in infos:
        manifest = json.loads((Path(published._store.location.root) / info.manifest_key).read_text())
        assert read(manifest, 0) == bytes([info.user_meta]) * 100_000


def test_committing_again_gives_the_same_checkpoint(published: PyCheckpointStore) -> None:
    records = save_world(published, 2)
    assert commit(published, records) == commit(published, records)
    assert len(published.list_checkpoints()) == 1


def test_records_without_checksums_are_committed(published: PyCheckpointStore) -> None:
    """As the published package makes them."""
    keep = ("rank", "key", "size", "step", "timestamp")
    records = [{name: record[name] for name in keep} for record in save_world(published, 2)]
    records[0]["checksum"] = records[0]["etag"] = None
    commit(published, records)
    manifest = published.reader().load_latest_manifest()
    assert manifest is not None
    assert [shard["checksum"] for shard in manifest["shards"]] == [None, None]
    assert published.reader().read_shard_by_rank(manifest, 1) == b"\1" * 100


def test_no_shard_of_a_commit_is_a_leftover(published: PyCheckpointStore) -> None:
    """Each rank's shard lies under an id of its own."""
    commit(published, save_world(published, 2))
    save_world(published, 2, step=2)
    commit(published, save_world(published, 2, step=3), step=3)
    assert published._store.cleanup(min_age=0) == 4  # shards and indexes of step 2
    for step in (1, 3):
        assert published._store.verify(step).shards == 2


# the Rust-side names


def test_the_state_level_store_has_the_bytes_level(store: CheckpointStore) -> None:
    writers = [store.writer(2, rank) for rank in range(2)]
    records = [writer.put_shard(f"rank {rank}".encode(), step=9) for rank, writer in enumerate(writers)]
    key = writers[0].write_manifest(3, "jax", records, {"a": 1})
    assert store.info(9).manifest_key == key
    assert (store.info(9).epoch, store.info(9).framework, store.info(9).user_meta) == (3, "jax", {"a": 1})
    assert store.load(rank=1) == b"rank 1"
    assert writers[0].put_shard(b"")["step"] == 0
    with pytest.raises(ManifestError, match="no shard records, 2 ranks"):
        writers[0].write_manifest(3, "jax", [])


def test_a_commit_prunes(kept_pool: CheckpointStore, folder: Path) -> None:
    with open_store(folder, keep_last=2) as store:
        writer = store.writer(1, 0)
        for step in range(4):
            writer.write_manifest(0, "", [writer.put_shard(b"x", step)])
        assert [info.step for info in store.list()] == [2, 3]


def test_a_state_is_read_as_its_file(store: CheckpointStore, published: PyCheckpointStore) -> None:
    store.save(1, {"w": np.arange(3.0)})
    found = published.load_latest()
    assert found == store.read_shard()
