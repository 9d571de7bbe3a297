"""Stores that the published package wrote are read (see data/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from s3dlio.catalog import find, list_checkpoints, resolve_latest
from s3dlio.commit import commit
from s3dlio.engine.checksum import crc32c, format_crc32c
from s3dlio.pointer import parse_pointer
from s3dlio.records import ShardRecord
from s3dlio.removal import delete
from tests.store.fake import FakeControl, make_id, save

DATA = Path(__file__).parent / "data" / "published"


def opened(name: str) -> FakeControl:
    control = FakeControl()
    root = DATA / name
    for path in root.rglob("*"):
        if path.is_file():
            control.store(path.relative_to(root).as_posix(), path.read_bytes())
    return control


@pytest.mark.parametrize(
    ("name", "world", "codec", "first"),
    [
        ("flat", 2, "none", "shards/ckpt-7-"),
        ("round_robin_zstd", 2, "zstd", "shards/rr/00/ckpt-7-"),
        ("binary_zstd", 17, "zstd", "shards/bin/0000/ckpt-7-"),
    ],
)
def test_every_shard_of_the_latest_is_found(name: str, world: int, codec: str, first: str) -> None:
    control = opened(name)
    manifest = resolve_latest(control)
    assert manifest is not None
    assert (manifest.step, manifest.epoch, manifest.framework, manifest.format_version) == (7, 3, "torch", 1)
    assert len(manifest.shards) == manifest.world_size == world
    assert manifest.shards[0].key.startswith(first)
    assert manifest.raw_size == (120 if codec == "none" else None)
    for shard in manifest.shards:
        stored, info = control.objects[shard.key]
        raw = zstandard.ZstdDecompressor().decompress(stored, 1 << 20) if shard.codec == "zstd" else stored
        assert (shard.codec, shard.size, shard.index) == (codec, info.size, None)
        assert raw == bytes([65 + shard.rank]) * 40 * (shard.rank + 1)
        assert shard.checksum == format_crc32c(crc32c(raw))


def test_its_pointer_is_understood() -> None:
    control = opened("flat")
    id_ = parse_pointer(control.objects["latest.json"][0])
    assert id_ is not None
    assert id_.manifest_key in control.objects


def test_its_latest_and_its_listing_follow_the_time_of_saving() -> None:
    control = opened("two_steps")
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.step == 5
    infos = list_checkpoints(control)
    assert [(info.step, info.total_size, info.framework) for info in infos] == [(10, 3, "jax"), (5, 4, "jax")]


def test_null_and_absent_fields_are_read() -> None:
    control = opened("flat")
    key = next(key for key in control.keys("manifests/"))
    found = json.loads(control.objects[key][0])
    found["shards"][0].update(checksum=None, etag=None)
    del found["shards"][1]["checksum"], found["shards"][1]["etag"], found["user_meta"]
    control.store(key, json.dumps(found).encode())
    manifest = resolve_latest(control)
    assert manifest is not None
    assert [(shard.checksum, shard.etag) for shard in manifest.shards] == [(None, None), (None, None)]


def test_saves_of_both_live_in_one_store() -> None:
    control = opened("two_steps")
    ours = make_id(4, seconds=100_000)
    save(control, ours)
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == ours
    assert parse_pointer(control.objects["latest.json"][0]) == ours
    assert delete(control, 4)
    assert parse_pointer(control.objects["latest.json"][0]) == find(control, 5).id


def test_its_checkpoints_can_be_deleted() -> None:
    control = opened("binary_zstd")
    assert delete(control, 7)
    assert not control.objects


def test_its_shard_records_can_be_committed() -> None:
    control = opened("flat")
    key = next(key for key in control.keys("manifests/"))
    manifest = find(control, 7)
    dicts = [
        {
            "step": 7,
            "timestamp": manifest.timestamp,
            "rank": shard.rank,
            "key": shard.key,
            "size": shard.size,
            "etag": shard.etag,
            "checksum": shard.checksum,
        }
        for shard in manifest.shards
    ]
    del control.objects[key]
    records = [ShardRecord.from_dict(record) for record in dicts]
    done = commit(control, records, step=7, epoch=3, framework="torch", world_size=2, require_checksums=False)
    assert done.manifest_key == key
