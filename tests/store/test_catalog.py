from __future__ import annotations

import json

import pytest

import s3dlio.catalog as catalog_module
from s3dlio.catalog import find, list_checkpoints, list_ids, read_manifest, resolve_latest
from s3dlio.engine.errors import CheckpointNotFoundError, ManifestError, NotFoundError, StorageError
from s3dlio.info import UNREADABLE
from s3dlio.pointer import POINTERS, encode_pointer
from tests.store.fake import FakeControl, make_id, save

A, B, C = make_id(1000, 0), make_id(500, 1), make_id(510, 2)


@pytest.fixture
def control() -> FakeControl:
    """Saved at step 1000, rolled back to 500, then 510."""
    control = FakeControl()
    for id_ in (C, A, B):
        save(control, id_)
    control.calls.clear()
    return control


def test_the_latest_is_the_newest_save_not_the_greatest_step(control: FakeControl) -> None:
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == C


def test_the_latest_costs_one_listing_and_one_read(control: FakeControl) -> None:
    resolve_latest(control)
    assert control.calls == [("list", "manifests/"), ("read", C.manifest_key)]


def test_an_empty_store_has_no_latest() -> None:
    assert resolve_latest(FakeControl()) is None
    assert list_checkpoints(FakeControl()) == []


@pytest.mark.parametrize("content", [None, b"", b'{"manifest_key"', encode_pointer(make_id(9, 99)), encode_pointer(A)])
def test_no_pointer_can_matter(control: FakeControl, content: bytes | None) -> None:
    for key in POINTERS:
        if content is None:
            del control.objects[key]
        else:
            control.store(key, content)
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == C
    assert [info.id for info in list_checkpoints(control)] == [A.name, B.name, C.name]


def test_shards_without_a_manifest_are_invisible(control: FakeControl) -> None:
    control.store("shards/ckpt-520-20261124-000000/rank-0.bin", b"x")
    control.store("manifests/ckpt-520-20261124-000000.json.part", b"{}")
    control.store("manifests/notes.json", b"{}")
    assert list_ids(control) == [A, B, C]


def test_listing_is_in_order_of_saving(control: FakeControl) -> None:
    infos = list_checkpoints(control)
    assert [(info.step, info.id) for info in infos] == [(1000, A.name), (500, B.name), (510, C.name)]
    assert all(info.is_complete for info in infos)


def test_find_gives_the_newest_save_of_a_step(control: FakeControl) -> None:
    again = make_id(500, 9, "bbbbbbbb")
    save(control, again)
    assert find(control, 500).id == again
    assert find(control, 1000).id == A


def test_find_does_not_take_a_step_for_another_that_begins_alike(control: FakeControl) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no committed checkpoint of step 50; .* 500, 510, 1000"):
        find(control, 50)


def test_find_in_an_empty_store_says_so() -> None:
    with pytest.raises(CheckpointNotFoundError, match="none"):
        find(FakeControl(), 1)


def test_a_damaged_newest_manifest_is_told_and_the_others_still_load(control: FakeControl) -> None:
    data, _ = control.objects[C.manifest_key]
    control.store(C.manifest_key, data[:-20])
    with pytest.raises(ManifestError, match=f"{C.manifest_key} is not valid JSON .* name another step"):
        resolve_latest(control)
    assert find(control, 500).id == B


def test_a_damaged_older_manifest_does_not_hide_the_latest(control: FakeControl) -> None:
    control.store(B.manifest_key, b"")
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == C


def test_a_damaged_manifest_is_listed_as_unreadable(control: FakeControl, caplog: pytest.LogCaptureFixture) -> None:
    control.store(B.manifest_key, b"")
    infos = list_checkpoints(control)
    assert [info.status for info in infos] == ["complete", UNREADABLE, "complete"]
    assert (infos[1].id, infos[1].step, infos[1].is_complete) == (B.name, 500, False)
    assert B.manifest_key in caplog.text


def test_a_newer_format_is_refused_with_the_way_out(control: FakeControl) -> None:
    data, _ = control.objects[C.manifest_key]
    control.store(C.manifest_key, json.dumps({**json.loads(data), "format_version": 9}).encode())
    with pytest.raises(ManifestError, match="upgrade s3dlio"):
        resolve_latest(control)


def test_a_manifest_that_is_too_large_is_damaged(control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MANIFEST_MAX", 10)
    with pytest.raises(ManifestError, match="larger than a manifest can be"):
        read_manifest(control, C)


@pytest.mark.parametrize("transient", [False, True])
def test_a_failing_store_is_not_taken_for_damage(control: FakeControl, transient: bool) -> None:
    def fail(key: str) -> None:
        raise StorageError("down", transient=transient)

    control.before["read"] = fail
    with pytest.raises(StorageError, match="down"):
        resolve_latest(control)
    with pytest.raises(StorageError, match="down"):
        list_checkpoints(control)


def test_a_manifest_deleted_since_the_listing_is_passed_over(control: FakeControl) -> None:
    control.before["read"] = lambda key: control.objects.pop(C.manifest_key, None) and None
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == B
    control.before["read"] = lambda key: control.objects.pop(B.manifest_key, None) and None
    assert [info.id for info in list_checkpoints(control)] == [A.name]
    with pytest.raises(NotFoundError):
        read_manifest(control, B)


def test_a_foreign_status_is_listed_but_never_the_latest(control: FakeControl) -> None:
    data, _ = control.objects[C.manifest_key]
    control.store(C.manifest_key, json.dumps({**json.loads(data), "status": "partial"}).encode())
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == B
    assert [info.status for info in list_checkpoints(control)] == ["complete", "complete", "partial"]
