"""Folders on their way to a store and back: snapshots that outlast the folder, and nothing half-done left for whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import ConfigError, CorruptError, S3dlioError
from s3dlio.frameworks import folders
from tests.faults.scripts import Script
from tests.frameworks.held import Holding, holding
from tests.store.live import SMALL, keeping_pool


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    with keeping_pool(tmp_path_factory.mktemp("pool")) as store:
        yield store


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holding]:
    with holding(tmp_path, monkeypatch) as hold:
        yield hold


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(f"file://{tmp_path}/store", **SMALL) as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of four files, one in a folder of its own, one empty and one of several chunks."""
    folder = tmp_path / "out/checkpoint-3"
    (folder / "deep").mkdir(parents=True)
    for name, body in CONTENT.items():
        (folder / name).write_bytes(body)
    return folder


CONTENT = {"a.bin": b"a" * 100, "deep/b.bin": os.urandom(5 << 20), "empty": b"", "z.json": b"{}"}


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in folders.names_in(folder)}


def test_what_is_stored_comes_back(store: CheckpointStore, folder: Path, tmp_path: Path) -> None:
    taken = folders.snapshot(folder)
    shutil.rmtree(folder)  # as the trainer does it
    folders.store_files(store, taken, 3, 1, "transformers")
    taken.remove()
    assert list(folder.parent.iterdir()) == []
    info = store.latest()
    assert info is not None
    assert (info.step, info.epoch, info.world_size) == (3, 1, 4)
    folders.restore_folder(store, info, folder)
    assert files(folder) == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]


def test_a_snapshot_takes_no_space(folder: Path) -> None:
    taken = folders.snapshot(folder)
    assert all((taken.path / name).samefile(folder / name) for name in CONTENT)


def test_without_hard_links_it_is_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    taken = folders.snapshot(folder)
    assert files(taken.path) == CONTENT
    assert not (taken.path / "a.bin").samefile(folder / "a.bin")


def test_a_snapshot_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(S3dlioError, match=r"snapshot of .*checkpoint-3"):
        folders.snapshot(folder)
    assert list((folder.parent / folders.SIDE).iterdir()) == []


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_folder_without_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no file"):
        folders.snapshot(tmp_path / name)


@pytest.mark.parametrize("change", ["longer", "shorter", "rewritten"])
def test_a_file_that_changed_is_not_stored(store: CheckpointStore, folder: Path, change: str) -> None:
    taken = folders.snapshot(folder)
    before = os.stat(folder / "z.json").st_mtime_ns
    (folder / "z.json").write_bytes({"longer": b"{ }", "shorter": b"", "rewritten": b"[]"}[change])
    if change == "rewritten":
        os.utime(folder / "z.json", ns=(before + 1, before + 1))
    with pytest.raises(CorruptError, match=r"z\.json changed while it was uploaded"):
        folders.store_files(store, taken, 3, 0, "transformers")
    assert store.list() == []
    assert [item.key for item in store.control().list("shards/")] == []


def test_tidying_leaves_the_only_copy(folder: Path) -> None:
    folders.snapshot(folder)
    lost = folders.snapshot(folder)
    other = folder.with_name("checkpoint-5")
    lost_path = lost.path.with_name("checkpoint-5-0123abcd")
    lost.path.rename(lost_path)
    (lost_path.parent / "restoring-checkpoint-7-01234567").mkdir()
    assert folders.tidy(folder.parent) == [lost_path]
    assert [path.name for path in lost_path.parent.iterdir()] == [lost_path.name]
    other.mkdir()
    assert folders.tidy(folder.parent) == []
    assert not lost_path.parent.exists()
    assert folders.tidy(folder.parent / "none") == []


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    store: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.store_files(store, folders.snapshot(folder), 3, 0, "transformers")
    (folder / "added").touch()
    plain = Path.rename

    def fail_once(self: Path, target: Any) -> Any:
        if target == folder and not self.name.endswith("-old"):
            raise OSError(errno.EIO, "failed")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    info = store.latest()
    assert info is not None
    with pytest.raises(S3dlioError, match="restore of"):
        folders.restore_folder(store, info, folder)
    assert files(folder) == {**CONTENT, "added": b""}


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_no_checkpoint(tmp_path: Path, folder: Path, hold: Holding) -> None:
    """All files are stored, and the manifest is on its way: the store holds nothing to restore."""
    held = hold(3, here=False)
    body = """
        from pathlib import Path
        from s3dlio.frameworks import folders
        store = open_store()
        folders.store_files(store, folders.snapshot(Path(ARGS["folder"])), 3, 0, "transformers")
    """
    script = Script(f"file://{tmp_path}/store", body, tmp_path, python=held.executable, folder=str(folder))
    try:
        held.wait()
        script.end(signal.SIGKILL)
        script.all_gone()
    finally:
        script.close()
    with CheckpointStore(f"file://{tmp_path}/store", **SMALL) as store:
        assert store.latest() is None
        assert len([item for item in store.control().list("shards/") if item.key.endswith(".bin")]) == len(CONTENT)
    assert folders.tidy(folder.parent) == []  # the folder itself is still there
    assert files(folder) == CONTENT
    assert not (folder.parent / folders.SIDE).exists()
