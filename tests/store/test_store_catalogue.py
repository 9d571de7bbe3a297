"""Listing, verifying, deleting and pruning through the store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import CheckpointNotFoundError, CheckpointStore, ConfigError, ManifestError, StorageError
from s3dlio.loading import held, holding

from .live import MIB, contents, in_forked_child, open_store, random_bytes


@pytest.fixture(autouse=True)
def pool(kept_pool: CheckpointStore) -> CheckpointStore:
    return kept_pool


def steps(store: CheckpointStore) -> list[int]:
    return [info.step for info in store.list()]


class TestListing:
    def test_is_in_order_of_saving(self, store: CheckpointStore) -> None:
        for step in (5, 10, 3, 5):
            store.save(step, str(step).encode())
        assert steps(store) == [5, 10, 3, 5]
        latest = store.latest()
        assert latest == store.list()[-1]
        assert latest == store.info(5)
        assert store.load() == b"5"

    def test_an_empty_store_has_none(self, store: CheckpointStore) -> None:
        assert store.list() == []
        assert store.latest() is None
        with pytest.raises(
            CheckpointNotFoundError, match="no committed checkpoint of step 3; the newest steps there: none"
        ):
            store.info(3)

    def test_a_damaged_manifest_is_listed_but_never_the_latest_unseen(
        self, store: CheckpointStore, folder: Path
    ) -> None:
        store.save(1, b"x")
        info = store.save(2, b"y")
        (folder / info.manifest_key).write_bytes(b"{torn")
        assert [(each.step, each.status) for each in store.list()] == [(1, "complete"), (2, "unreadable")]
        for ask in (store.latest, store.load, store.verify):
            with pytest.raises(ManifestError, match="name another step to load, or delete this one"):
                ask()
        assert store.load(1) == b"x"
        assert store.delete(2)
        assert store.load() == b"x"

    def test_another_process_sees_what_was_committed(self, store: CheckpointStore, folder: Path) -> None:
        store.save(1, b"x")

        def child() -> None:
            with open_store(folder) as other:
                assert other.load() == b"x"
                other.save(2, b"of the child")

        in_forked_child(child)
        assert store.load() == b"of the child"
        assert store.save(3, b"z").step == 3
        assert steps(store) == [1, 2, 3]


class TestVerify:
    def test_reads_every_byte(self, store: CheckpointStore) -> None:
        info = store.save(1, random_bytes(3 * MIB + 7))
        seen: list[int] = []
        report = store.verify(1, on_bytes=seen.append)
        assert (report.ok, report.shards, report.bytes, report.info) == (True, 1, 3 * MIB + 7, info)
        assert sum(seen) == 3 * MIB + 7
        assert store.verify() == report

    def test_of_what_is_not_there(self, store: CheckpointStore) -> None:
        with pytest.raises(CheckpointNotFoundError, match="holds no committed checkpoint"):
            store.verify()
        with pytest.raises(CheckpointNotFoundError, match="no committed checkpoint of step 9"):
            store.verify(9)


class TestDelete:
    def test_removes_every_save_of_a_step(self, store: CheckpointStore, folder: Path) -> None:
        store.save(1, b"a")
        before = {key for key in contents(folder) if "latest" not in key}
        store.save(2, b"b")
        store.save(2, b"c")
        assert store.delete(2)
        assert steps(store) == [1]
        assert {key for key in contents(folder) if "latest" not in key} == before
        assert store.load() == b"a"
        assert not store.delete(2)

    def test_of_the_last_leaves_an_empty_store(self, store: CheckpointStore) -> None:
        store.save(1, b"a")
        assert store.delete(1)
        assert store.latest() is None
        assert store.save(2, b"b").step == 2
        assert store.load() == b"b"

    @pytest.mark.parametrize("step", [-1, "1", None, 1.0])
    def test_of_no_step_is_refused(self, store: CheckpointStore, step: Any) -> None:
        with pytest.raises(ConfigError, match="step must be"):
            store.delete(step)


class TestPrune:
    def test_keeps_the_newest(self, store: CheckpointStore) -> None:
        for step in (5, 1, 9, 2):
            store.save(step, b"x")
        assert store.prune(keep_last=2) == 2
        assert steps(store) == [9, 2]
        assert store.prune(2) == 0

    @pytest.mark.parametrize("keep", [0, -1, True, 1.0, None])
    def test_never_takes_the_latest(self, store: CheckpointStore, keep: Any) -> None:
        store.save(1, b"x")
        with pytest.raises(ConfigError, match="keep_last must be 1 or more"):
            store.prune(keep)
        assert steps(store) == [1]

    @pytest.mark.parametrize("kept", [1, 3])
    def test_happens_by_itself_with_keep_last(self, folder: Path, kept: int) -> None:
        with open_store(folder, keep_last=kept) as store:
            for step in range(5):
                store.save(step, b"x")
                assert steps(store) == list(range(max(0, step - kept + 1), step + 1))
            assert len(contents(folder)) == 2 + 3 * kept

    def test_happens_for_the_save_that_close_waited_for(self, folder: Path) -> None:
        with open_store(folder, keep_last=1) as store:
            store.save(1, b"x")
            store.save_async(2, np.zeros(100_000))
        with open_store(folder) as store:
            assert steps(store) == [2]

    def test_that_fails_does_not_fail_the_save(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise StorageError("cannot delete")

        with open_store(folder, keep_last=1) as store:
            store.save(1, b"x")
            monkeypatch.setattr("s3dlio.removal.prune", refuse)
            assert store.save(2, b"y").step == 2
            assert steps(store) == [1, 2]
        assert "older checkpoints were not pruned: cannot delete" in caplog.text

    def test_leaves_alone_what_any_store_of_the_process_is_loading(self, store: CheckpointStore, folder: Path) -> None:
        infos = [store.save(step, random_bytes(MIB)) for step in (1, 2, 3)]
        loading, go = threading.Event(), threading.Event()

        def pause(_: int) -> None:
            loading.set()
            go.wait()

        with open_store(folder, "direct") as reader:
            thread = threading.Thread(target=lambda: reader.verify(1, on_bytes=pause))
            thread.start()
            try:
                assert loading.wait(60)
                assert held(store.location) == {infos[0].id}
                with holding(store.location, infos[1].id):
                    pass
            finally:
                go.set()
                thread.join()
        with holding(reader.location, infos[0].id):
            assert store.prune(1) == 1
        assert steps(store) == [1, 3]
        assert store.prune(1) == 1
        assert steps(store) == [3]

    def test_a_load_that_failed_holds_nothing(self, store: CheckpointStore, folder: Path) -> None:
        store.save(1, b"x" * 1000)
        (shard,) = folder.glob("shards/*/rank-0.bin")
        shard.write_bytes(b"y" * 1000)
        with pytest.raises(StorageError.__mro__[1]):
            store.load()
        assert held(store.location) == set()


class TestCleanup:
    def leave(self, folder: Path, name: str, data: bytes = b"orphan") -> Path:
        """A shard of a save that never committed."""
        path = folder / "shards" / name / "rank-0.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        return path

    def test_removes_what_no_manifest_names(self, store: CheckpointStore, folder: Path) -> None:
        orphan = self.leave(folder, "ckpt-9-20200101T000000.000000Z-00000000")
        store.save(1, b"x")
        before = contents(folder)
        assert store.cleanup() == 0  # too young
        assert contents(folder) == before
        assert store.cleanup(min_age=0) == 1
        assert not orphan.exists()
        assert store.load() == b"x"

    def test_leaves_saves_that_began_after_the_newest_commit(self, store: CheckpointStore, folder: Path) -> None:
        store.save(1, b"x")
        orphan = self.leave(folder, "ckpt-9-20990101T000000.000000Z-00000000")
        assert store.cleanup(min_age=0) == 0
        assert orphan.exists()

    def test_refuses_a_negative_age(self, store: CheckpointStore) -> None:
        with pytest.raises(ConfigError, match="min_age must be 0 seconds or more"):
            store.cleanup(min_age=-1)
