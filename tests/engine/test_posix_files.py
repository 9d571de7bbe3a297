"""What lies in the folder of a POSIX store, when it is fsynced, and what others may do to it meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from s3dlio.engine.backends import durable
from s3dlio.engine.backends.posix import PosixBackend
from s3dlio.engine.contract import PartReceipt
from s3dlio.engine.errors import AccessDeniedError, ConfigError, NotFoundError, PreconditionError, StorageError
from tests.engine.conformance import data, get, keys, view

PAGE = 4096


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=[False, True], ids=["file", "direct"])
def backend(request: pytest.FixtureRequest, root: Path) -> PosixBackend:
    return PosixBackend(str(root), direct=request.param)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def begin_and_store(backend: PosixBackend, key: str, body: bytes) -> tuple[str, list[PartReceipt]]:
    name = backend.begin(key, size=len(body))
    return name, [backend.put_part(key, name, 1, 0, view(body))]


# Names and folders


def test_a_key_is_a_file(backend: PosixBackend, root: Path) -> None:
    backend.put("a/b", view(b"put"))
    name, parts = begin_and_store(backend, "a/c/d", b"upload")
    backend.complete("a/c/d", name, parts)
    assert files(root) == ["a", "a/b", "a/c", "a/c/d"]
    assert (root / "a/b").read_bytes() == b"put"
    assert (root / "a/c/d").read_bytes() == b"upload"


def test_an_upload_is_a_hidden_file_beside_its_target(backend: PosixBackend, root: Path) -> None:
    name, _ = begin_and_store(backend, "a/b", b"upload")
    token = name.rpartition("-")[0]
    assert files(root) == ["a", f"a/.b.{token}.part"]
    backend.abort("a/b", name)
    assert files(root) == []
    assert root.is_dir()


def test_files_of_others_are_objects(backend: PosixBackend, root: Path) -> None:
    (root / "a").mkdir(parents=True)
    (root / "a/b").write_bytes(data(300_000))
    assert keys(backend) == ["a/b"]
    assert get(backend, "a/b") == data(300_000)


def test_delete_removes_folders_it_empties(backend: PosixBackend, root: Path) -> None:
    backend.put("a/b/c/d", view(b"x"))
    backend.put("a/e", view(b"x"))
    backend.delete("a/b/c/d")
    assert files(root) == ["a", "a/e"]
    backend.delete("a/e")
    assert files(root) == []
    assert root.is_dir()


def test_a_folder_removed_at_the_wrong_moment_is_made_again(
    backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = os.makedirs, []

    def make(path: str, exist_ok: bool) -> None:
        real(path, exist_ok=exist_ok)
        if path.endswith("/a"):
            made.append(path)
            if len(made) < 3:
                os.rmdir(path)

    monkeypatch.setattr(os, "makedirs", make)
    backend.put("a/b", view(b"x"))
    assert made == [str(root / "a")] * 3
    monkeypatch.setattr(os, "makedirs", lambda path, exist_ok: None)
    with pytest.raises(StorageError, match="removed as fast") as caught:
        backend.put("other/b", view(b"x"))
    assert caught.value.transient


def test_a_listing_bears_what_vanishes(backend: PosixBackend) -> None:
    for key in ("a/1", "b/1", "b/2", "c/1"):
        backend.put(key, view(b"x"))
    listing = backend.pages(limit=1)
    assert [info.key for info in next(listing).objects] == ["a/1"]
    backend.delete("a/1")
    backend.delete("b/1")
    backend.delete("b/2")
    assert [info.key for page in listing for info in page.objects] == ["c/1"]


def test_every_page_of_a_tree_begins_behind_the_one_before(backend: PosixBackend, root: Path) -> None:
    """Files and folders whose names begin alike, and folders without an object; in pages of every size."""
    names = ["a", "a.b/c", "a.b/d/e", "a0", "b/a/z", "b/a.z", "b/z", "c/.x", "é", "z/z/z"]
    for name in names:
        backend.put(name, view(b"x"))
    for name in ("a-empty", "b/a/empty", "y/y"):
        (root / name).mkdir(parents=True)
    folders = ["a-empty/", "a.b/", "b/", "c/", "y/", "z/"]
    for limit in range(1, len(names) + 2):
        deep = [info.key for page in backend.pages(limit=limit) for info in page.objects]
        assert deep == sorted(names)
        pages = [*backend.pages(shallow=True, limit=limit)]
        assert all(len(page.objects) + len(page.folders) <= limit for page in pages)
        assert [name for page in pages for name in page.folders] == folders
        assert [info.key for page in pages for info in page.objects] == ["a", "a0", "é"]


@pytest.mark.parametrize("name", ["a\\b", "x" * 250, "\udcff", "\x01"])
def test_a_file_that_is_no_object_of_ours_is_listed_and_deleted(backend: PosixBackend, root: Path, name: str) -> None:
    (root / "f").mkdir(parents=True)
    (root / "f" / name).write_bytes(b"x")
    backend.put("f/a", view(b"x"))
    assert set(keys(backend)) == {f"f/{name}", "f/a"}
    backend.delete(f"f/{name}")
    assert keys(backend) == ["f/a"]
    assert [path.name for path in (root / "f").iterdir()] == ["a"]


def test_uploads_and_locks_are_not_deleted_as_objects(backend: PosixBackend, root: Path) -> None:
    backend.begin("f/a")
    (name,) = (path.name for path in (root / "f").iterdir())
    with pytest.raises(ConfigError, match="unfinished upload"):
        backend.delete(f"f/{name}")
    assert [path.name for path in (root / "f").iterdir()] == [name]


def test_a_link_to_nothing_is_no_object(backend: PosixBackend, root: Path) -> None:
    backend.put("a/1", view(b"x"))
    (root / "a/dangling").symlink_to(root / "nowhere")
    assert keys(backend) == ["a/1"]


def test_links_are_followed_but_not_in_a_circle(backend: PosixBackend, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_bytes(b"x")
    backend.put("a/1", view(b"x"))
    (root / "a/circle").symlink_to(root / "a")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    assert keys(backend) == ["a/1", "link/file"]


def test_what_is_no_file_is_no_object(backend: PosixBackend, root: Path) -> None:
    backend.put("a/1", view(b"x"))
    os.mkfifo(root / "pipe")
    assert keys(backend) == ["a/1"]
    for key in ("pipe", "a"):
        with pytest.raises(NotFoundError):
            backend.read(key, limit=1)
        with pytest.raises(NotFoundError):
            backend.get_range(key, 0, memoryview(bytearray(1)))
        with pytest.raises(NotFoundError):
            backend.head(key)
        backend.delete(key)
    assert (root / "pipe").is_fifo()
    assert (root / "a/1").exists()


def test_versions_written_in_one_tick_differ(backend: PosixBackend) -> None:
    tags = [backend.put("key", view(b"same")).etag for _ in range(20)]
    assert len(set(tags)) == 20


def test_an_object_replaced_since_is_not_taken_for_the_upload(backend: PosixBackend) -> None:
    name, parts = begin_and_store(backend, "key", b"first")
    backend.complete("key", name, parts)
    backend.put("key", view(b"other"))
    with pytest.raises(NotFoundError, match="replaced"):
        backend.complete("key", name, parts)
    assert backend.read("key", limit=9)[0] == b"other"


def test_a_worker_that_died_before_the_rename_left_an_upload_that_completes(
    backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, parts = begin_and_store(backend, "key", data(5000))

    def die(source: str, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            backend.complete("key", name, parts)
    assert keys(backend) == []
    assert backend.complete("key", name, parts).size == 5000
    assert get(backend, "key") == data(5000)
    assert files(root) == ["key"]


def test_two_that_complete_at_once_agree(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    name, parts = begin_and_store(backend, "key", data(5000))
    real = os.replace

    def replaced_by_the_other(source: str, target: str) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replaced_by_the_other)
    assert backend.complete("key", name, parts).size == 5000


# Space


def test_space_is_taken_at_the_beginning(backend: PosixBackend, root: Path) -> None:
    name = backend.begin("key", size=8 << 20)
    (aside,) = root.iterdir()
    assert aside.stat().st_blocks * 512 >= 8 << 20
    backend.abort("key", name)


@pytest.mark.parametrize("size", [1, PAGE, PAGE + 1, 300_001])
def test_no_padding_and_no_reserve_stays(backend: PosixBackend, root: Path, size: int) -> None:
    name = backend.begin("key", size=8 << 20)
    parts = [backend.put_part("key", name, 1, 0, view(data(size)))]
    backend.complete("key", name, parts)
    found = (root / "key").stat()
    assert found.st_size == size
    assert found.st_blocks * 512 < size + (1 << 20)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(durable, "_fallocate", lambda *_: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: number)
    name, parts = begin_and_store(backend, "key", b"body")
    backend.complete("key", name, parts)
    assert backend.read("key", limit=4)[0] == b"body"


# Durability: what happened, in order


class Journal:
    """What was fsynced and published, in order, by path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.events: list[tuple[str, str]] = []
        self._root = root.parent
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._of_descriptor(name, getattr(os, name)))
        for name in ("replace", "link", "unlink"):
            monkeypatch.setattr(os, name, self._of_paths(name, getattr(os, name)))

    def _note(self, event: str, path: str) -> None:
        if path.startswith(str(self._root)):
            short = os.path.relpath(path, self._root)
            self.events.append((event, "aside" if short.endswith(".part") else short))

    def _of_descriptor(self, event: str, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            self._note(event, os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        return call

    def _of_paths(self, event: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*paths: str | Path) -> None:
            real(*paths)
            if not str(paths[-1]).endswith("-lock"):
                self._note(event, str(paths[-1]))

        return call


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch, root: Path) -> Journal:
    return Journal(monkeypatch, root)


def test_a_put_is_durable_with_its_folders(backend: PosixBackend, journal: Journal) -> None:
    backend.put("a/b", view(b"x"))
    assert journal.events == [
        ("fsync", "aside"),
        ("replace", "store/a/b"),
        ("fsync", "store/a"),
        ("fsync", "store"),
        ("fsync", "."),
    ]
    journal.events.clear()
    backend.put("a/c", view(b"x"), if_absent=True)
    assert journal.events == [("fsync", "aside"), ("link", "store/a/c"), ("unlink", "aside"), ("fsync", "store/a")]


def test_an_upload_is_durable_with_its_folders(backend: PosixBackend, journal: Journal) -> None:
    name, parts = begin_and_store(backend, "a/b", b"x")
    assert journal.events == []  # O_DIRECT: the receipt needs no fsync
    backend.complete("a/b", name, parts)
    once = [
        ("fsync", "aside"),
        ("replace", "store/a/b"),
        ("fsync", "store/a"),
        ("fsync", "store"),
        ("fsync", "."),
    ]
    assert journal.events == once
    backend.complete("a/b", name, parts)
    assert journal.events == [*once, ("fsync", "store/a")]  # the first may have died before the folder's


def test_a_part_through_the_cache_is_synced_before_its_receipt(
    backend: PosixBackend, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3dlio.engine.backends.direct_io.go_direct", lambda fd: False)
    begin_and_store(backend, "a/b", b"x")
    assert journal.events == [("fdatasync", "aside")]


def test_a_folder_made_by_another_is_synced_too(backend: PosixBackend, root: Path, journal: Journal) -> None:
    (root / "a").mkdir(parents=True)
    backend.put("a/b", view(b"x"))
    assert journal.events[-3:] == [("fsync", "store/a"), ("fsync", "store"), ("fsync", ".")]


def test_a_folder_made_anew_is_synced_anew(backend: PosixBackend, root: Path, journal: Journal) -> None:
    backend.put("a/b", view(b"x"))
    (root / "a/b").unlink()
    (root / "a").rename(root / "was-a")
    journal.events.clear()
    backend.put("a/b", view(b"x"))
    assert journal.events[-2:] == [("fsync", "store/a"), ("fsync", "store")]


def test_a_delete_is_durable(backend: PosixBackend, journal: Journal) -> None:
    backend.put("a/b", view(b"x"))
    journal.events.clear()
    backend.delete("a/b")
    assert journal.events == [("unlink", "store/a/b"), ("fsync", "store/a")]


@pytest.mark.parametrize(("number", "fine"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_folders_that_cannot_be_synced(
    backend: PosixBackend, monkeypatch: pytest.MonkeyPatch, number: int, fine: bool
) -> None:
    real = os.fsync

    def sync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    if fine:
        backend.put("a/b", view(b"x"))
    else:
        with pytest.raises(StorageError, match="fsync of folder") as caught:
            backend.put("a/b", view(b"x"))
        assert not caught.value.transient


def test_the_memory_of_folders_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_REMEMBERED", 3)
    folders = durable.Folders()
    for name in "abcdef":
        (root / name).mkdir(parents=True)
        folders.settle(str(root / name))
    assert len(folders._lasting) <= 3
    folders.settle(str(root / "gone"))


# Locks and links


def test_a_lock_left_by_a_killed_process_is_in_nobodys_way(backend: PosixBackend, root: Path) -> None:
    etag = backend.put("a/b", view(b"x")).etag
    (root / "a/.b.s3dlio-lock").touch()
    assert keys(backend) == ["a/b"]
    backend.put("a/b", view(b"y"), if_match=etag)
    assert files(root) == ["a", "a/b"]
    (root / "a/.b.s3dlio-lock").touch()
    backend.delete("a/b")
    assert files(root) == []


def test_a_lock_whose_file_was_replaced_is_taken_again(
    backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = backend.put("key", view(b"x")).etag
    real, taken = fcntl.flock, []

    def flock(fd: int, how: int) -> None:
        real(fd, how)
        taken.append(os.fstat(fd).st_ino)
        if len(taken) == 1:  # the holder before us removes the file while we waited
            (root / ".key.s3dlio-lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    backend.put("key", view(b"y"), if_match=etag)
    assert len(taken) == 2
    assert files(root) == ["key"]


def test_without_flock_only_if_match_fails(backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    etag = backend.put("key", view(b"x")).etag
    backend.put("key2", view(b"x"), if_absent=True)
    with pytest.raises(StorageError, match="flock"):
        backend.put("key", view(b"y"), if_match=etag)
    assert backend.read("key", limit=1)[0] == b"x"
    backend.delete("key2")
    assert files(root) == ["key"]


def test_a_lock_that_fails_is_an_error(backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="No locks") as caught:
        backend.put("key", view(b"x"))
    assert caught.value.transient
    assert keys(backend) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_if_absent_still_holds(
    backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    backend.put("key", view(b"x"), if_absent=True)
    with pytest.raises(PreconditionError, match="exists"):
        backend.put("key", view(b"y"), if_absent=True)
    assert backend.read("key", limit=1)[0] == b"x"
    assert files(root) == ["key"]


def test_a_link_that_is_denied_is_an_error(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(AccessDeniedError):
        backend.put("key", view(b"x"), if_absent=True)
    assert keys(backend) == []
    assert list(backend.uploads()) == []
