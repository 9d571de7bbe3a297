from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from s3dlio.catalog import resolve_latest
from s3dlio.commit import commit
from s3dlio.engine.errors import (
    ConfigError,
    CorruptError,
    DeadlineError,
    ManifestError,
    NotFoundError,
    PreconditionError,
    S3dlioError,
    StorageError,
)
from s3dlio.ids import CheckpointId
from s3dlio.manifest import Manifest
from s3dlio.pointer import POINTERS, advance, encode_pointer, parse_pointer
from s3dlio.records import ShardRecord
from tests.store.fake import FakeControl, make_id, make_record, save, store_shards

ID = make_id(7)


def do_commit(control: FakeControl, records: list[ShardRecord], world: int = 2, **options: Any) -> Any:
    options = {"step": 7, "epoch": 1, "framework": "torch", "world_size": world, **options}
    return commit(control, records, **options)


def pointed(control: FakeControl) -> list[CheckpointId | None]:
    return [parse_pointer(control.objects[key][0]) if key in control.objects else None for key in POINTERS]


def test_a_commit_publishes_the_manifest_and_both_pointers() -> None:
    control = FakeControl()
    records = store_shards(control, ID, 2)
    done = do_commit(control, records[::-1], user_meta={"shape": (1, 2)})
    assert done.manifest_key == ID.manifest_key
    assert done.pointed
    manifest = resolve_latest(control)
    assert manifest == done.manifest
    assert manifest is not None
    assert [shard.rank for shard in manifest.shards] == [0, 1]
    assert manifest.user_meta == {"shape": [1, 2]}
    assert pointed(control) == [ID, ID]
    assert json.loads(control.objects["latest.json"][0]) == {
        "manifest_key": ID.manifest_key,
        "global_step": 7,
        "ts": ID.timestamp,
    }


def test_the_manifest_is_named_by_rank_0_where_each_shard_has_its_own_id() -> None:
    control = FakeControl()
    other = make_id(7, seconds=1, suffix="11111111")
    records = [store_shards(control, ID, 1)[0], store_shards(control, other, 2)[1]]
    assert do_commit(control, records).manifest_key == ID.manifest_key


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda records: records[:1], "1 of 2 ranks are missing: 1"),
        (lambda records: [], "2 of 2 ranks are missing"),
        (lambda records: [records[0], records[0]], "rank 0 is there twice"),
        (lambda records: [*records, make_record(ID, 2)], "rank 2 is outside the world of 2"),
        (lambda records: [records[0], make_record(make_id(8), 1)], "metadata of step 8"),
        (lambda records: [records[0], replace(records[1], checksum=None)], "rank 1 hands in no checksum"),
        (lambda records: [records[0], replace(records[1], checksum="crc32c:123")], "malformed"),
        (lambda records: [records[0], replace(records[1], key="../x")], "not a key"),
        (
            lambda records: [records[0], replace(records[1], key="shards/x", timestamp="", index=None)],
            "no shard of a checkpoint",
        ),
        (lambda records: [records[0], replace(records[1], key=records[0].key, index=None)], "not that of rank 1"),
        (lambda records: [records[0], replace(records[1], key=records[0].key)], "rank 1: index: .* beside"),
        (lambda records: [records[0], replace(records[1], size=-1)], "size"),
        (lambda records: [records[0], replace(records[1], label="job-2")], "'job-2'"),
    ],
)
def test_records_that_make_no_checkpoint_are_refused(
    change: Callable[[list[ShardRecord]], list[ShardRecord]], reason: str
) -> None:
    control = FakeControl()
    records = change(store_shards(control, ID, 2))
    with pytest.raises(ManifestError, match=reason):
        do_commit(control, records)
    assert not control.keys("manifests/")


@pytest.mark.parametrize(
    "options",
    [
        {"step": -1},
        {"epoch": -1},
        {"epoch": "1"},
        {"framework": 3},
        {"framework": "a\n"},
        {"world_size": 0},
        {"user_meta": {"a": float("nan")}},
        {"label": "../x"},
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any]) -> None:
    control = FakeControl()
    records = store_shards(control, ID, 2)
    with pytest.raises(ConfigError):
        do_commit(control, records, **options)
    assert not control.keys("manifests/")


def test_at_the_bytes_level_a_checksum_may_be_absent_but_not_malformed() -> None:
    control = FakeControl()
    records = [replace(record, checksum=None) for record in store_shards(control, ID, 2)]
    assert do_commit(control, records, require_checksums=False).pointed
    with pytest.raises(ManifestError, match="malformed"):
        do_commit(control, [records[0], replace(records[1], checksum="zz")], require_checksums=False)


def test_a_label_is_kept_with_the_checkpoint() -> None:
    control = FakeControl()
    records = [replace(record, label="job-1") for record in store_shards(control, ID, 2)]
    assert do_commit(control, records, label="job-1").manifest.label == "job-1"
    with pytest.raises(ManifestError, match="belongs to the save 'job-1', not None"):
        do_commit(control, records)


@pytest.mark.parametrize("world", [2, 20])
@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_listed_object_that_is_missing_is_named(world: int, ending: str) -> None:
    control = FakeControl()
    records = store_shards(control, ID, world)
    key = f"shards/{ID.name}/rank-1{ending}"
    del control.objects[key]
    with pytest.raises(NotFoundError, match=f"rank 1 listed {key}"):
        do_commit(control, records, world)
    assert not control.keys("manifests/")


@pytest.mark.parametrize("world", [2, 20])
@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_listed_object_of_another_size_is_named(world: int, ending: str) -> None:
    control = FakeControl()
    records = store_shards(control, ID, world)
    key = f"shards/{ID.name}/rank-1{ending}"
    control.store(key, b"other size")
    with pytest.raises(CorruptError, match=f"{key}, the store holds 10"):
        do_commit(control, records, world)
    assert not control.keys("manifests/")


def test_many_shards_of_one_folder_are_checked_by_a_listing() -> None:
    control = FakeControl()
    do_commit(control, store_shards(control, ID, 500), 500)
    assert control.count("list") == 1
    assert control.count("head") == 0


def fail(error: S3dlioError, only: str = "") -> Callable[[str], None]:
    def hook(key: str) -> None:
        if key.startswith(only):
            raise error

    return hook


@pytest.mark.parametrize(
    "error", [PreconditionError("exists"), StorageError("timed out", transient=True), DeadlineError("no reply")]
)
def test_a_lost_reply_is_not_believed_when_the_manifest_is_there(error: S3dlioError) -> None:
    control = FakeControl()
    control.after["put"] = fail(error, "manifests/ckpt-")
    assert save(control, ID).pointed
    assert resolve_latest(control) is not None


def test_a_request_that_failed_leaves_nothing_committed() -> None:
    control = FakeControl()
    control.before["put"] = fail(StorageError("refused"), "manifests/ckpt-")
    with pytest.raises(StorageError, match="refused"):
        save(control, ID)
    assert resolve_latest(control) is None
    assert pointed(control) == [None, None]


def test_a_failure_that_cannot_be_looked_into_is_raised_as_it_was() -> None:
    control = FakeControl()
    control.before["put"] = fail(StorageError("refused"), "manifests/ckpt-")
    control.before["read"] = fail(StorageError("no reading"))
    with pytest.raises(StorageError, match="refused"):
        save(control, ID)


@pytest.mark.parametrize("there", [b"{}", b"{", None], ids=["not one", "torn", "other"])
def test_an_id_taken_by_another_checkpoint_is_refused_and_left_alone(there: bytes | None) -> None:
    control = FakeControl()
    records = store_shards(control, ID, 2)
    if there is None:
        there = do_commit(control, records, epoch=2).manifest.encode()
    control.store(ID.manifest_key, there)
    with pytest.raises(PreconditionError, match="taken by another checkpoint"):
        do_commit(control, records)
    assert control.objects[ID.manifest_key][0] == there


def test_every_rank_may_commit_the_same_records() -> None:
    control = FakeControl()
    records = store_shards(control, ID, 2)
    first = do_commit(control, records, wall_time="2026-11-23T20:33:42+00:00", user_meta={"shape": (1,)})
    second = do_commit(control, records, wall_time="2026-11-23T20:33:43+00:00", user_meta={"shape": (1,)})
    assert second == first


def test_the_same_step_saved_twice_survives_under_both_ids() -> None:
    control = FakeControl()
    first, second = make_id(7, suffix="aaaaaaaa"), make_id(7, suffix="bbbbbbbb")
    save(control, first)
    save(control, second)
    assert {first.manifest_key, second.manifest_key} <= control.keys()


# The pointers


def test_the_pointer_follows_the_save_start_even_to_a_lower_step() -> None:
    control = FakeControl()
    save(control, make_id(1000, 0))
    save(control, make_id(500, 1))
    assert pointed(control) == [make_id(500, 1)] * 2


def test_a_save_that_started_earlier_does_not_move_the_pointer_back() -> None:
    control = FakeControl()
    save(control, make_id(8, 1))
    assert save(control, make_id(7, 0)).pointed
    assert pointed(control) == [make_id(8, 1)] * 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"manif',
        b"[]",
        b'{"manifest_key": 5}',
        b'{"manifest_key": "../../etc/passwd"}',
        encode_pointer(make_id(9, 10**6)),
        b" " * (1 << 17),
    ],
    ids=["empty", "torn", "list", "number", "hostile", "dangling into the future", "huge"],
)
def test_a_pointer_that_names_nothing_is_overwritten(content: bytes) -> None:
    control = FakeControl()
    for key in POINTERS:
        control.store(key, content)
    assert save(control, ID).pointed
    assert pointed(control) == [ID, ID]


def test_a_lost_race_is_run_again() -> None:
    control = FakeControl()
    between = make_id(7, 1)
    save(control, make_id(7, 0))
    store_shards(control, between)
    races = iter([between])

    def somebody_else(key: str) -> None:
        if key in POINTERS and (winner := next(races, None)):
            control.store(key, encode_pointer(winner))

    control.before["put"] = somebody_else
    assert save(control, make_id(8, 2)).pointed
    assert pointed(control) == [make_id(8, 2)] * 2


def test_a_pointer_that_is_created_between_is_respected() -> None:
    control = FakeControl()
    newer = make_id(9, 9)
    save(control, newer)
    for key in POINTERS:
        del control.objects[key]
    control.before["put"] = lambda key: None if key not in POINTERS else _create(control, key, newer)
    assert save(control, make_id(8, 2)).pointed
    assert pointed(control) == [newer, newer]


def _create(control: FakeControl, key: str, id_: CheckpointId) -> None:
    control.store(key, encode_pointer(id_))


def test_a_pointer_that_always_moves_is_given_up_and_told(caplog: pytest.LogCaptureFixture) -> None:
    control = FakeControl()
    save(control, make_id(7, 0))
    control.before["put"] = lambda key: _create(control, key, make_id(7, 0)) if key in POINTERS else None
    assert not save(control, make_id(8, 1)).pointed
    assert "lost 16 races" in caplog.text
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.step == 8


@pytest.mark.parametrize("operation", ["put", "read"])
def test_a_pointer_that_fails_does_not_fail_the_commit(operation: str, caplog: pytest.LogCaptureFixture) -> None:
    control = FakeControl()
    control.before[operation] = fail(StorageError("no", transient=True), "latest.json")
    assert not save(control, ID).pointed
    assert pointed(control) == [ID, None]
    assert "committed nevertheless" in caplog.text


def test_a_resent_pointer_meets_its_own_write() -> None:
    control = FakeControl()
    control.after["put"] = lambda key: fail(PreconditionError("resent"))(key) if key in POINTERS else None
    assert save(control, ID).pointed
    assert control.count("put") == 3


def test_death_between_manifest_and_pointer_leaves_the_new_checkpoint_the_latest() -> None:
    control = FakeControl()
    save(control, make_id(7, 0))
    control.before["put"] = fail(DeadlineError("killed"), "manifests/latest")
    save(control, make_id(8, 1))
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == make_id(8, 1)


def test_a_commit_costs_few_requests() -> None:
    control = FakeControl()
    save(control, ID)
    assert [call for call in control.calls if call[0] == "put"] == [
        ("put", ID.manifest_key),
        ("put", POINTERS[0]),
        ("put", POINTERS[1]),
    ]
    assert control.count("read") == 2


def test_advance_alone_leaves_a_newer_pointer() -> None:
    control = FakeControl()
    save(control, make_id(9, 9))
    assert advance(control, ID)
    assert pointed(control) == [make_id(9, 9)] * 2


def test_the_manifest_in_the_store_is_the_one_returned() -> None:
    control = FakeControl()
    done = save(control, ID, 3)
    assert Manifest.decode(control.objects[done.manifest_key][0], done.manifest_key) == done.manifest
