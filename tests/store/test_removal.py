from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from s3dlio.catalog import list_ids, resolve_latest
from s3dlio.commit import commit
from s3dlio.coordination.store_board import COORDINATION
from s3dlio.engine.contract import PROBE, UploadInfo
from s3dlio.engine.errors import ConfigError, ManifestError, PreconditionError, StorageError
from s3dlio.ids import CheckpointId
from s3dlio.leftovers import find_leftovers, remove_leftovers
from s3dlio.manifest import Manifest
from s3dlio.pointer import POINTERS, encode_pointer, parse_pointer
from s3dlio.removal import delete, prune
from tests.store.fake import T0, FakeControl, make_id, make_record, save, store_shards

A, B, C = make_id(1, 0), make_id(2, 1), make_id(3, 2)
NOW = T0 / 1e6


@pytest.fixture
def control() -> FakeControl:
    control = FakeControl()
    for id_ in (A, B, C):
        save(control, id_, 2)
    control.calls.clear()
    return control


def pointed(control: FakeControl) -> list[CheckpointId | None]:
    return [parse_pointer(control.objects[key][0]) if key in control.objects else None for key in POINTERS]


def keys_of(control: FakeControl, id_: CheckpointId) -> set[str]:
    return {key for key in control.objects if id_.name in key}


def hostile(step: int, seconds: int, *targets: CheckpointId) -> tuple[CheckpointId, bytes]:
    """A manifest that passes every check and lists the shards of others."""
    id_ = make_id(step, seconds, "badbadba")
    shards = tuple(make_record(target, rank) for rank, target in enumerate(targets))
    manifest = Manifest(step, 0, "x", "", len(shards), shards, id_.timestamp)
    return id_, manifest.encode()


def test_a_delete_removes_everything_of_the_step_and_nothing_else(control: FakeControl) -> None:
    again = make_id(2, 5, "bbbbbbbb")
    save(control, again)
    others = keys_of(control, A) | keys_of(control, C)
    assert delete(control, 2)
    assert control.keys() == others | set(POINTERS)
    assert not delete(control, 2)


def test_a_step_that_is_not_there_is_not_deleted(control: FakeControl) -> None:
    before = dict(control.objects)
    assert not delete(control, 9)
    assert control.objects == before
    with pytest.raises(ConfigError):
        delete(control, -1)


def test_deleting_the_latest_moves_the_pointers_back_first(control: FakeControl) -> None:
    delete(control, 3)
    assert pointed(control) == [B, B]
    changes = [call for call in control.calls if call[0] in ("put", "delete")]
    assert changes[:3] == [("put", POINTERS[0]), ("put", POINTERS[1]), ("delete", C.manifest_key)]
    assert all(key.startswith("shards/") for _, key in changes[3:])


def test_deleting_the_last_checkpoint_removes_the_pointers(control: FakeControl) -> None:
    for step in (1, 2, 3):
        assert delete(control, step)
    assert not control.objects


def test_deleting_an_older_one_leaves_the_pointers(control: FakeControl) -> None:
    delete(control, 1)
    assert pointed(control) == [C, C]


def test_a_torn_pointer_is_no_obstacle(control: FakeControl) -> None:
    control.store(POINTERS[0], b"{")
    delete(control, 3)
    assert list_ids(control) == [A, B]


def test_nothing_is_removed_from_under_a_pointer_that_cannot_move(control: FakeControl) -> None:
    control.before["put"] = _raise(StorageError("no"))
    with pytest.raises(StorageError, match="no"):
        delete(control, 3)
    assert keys_of(control, C)
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == C


def test_a_pointer_that_always_moves_stops_the_delete(control: FakeControl) -> None:

    def somebody_else(key: str) -> None:
        control.store(key, encode_pointer(C))

    control.before["put"] = somebody_else
    with pytest.raises(PreconditionError, match="try again"):
        delete(control, 3)
    assert C in list_ids(control)


def test_a_save_that_commits_while_the_last_one_goes_gets_its_pointer() -> None:
    control = FakeControl()
    save(control, A)
    commits = iter([B])

    def meanwhile(key: str) -> None:
        if key == POINTERS[0] and (id_ := next(commits, None)):
            save(control, id_)
            control.objects.pop(key)

    control.after["delete"] = meanwhile
    delete(control, 1)
    assert pointed(control) == [B, B]


def test_a_death_in_the_middle_leaves_no_listed_ruin(control: FakeControl) -> None:
    control.after["delete"] = _raise(StorageError("killed"))
    with pytest.raises(StorageError, match="killed"):
        delete(control, 3)
    assert list_ids(control) == [A, B]
    latest = resolve_latest(control)
    assert latest is not None
    assert latest.id == B


def test_shards_of_other_ids_that_the_manifest_lists_go_with_it() -> None:
    control = FakeControl()
    other = make_id(1, 1, "bbbbbbbb")
    records = [store_shards(control, A, 1)[0], store_shards(control, other, 2)[1]]
    commit(control, records, step=1, epoch=0, framework="", world_size=2)
    assert delete(control, 1)
    assert control.keys("shards/") == {f"shards/{other.name}/rank-0.bin", f"shards/{other.name}/rank-0.idx"}


def test_a_hostile_manifest_takes_nothing_of_another_save_of_its_step(control: FakeControl) -> None:
    bad, data = hostile(3, -5, C, C)
    control.store(bad.manifest_key, data)
    theirs = keys_of(control, C)
    assert prune(control, 3) == [bad]
    assert keys_of(control, C) == theirs


def test_a_hostile_manifest_cannot_even_list_shards_of_another_step(control: FakeControl) -> None:
    _, data = hostile(9, 9, B)
    data = data.replace(b'"global_step": 9', b'"global_step": 4')
    control.store(make_id(4, 9).manifest_key, data)
    theirs = keys_of(control, B)
    delete(control, 4)
    assert keys_of(control, B) == theirs


def test_a_foreign_layout_is_never_deleted() -> None:
    control = FakeControl()
    id_ = CheckpointId(1, "final")
    control.store("shards/special/data.bin", b"payload")
    record = {"rank": 0, "key": "shards/special/data.bin", "size": 7}
    found: dict[str, Any] = {**Manifest(1, 0, "x", "", 1, (make_record(make_id(1)),)).to_dict(), "shards": [record]}
    control.store(id_.manifest_key, Manifest.from_dict(found).encode())
    assert delete(control, 1)
    assert control.keys() == {"shards/special/data.bin"}


def test_a_damaged_checkpoint_can_be_deleted_with_what_lies_in_its_folder(control: FakeControl) -> None:
    control.store(C.manifest_key, b"{")
    others = keys_of(control, A) | keys_of(control, B)
    assert delete(control, 3)
    assert control.keys() == others | set(POINTERS)
    assert pointed(control) == [B, B]


def test_a_checkpoint_of_a_newer_format_is_left_alone(control: FakeControl) -> None:
    control.store(C.manifest_key, b'{"format_version": 9}')
    before = dict(control.objects)
    with pytest.raises(ManifestError, match="upgrade s3dlio"):
        delete(control, 3)
    assert prune(control, 2) == []
    assert control.objects == before


def test_prune_keeps_the_newest(control: FakeControl) -> None:
    assert prune(control, 2) == [A]
    assert list_ids(control) == [B, C]
    assert not keys_of(control, A)
    assert prune(control, 2) == []
    assert prune(control, 1) == [B]


def test_prune_spares_what_is_protected(control: FakeControl) -> None:
    assert prune(control, 1, protect={A.name}) == [B]
    assert list_ids(control) == [A, C]


@pytest.mark.parametrize("keep_last", [0, -1, True, 1.5, None])
def test_prune_never_takes_the_latest(control: FakeControl, keep_last: Any) -> None:
    with pytest.raises(ConfigError, match="keep_last"):
        prune(control, keep_last)
    assert list_ids(control) == [A, B, C]


def test_damaged_checkpoints_do_not_count_as_kept(control: FakeControl) -> None:
    control.store(C.manifest_key, b"")
    assert prune(control, 1) == [A]
    assert list_ids(control) == [B, C]
    latest = resolve_latest(control, [A, B])
    assert latest is not None
    assert latest.id == B


# Leftovers


def test_what_is_pruned_is_read_and_deleted_at_once(control: FakeControl) -> None:
    """All manifests that go are gone before the first shard."""
    together: list[list[tuple[str, str]]] = []

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        before, results = len(control.calls), [function(item) for item in items]
        together.append(control.calls[before:])
        return results

    shards = sorted(key for key in keys_of(control, A) | keys_of(control, B) if key.startswith("shards/"))
    assert prune(control, 1, each=each) == [A, B]
    manifests = [A.manifest_key, B.manifest_key]
    assert together == [
        [("read", key) for key in (*manifests, C.manifest_key)],
        [("read", key) for key in manifests],
        [],
        [("delete", key) for key in manifests],
        [("delete", key) for key in shards],
    ]


def test_leftovers_are_old_uncommitted_shards_and_uploads(control: FakeControl) -> None:
    dead = make_id(2, 1, "deaddead")
    store_shards(control, dead)
    control.open = [UploadInfo("shards/ckpt-2-20261123-203342/rank-1.bin", "u1", NOW)]
    found = find_leftovers(control, min_age=60, now=NOW + 61)
    assert {item.key for item in found.objects} == {f"shards/{dead.name}/rank-0.{end}" for end in ("bin", "idx")}
    assert [item.upload for item in found.uploads] == ["u1"]
    assert found.size == 12
    kept = control.keys() - {item.key for item in found.objects}
    remove_leftovers(control, found)
    assert control.keys() == kept
    assert control.open == []


def test_unfinished_writes_of_manifests_and_pointers_are_leftovers(control: FakeControl) -> None:
    """A writer killed in the middle of a put leaves its file beside the key; other programs' uploads stay."""
    dead, later = make_id(2, 1, "deaddead"), make_id(4, 3)
    keys = [dead.manifest_key, "manifests/latest.json", "latest.json"]
    control.open = [UploadInfo(key, "u", NOW) for key in [*keys, later.manifest_key, "mine.json"]]
    assert [item.key for item in find_leftovers(control, min_age=0, now=NOW + 1).uploads] == keys


def test_a_young_leftover_may_be_a_save_in_progress(control: FakeControl) -> None:
    store_shards(control, make_id(2, 1, "deaddead"))
    control.open = [UploadInfo("shards/ckpt-2-20261123-203342/rank-1.bin", "u1", NOW)]
    found = find_leftovers(control, min_age=60, now=NOW + 59)
    assert (found.objects, found.uploads) == ((), ())


def test_an_upload_that_still_receives_bytes_is_no_leftover(control: FakeControl) -> None:
    dead = make_id(2, 1, "deaddead")
    control.open = [UploadInfo(f"shards/{dead.name}/rank-{rank}.bin", f"u{rank}", NOW) for rank in range(3)]
    control.sent = {"u0": NOW + 1, "u1": NOW + 2}
    found = find_leftovers(control, min_age=60, now=NOW + 61)
    assert [item.upload for item in found.uploads] == ["u0", "u2"]


def test_what_started_after_the_newest_checkpoint_is_no_leftover(control: FakeControl) -> None:
    later = make_id(4, 3)
    store_shards(control, later)
    control.open = [UploadInfo(f"shards/{later.name}/rank-1.bin", "u1", NOW)]
    found = find_leftovers(control, min_age=0, now=NOW + 10**6)
    assert (found.objects, found.uploads) == ((), ())


def test_without_a_checkpoint_there_is_nothing_to_clean() -> None:
    control = FakeControl()
    store_shards(control, A)
    assert find_leftovers(control, min_age=0, now=NOW + 10**6).objects == ()


@pytest.mark.parametrize(("min_age", "old"), [(0, 600), (60, 600), (601, 601), (3600, 3600)])
def test_what_asked_the_store_and_was_killed_is_a_leftover_by_its_age_alone(min_age: float, old: int) -> None:
    """For ten minutes somebody may be asking."""
    control = FakeControl()
    probe = f"{PROBE}0123456789abcdef"
    control.store(probe, b"")
    control.store(f"other/{probe}", b"another store's")
    control.open = [UploadInfo(key, "u", NOW) for key in (probe, f"other/{probe}")]
    young = find_leftovers(control, min_age=min_age, now=NOW + old - 1)
    assert (young.objects, young.uploads) == ((), ())
    found = find_leftovers(control, min_age=min_age, now=NOW + old)
    assert ([item.key for item in found.objects], [item.key for item in found.uploads]) == ([probe], [probe])
    assert remove_leftovers(control, found) == 2
    assert control.keys() == {item.key for item in control.open} == {f"other/{probe}"}


@pytest.mark.parametrize(("min_age", "old"), [(0, 600), (60, 600), (3600, 3600)])
def test_words_of_ranks_are_leftovers_by_their_age_alone(min_age: float, old: int) -> None:
    """They belong to no save: nobody waits for one that is ten minutes old, and no checkpoint must be newer."""
    control = FakeControl()
    words = {f"{COORDINATION}run%201/ranks/save-0/hello/{who}" for who in ("1", "1/1", "all")}
    for key in (*words, f"other/{COORDINATION}run/all", "coordination.txt"):
        control.store(key, b"word")
    assert find_leftovers(control, min_age=min_age, now=NOW + old - 1).objects == ()
    found = find_leftovers(control, min_age=min_age, now=NOW + old)
    assert {item.key for item in found.objects} == words
    assert found.size == 12
    assert remove_leftovers(control, found) == 3
    assert control.keys() == {f"other/{COORDINATION}run/all", "coordination.txt"}


def test_words_of_ranks_go_with_no_checkpoint(control: FakeControl) -> None:
    """Removing what a step has, or all older ones, leaves the talk about saves that are under way."""
    word = f"{COORDINATION}run/ranks/save-7/stored/1"
    control.store(word, b"word")
    delete(control, 3)
    prune(control, 1)
    assert word in control.objects
    assert find_leftovers(control, now=NOW + 3600).objects == ()


def test_requests_are_made_at_once(control: FakeControl) -> None:
    """All that may be many: listings, manifests, what is dropped."""
    store_shards(control, make_id(2, 1, "deaddead"))
    control.open = [UploadInfo(f"shards/{A.name}/rank-1.bin", "u", NOW)]
    together: list[tuple[str, ...]] = []

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        before, results = len(control.calls), [function(item) for item in items]
        together.append(tuple(name for name, _ in control.calls[before:]))
        return results

    remove_leftovers(control, find_leftovers(control, min_age=0, now=NOW + 1, each=each), each)
    reads = ("read",) * 3
    assert together == [("list", "list", "list"), reads, ("written",), ("abort",), reads, ("delete", "delete")]
    others = [name for name, _ in control.calls]
    assert sorted(others) == sorted([*itertools.chain(*together), "list", "list"])  # the manifests, twice


def test_what_is_no_shard_is_no_leftover(control: FakeControl) -> None:
    control.store("shards/README", b"mine")
    control.store(f"shards/{A.name}/rank-0.bin.bak", b"mine")
    assert find_leftovers(control, min_age=0, now=NOW + 10**6).objects == ()


def test_cleaning_stops_at_a_damaged_manifest(control: FakeControl) -> None:
    control.store(A.manifest_key, b"{")
    with pytest.raises(ManifestError, match=f"delete this checkpoint .{A.name}. before cleaning up"):
        find_leftovers(control)


def test_a_save_that_commits_after_the_look_is_not_removed(control: FakeControl) -> None:
    slow = make_id(2, 1, "0ff0ff00")
    store_shards(control, slow)
    found = find_leftovers(control, min_age=0, now=NOW + 10**6)
    assert found.objects
    save(control, slow)
    remove_leftovers(control, found)
    assert f"shards/{slow.name}/rank-0.bin" in control.objects


@pytest.mark.parametrize("min_age", [-1, float("nan")])
def test_a_bad_age_is_refused(control: FakeControl, min_age: float) -> None:
    with pytest.raises(ConfigError, match="min_age"):
        find_leftovers(control, min_age=min_age)


def test_the_default_age_counts_from_the_clock(control: FakeControl) -> None:
    store_shards(control, make_id(2, 1, "deaddead"))
    control.modified = 4e9
    store_shards(control, make_id(2, 1, "feedfeed"))
    found = find_leftovers(control)
    assert {item.key for item in found.objects} <= keys_of(control, make_id(2, 1, "deaddead"))


def _raise(error: Exception) -> Any:
    def hook(key: str) -> None:
        raise error

    return hook
