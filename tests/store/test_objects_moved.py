"""Files to objects and back, on every kind of store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import s3dlio
from s3dlio import ConfigError, CorruptError, NotFoundError, StorageError, pools, transfers
from s3dlio.engine.contract import ObjectInfo, Page
from s3dlio.engine.pool import PoolControl
from tests.store.live import contents, random_bytes
from tests.store.places import OnAzure, OnDirect, OnFiles, OnS3, Where

MIB = 1 << 20
CHUNK = 16 * MIB


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    """The pool that the functions keep, ended after the last test."""
    s3dlio.exists("file:///dev/null/")
    yield
    pools.let_go()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Small, empty and large files in a folder of their own."""
    folder = tmp_path / "files"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a")
    (folder / "empty.bin").write_bytes(b"")
    (folder / "large.dat").write_bytes(random_bytes(CHUNK + 5))
    (folder / "deep/b.bin").write_bytes(b"b")
    (folder / "deep/er/c.bin").write_bytes(b"c")
    return folder


class Everywhere:
    def test_a_folder_there_and_back(self, where: Where, files: Path, tmp_path: Path) -> None:
        uris = s3dlio.upload([str(files)], where.uri("up"), max_in_flight=2, options=where.options)
        names = ["a.bin", "deep/b.bin", "deep/er/c.bin", "empty.bin", "large.dat"]
        assert uris == [where.uri(f"up/{name}") for name in names]
        assert s3dlio.list(where.uri("up/"), True, options=where.options) == uris
        for target, recursive, count in (("all", True, 5), ("flat", False, 3)):
            paths = s3dlio.download(
                where.uri("up/"), str(tmp_path / target), recursive=recursive, options=where.options
            )
            assert len(paths) == count
            found = contents(tmp_path / target)
            assert found == {name: data for name, data in contents(files).items() if recursive or "/" not in name}

    def test_one_object(self, where: Where, tmp_path: Path) -> None:
        s3dlio.put_bytes(where.uri("a/one.bin"), b"one", options=where.options)
        (tmp_path / "to").mkdir()
        (tmp_path / "to/one.bin").write_bytes(b"before")
        assert s3dlio.download(where.uri("a/one.bin"), tmp_path / "to", options=where.options) == [
            f"{tmp_path}/to/one.bin"
        ]
        assert contents(tmp_path / "to") == {"one.bin": b"one"}

    def test_what_is_absent(self, where: Where, tmp_path: Path) -> None:
        for name in ("absent", "absent/"):
            with pytest.raises(NotFoundError, match="there is no object at"):
                s3dlio.download(where.uri(name), tmp_path / "to", options=where.options)
        assert not (tmp_path / "to").exists()


class TestFiles(OnFiles, Everywhere):
    pass


class TestDirect(OnDirect, Everywhere):
    pass


class TestS3(OnS3, Everywhere):
    pass


class TestAzure(OnAzure, Everywhere):
    pass


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where(f"file://{tmp_path}/place")


def test_globs_take_files_only(where: Where, files: Path) -> None:
    uris = s3dlio.upload([files / "a.bin", f"{files}/*.bin", f"{files}/**/c.*"], where.uri("up/"))
    assert uris == [where.uri(f"up/{name}") for name in ("a.bin", "empty.bin", "c.bin")]
    assert s3dlio.upload(f"{files}/a*", where.base) == [where.uri("a.bin")]


def test_a_name_that_looks_like_a_glob(where: Where, tmp_path: Path) -> None:
    (tmp_path / "x[1].bin").write_bytes(b"x")
    assert s3dlio.upload([tmp_path / "x[1].bin"], where.base) == [where.uri("x[1].bin")]


@pytest.mark.parametrize("pattern", ["absent", "*.absent", "empty-folder", "dangling"])
def test_nothing_to_upload(where: Where, files: Path, pattern: str) -> None:
    (files / "empty-folder").mkdir()
    (files / "dangling").symlink_to(files / "nowhere")
    with pytest.raises(ConfigError, match="there is no such file"):
        s3dlio.upload([files / "a.bin", files / pattern], where.base)
    assert s3dlio.list(where.base) == []


@pytest.mark.parametrize("create_bucket", [True])
def test_buckets_are_not_made(where: Where, files: Path, create_bucket: bool) -> None:
    with pytest.raises(ConfigError, match="make the bucket"):
        s3dlio.upload([files / "a.bin"], where.base, create_bucket=create_bucket)


@pytest.mark.parametrize("count", [0, -1, "4", True])
def test_max_in_flight_is_checked(where: Where, files: Path, count: Any) -> None:
    with pytest.raises(ConfigError, match="max_in_flight must be"):
        s3dlio.upload([files / "a.bin"], where.base, count)
    with pytest.raises(ConfigError, match="max_in_flight must be"):
        s3dlio.download(where.base, files, count)


def test_two_files_of_one_name(where: Where, files: Path) -> None:
    (files / "deep/a.bin").write_bytes(b"other")
    with pytest.raises(ConfigError, match="would both become"):
        s3dlio.upload([files / "a.bin", files / "deep/a.bin"], where.base)
    assert s3dlio.list(where.base) == []


def test_a_file_that_shrinks(where: Where, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = transfers._FileSource.__enter__

    def shrink(self: transfers._FileSource) -> transfers._FileSource:
        if self.total > CHUNK:
            os.truncate(files / "large.dat", 7)
        return opening(self)

    monkeypatch.setattr(transfers._FileSource, "__enter__", shrink)
    with pytest.raises(CorruptError, match=r"large\.dat became shorter while it was uploaded"):
        s3dlio.upload([files / "a.bin", files / "large.dat"], where.base)
    assert s3dlio.list(where.base) == [where.uri("a.bin")]


def test_an_upload_that_fails_leaves_what_was_there(where: Where, files: Path, tmp_path: Path) -> None:
    (tmp_path / "place/large.dat/x").mkdir(parents=True)
    with pytest.raises(StorageError):
        s3dlio.upload([files / "large.dat", files / "a.bin"], where.base, max_in_flight=1)
    assert contents(tmp_path / "place") == {}


def test_a_file_that_changes_while_it_is_uploaded(where: Where, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.preadv

    def change_after(fd: int, *arguments: Any) -> int:
        count = read(fd, *arguments)
        (files / "large.dat").write_bytes(bytes(CHUNK + 5))
        os.utime(files / "large.dat", ns=(1, 1))  # whatever the clock's grain
        return count

    monkeypatch.setattr("s3dlio.transfers.os.preadv", change_after)
    with pytest.raises(CorruptError, match=r"large\.dat changed while it was uploaded"):
        s3dlio.upload([files / "large.dat"], where.base)
    assert s3dlio.list(where.base) == []


def test_a_file_that_may_not_be_read(where: Where, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("s3dlio.transfers.os.preadv", refuse)
    with pytest.raises(s3dlio.AccessDeniedError, match=r"upload of .*a\.bin: Permission denied"):
        s3dlio.upload([files / "a.bin"], where.base)
    assert s3dlio.list(where.base) == []


def test_an_object_that_is_overwritten_while_it_comes(
    where: Where, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3dlio.upload([files / "large.dat"], where.base)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/large.dat").write_bytes(b"before")
    head = PoolControl.head
    heads: list[str] = []

    def overwrite_after(self: PoolControl, key: str) -> Any:
        info = head(self, key)
        if not heads:
            heads.append(key)
            s3dlio.put_bytes(where.uri("large.dat"), bytes(CHUNK + 5))
        return info

    monkeypatch.setattr(PoolControl, "head", overwrite_after)
    with pytest.raises(StorageError, match="was overwritten"):
        s3dlio.download(where.uri("large.dat"), tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["large.dat"]
    assert (tmp_path / "to/large.dat").read_bytes() == b"before"


@pytest.mark.parametrize("size", [0, 5, CHUNK + 1])
def test_a_folder_stands_where_the_file_would_be(where: Where, tmp_path: Path, size: int) -> None:
    s3dlio.put_bytes(where.uri("x"), bytes(size))
    (tmp_path / "to/x/y").mkdir(parents=True)
    with pytest.raises(StorageError, match="download to"):
        s3dlio.download(where.uri("x"), tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["x"]


def test_a_key_that_would_leave_the_folder(where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3dlio.put_bytes(where.uri("up/x"), b"x")
    listing = PoolControl.list_page

    def hostile(self: PoolControl, prefix: str = "", **given: Any) -> Page:
        page = listing(self, prefix, **given)
        evil = [ObjectInfo(f"{prefix}../../evil", info.size, info.etag, info.modified) for info in page.objects]
        return Page((*page.objects, *evil))

    monkeypatch.setattr(PoolControl, "list_page", hostile)
    with pytest.raises(ConfigError, match=r"no file can be named like the object '.*\.\./\.\./evil'"):
        s3dlio.download(where.uri("up/"), tmp_path / "to")
    assert not (tmp_path / "to").exists()
