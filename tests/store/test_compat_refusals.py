"""Bad input at the bytes level: a clear error before anything is published, and what was stored before is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import (
    ConfigError,
    CorruptError,
    ManifestError,
    NotFoundError,
    PyCheckpointStore,
    S3dlioError,
    UnsupportedError,
)
from tests.store.live import contents
from tests.store.ranks import Record, commit, save_world


def refuses(
    store: PyCheckpointStore, kind: type[Exception], words: str, call: Callable[[], object], *, stored: bool = False
) -> None:
    """``call`` raises ``kind`` and changes no file of the store."""
    folder = Path(store._store.location.root)
    before = contents(folder)
    assert bool(before) is stored
    with pytest.raises(kind, match=words) as raised:
        call()
    assert isinstance(raised.value, S3dlioError)
    assert isinstance(raised.value, RuntimeError)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "data", ["text", 7, 1.5, None, [1, 2], (b"a",), {"a": b"b"}, iter(b"ab"), range(3), np.array([object()])]
)
def test_what_is_no_buffer_is_refused(published: PyCheckpointStore, data: Any) -> None:
    writer = published.writer(1, 0)
    for call in (
        lambda: published.save(1, 0, "", data),
        lambda: writer.save_distributed_shard(1, 0, "", data),
        lambda: writer.put_shard(data),
    ):
        refuses(published, UnsupportedError, "payload", call)
        refuses(published, TypeError, "payload", call)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"step": -1}, "step must be 0 or more"),
        ({"step": 2**64}, "step must be 0 or more and fit 64 bits"),
        ({"step": 1.0}, "step must be an integer"),
        ({"step": True}, "step must be an integer"),
        ({"epoch": -1}, "epoch must be an integer of 0 or more"),
        ({"epoch": None}, "epoch must be an integer"),
        ({"epoch": True}, "epoch must be an integer"),
        ({"framework": None}, "framework must be"),
        ({"framework": "a\nb"}, "framework must be"),
    ],
)
def test_arguments_are_checked_first(published: PyCheckpointStore, changed: dict[str, Any], words: str) -> None:
    given = {"step": 1, "epoch": 0, "framework": "jax", **changed}
    writer = published.writer(1, 0)
    refuses(published, ConfigError, words, lambda: published.save(**given, data=b"x"))
    refuses(published, ConfigError, words, lambda: writer.save_distributed_shard(**given, data=b"x"))
    refuses(published, ConfigError, words, lambda: writer.get_distributed_shard_stream(**given))
    record = writer.save_distributed_shard(1, 0, "jax", b"x")
    given["shard_metas"] = [record]
    refuses(published, ConfigError, words, lambda: writer.finalize_distributed_checkpoint(**given), stored=True)


@pytest.mark.parametrize("meta", [b"bytes", {1: 2}, float("nan"), {"a": object()}])
def test_user_meta_that_json_cannot_keep_is_refused(published: PyCheckpointStore, meta: Any) -> None:
    refuses(published, ConfigError, "user_meta", lambda: published.save(1, 0, "", b"x", meta))


@pytest.mark.parametrize(
    ("world", "rank"), [(2, 2), (2, -1), (0, 0), (-1, 0), (1, "0"), (1.0, 0), (True, 0), (1, None)]
)
def test_a_rank_outside_the_world_is_refused(published: PyCheckpointStore, world: Any, rank: Any) -> None:
    refuses(published, ConfigError, "rank|world_size", lambda: published.writer(world, rank))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ftp://host/a",), "unknown scheme 'ftp'"),
        (("/folder",), "is no URI"),
        (("file://folder",), "must be absolute"),
        ((7,), "URI must be a string"),
        (("file:///a", "spiral"), "unknown strategy 'spiral'"),
        (("file:///a", None, -1), "multipart_threshold"),
        (("file:///a", None, None, 0), "compression_level must be 1 to 22"),
        (("file:///a", None, None, 23), "compression_level must be 1 to 22"),
    ],
)
def test_options_are_checked_when_the_store_is_opened(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PyCheckpointStore(*arguments)


def missing_rank(records: list[Record]) -> None:
    records.pop()


def duplicate_rank(records: list[Record]) -> None:
    records.append(dict(records[0]))


def outside_rank(records: list[Record]) -> None:
    records.append({**records[1], "rank": 2, "key": records[1]["key"].replace("rank-1", "rank-2"), "index": None})


def other_step(records: list[Record]) -> None:
    records[1].update(step=8, key=records[1]["key"].replace("ckpt-1-", "ckpt-8-"), index=None)


def other_rank(records: list[Record]) -> None:
    records[1].update(key=records[0]["key"], index=None)


def missing_object(records: list[Record]) -> None:
    records[1].update(key=records[1]["key"].replace(records[1]["timestamp"], "x"), timestamp="x", index=None)


def other_size(records: list[Record]) -> None:
    records[1].update(size=99, raw_size=99)


def bad_checksum(records: list[Record]) -> None:
    records[1].update(checksum="crc32c:12345")


def climbing_key(records: list[Record]) -> None:
    records[1].update(key="shards/../../etc/rank-1.bin")


def absolute_key(records: list[Record]) -> None:
    records[1].update(key="/etc/passwd")


def foreign_key(records: list[Record]) -> None:
    records[1].update(key="shards/other/rank-1.bin", index=None, timestamp=None)


def labelled(records: list[Record]) -> None:
    records[1].update(label="another save")


def no_dict(records: list[Record]) -> None:
    records[1] = "rank 1"  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (missing_rank, ManifestError, "1 of 2 ranks are missing: 1"),
        (duplicate_rank, ManifestError, "rank 0 is there twice"),
        (outside_rank, ManifestError, "rank 2 is outside the world of 2"),
        (other_step, ManifestError, "rank 1 hands in metadata of step 8"),
        (other_rank, ManifestError, "is not that of rank 1 at step 1"),
        (missing_object, NotFoundError, "rank 1 listed shards/.*which is not in the store: save that shard again"),
        (other_size, CorruptError, "rank 1 stored 99 bytes as .* the store holds 100"),
        (bad_checksum, ManifestError, "rank 1: checksum 'crc32c:12345' is malformed"),
        (climbing_key, ManifestError, "rank 1.*'..' component"),
        (absolute_key, ManifestError, "rank 1.*must be relative"),
        (foreign_key, ManifestError, "rank 1 names 'shards/other/rank-1.bin', which is no shard"),
        (labelled, ManifestError, "rank 1 belongs to the save 'another save'"),
        (no_dict, ManifestError, "shard record must be an object"),
    ],
)
def test_records_that_make_no_checkpoint_are_refused(
    published: PyCheckpointStore, spoil: Callable[[list[Record]], None], kind: type[Exception], words: str
) -> None:
    published.save(0, 0, "old", b"old")
    records = save_world(published, 2)
    good = [dict(record) for record in records]
    spoil(records)
    refuses(published, kind, words, lambda: commit(published, records), stored=True)
    assert published.load_latest() == b"old"
    commit(published, good)


@pytest.mark.parametrize("records", [{}, "rank 0", None, iter([])])
def test_records_that_are_no_list_are_refused(published: PyCheckpointStore, records: Any) -> None:
    refuses(published, ConfigError, "shard_metas must be a list of shard records", lambda: commit(published, records))


def test_records_of_another_step_are_refused(published: PyCheckpointStore) -> None:
    records = save_world(published, 2)
    refuses(published, ManifestError, "metadata of step 1", lambda: commit(published, records, step=2), stored=True)


def test_an_object_that_was_cut_short_is_refused(published: PyCheckpointStore, folder: Path) -> None:
    records = save_world(published, 2)
    (folder / records[1]["key"]).write_bytes(b"\1" * 60)
    words = "rank 1 stored 100 bytes as .* the store holds 60"
    refuses(published, CorruptError, words, lambda: commit(published, records), stored=True)


def test_load_latest_refuses_a_checkpoint_of_several_ranks(published: PyCheckpointStore) -> None:
    commit(published, save_world(published, 2))
    refuses(published, ConfigError, r"step 1 was saved by 2 ranks: take reader\(\)", published.load_latest, stored=True)


def test_only_a_rank_of_a_manifest_is_read(published: PyCheckpointStore) -> None:
    commit(published, save_world(published, 2))
    reader = published.reader()
    manifest = reader.load_latest_manifest()
    assert manifest is not None
    ranks: list[Any] = [2, -1, "0", None, True]
    for rank in ranks:
        read = partial(reader.read_shard_by_rank, manifest, rank)
        refuses(published, ConfigError, "is not among the 2 ranks of step 1", read, stored=True)
    hostile = json.loads(json.dumps(manifest))
    hostile["shards"][0]["key"] = "shards/../../etc/passwd"
    manifests: list[Any] = [hostile, {}, [], None, "manifest", {**manifest, "format_version": 3}]
    for wrong in manifests:
        read = partial(reader.read_shard_by_rank, wrong, 0)
        refuses(published, ManifestError, "manifest", read, stored=True)


def test_bytes_that_changed_are_not_given_out(published: PyCheckpointStore, folder: Path) -> None:
    records = save_world(published, 2)
    commit(published, records)
    manifest = published.reader().load_latest_manifest()
    assert manifest is not None
    read = published.reader().read_shard_by_rank
    (folder / records[1]["key"]).write_bytes(b"\1" * 50 + b"\0" + b"\1" * 49)
    refuses(published, CorruptError, "rank-1.bin", lambda: read(manifest, 1), stored=True)
    (folder / records[1]["key"]).write_bytes(b"\1" * 50)
    refuses(published, CorruptError, "rank-1.bin", lambda: read(manifest, 1), stored=True)
    (folder / records[1]["key"]).unlink()
    refuses(published, NotFoundError, "rank-1.bin", lambda: read(manifest, 1), stored=True)
    assert read(manifest, 0) == b"\0" * 100
