"""Single objects by URI: one set of tests, run on every kind of store, and what is special to one kind."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import s3dlio
from s3dlio import ConfigError, NotFoundError, StorageError, UnsupportedError, objects, pools
from s3dlio.engine.pool import PoolControl
from s3dlio.object_uri import split_object
from s3dlio.payload import Payload
from s3dlio.reader import ShardReader
from tests.store.live import random_bytes
from tests.store.places import OnAzure, OnDirect, OnFiles, OnS3, Where

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    """The pool that the functions keep, ended after the last test."""
    s3dlio.exists("file:///dev/null/")
    yield
    pools.let_go()


class Everywhere:
    @pytest.mark.parametrize("size", [0, 1, 4096, objects.SMALL, objects.SMALL + 1, 3 * MIB + 7])
    def test_what_is_put_is_got(self, where: Where, size: int) -> None:
        data = random_bytes(size)
        uri = where.uri("folder/some.bin")
        assert s3dlio.put_bytes(uri, data, options=where.options) is None  # type: ignore[func-returns-value]
        found = s3dlio.get(uri, options=where.options)
        assert found == data
        assert (len(found), found.to_bytes(), bytes(found.memoryview()[:3])) == (size, data, data[:3])

    def test_put_replaces(self, where: Where) -> None:
        uri = where.uri("x")
        for data in (random_bytes(2 * MIB), b"second"):
            s3dlio.put_bytes(uri, data, options=where.options)
        assert s3dlio.get(uri, options=where.options) == b"second"

    @pytest.mark.parametrize("count", [5, 1 << 20])
    def test_put_takes_arrays_of_any_layout(self, where: Where, count: int) -> None:
        array = np.arange(count * 2, dtype=np.int32)[::2]
        s3dlio.put_bytes(where.uri("array"), array, options=where.options)
        assert s3dlio.get(where.uri("array"), options=where.options) == array.tobytes()

    @pytest.mark.parametrize("data", ["text", 7, None, [1, 2]])
    def test_put_of_no_buffer_writes_nothing(self, where: Where, data: Any) -> None:
        with pytest.raises(UnsupportedError):
            s3dlio.put_bytes(where.uri("x"), data, options=where.options)
        assert not s3dlio.exists(where.uri("x"), options=where.options)

    def test_what_is_absent(self, where: Where) -> None:
        uri = where.uri("absent")
        for call in (s3dlio.get, s3dlio.stat):
            with pytest.raises(NotFoundError, match="absent"):
                call(uri, options=where.options)
        for length in (5, None):
            with pytest.raises(FileNotFoundError, match="absent"):
                s3dlio.get_range(uri, 0, length, options=where.options)
        assert not s3dlio.exists(uri, options=where.options)
        assert not s3dlio.exists(uri + "/", options=where.options)
        s3dlio.delete(uri, options=where.options)
        s3dlio.delete(uri, recursive=True, options=where.options)
        assert s3dlio.list(uri + "/", options=where.options) == []

    @pytest.mark.parametrize(
        ("offset", "length", "span"),
        [
            (0, 5, slice(0, 5)),
            (7, None, slice(7, None)),
            (1000, MIB, slice(1000, 1000 + MIB)),
            (5, 2 * MIB, slice(5, 5 + 2 * MIB)),
            (3 * MIB, 100, slice(3 * MIB, 3 * MIB + 7)),
            (3 * MIB + 7, 1, slice(0, 0)),
            (9 * MIB, 1, slice(0, 0)),
            (9 * MIB, None, slice(0, 0)),
            (4, 0, slice(0, 0)),
        ],
    )
    def test_ranges(self, where: Where, offset: int, length: int | None, span: slice) -> None:
        data = random_bytes(3 * MIB + 7)
        uri = where.uri("ranged")
        s3dlio.put_bytes(uri, data, options=where.options)
        assert s3dlio.get_range(uri, offset, length, options=where.options) == data[span]

    def test_stat(self, where: Where) -> None:
        uri = where.uri("folder/stat")
        s3dlio.put_bytes(uri, b"12345", options=where.options)
        told = s3dlio.stat(uri, options=where.options)
        assert told["size"] == 5
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", told["last_modified"])
        assert told["etag"]
        assert set(told) >= {"content_type", "storage_class", "version_id", "metadata"}
        s3dlio.put_bytes(uri, b"54321", options=where.options)
        assert s3dlio.stat(uri, options=where.options)["etag"] != told["etag"]

    def test_list(self, where: Where) -> None:
        for name in ("b.bin", "a/1", "a/2", "a/deep/3", "a.txt", "ab/4"):
            s3dlio.put_bytes(where.uri(f"top/{name}"), b"x", options=where.options)

        def listed(uri: str, *args: Any) -> list[str]:
            found = s3dlio.list(uri, *args, options=where.options)
            assert all(each.startswith(where.uri("")) for each in found)
            return [each.removeprefix(where.uri("")) for each in found]

        assert listed(where.uri("top/")) == ["top/a.txt", "top/a/", "top/ab/", "top/b.bin"]
        assert listed(where.uri("top")) == listed(where.uri("top/"))
        assert listed(where.uri("top/a/")) == ["top/a/1", "top/a/2", "top/a/deep/"]
        assert listed(where.uri("top/a/"), True) == ["top/a/1", "top/a/2", "top/a/deep/3"]
        assert listed(where.uri("top/a.txt")) == ["top/a.txt"]
        assert listed(where.uri("top/"), True, r"^a.*[34]$") == ["top/a/deep/3", "top/ab/4"]
        assert s3dlio.exists(where.uri("top/a/"), options=where.options)
        assert not s3dlio.exists(where.uri("top/a"), options=where.options)

    def test_delete(self, where: Where) -> None:
        for name in ("a", "b/1", "b/c/2", "bb"):
            s3dlio.put_bytes(where.uri(f"top/{name}"), b"x", options=where.options)
        s3dlio.delete(where.uri("top/a"), options=where.options)
        with pytest.raises(ConfigError, match="pass recursive=True"):
            s3dlio.delete(where.uri("top/b/"), options=where.options)
        assert len(s3dlio.list(where.uri("top/"), True, options=where.options)) == 3
        s3dlio.delete(where.uri("top/b/"), recursive=True, options=where.options)
        assert s3dlio.list(where.uri("top/"), True, options=where.options) == [where.uri("top/bb")]
        s3dlio.delete(where.uri("top"), True, options=where.options)
        assert s3dlio.list(where.uri(""), options=where.options) == []

    def test_a_folder_can_always_be_made(self, where: Where) -> None:
        for _ in range(2):
            s3dlio.mkdir(where.uri("new/folder/"), options=where.options)
        s3dlio.put_bytes(where.uri("new/folder/x"), b"x", options=where.options)
        assert s3dlio.exists(where.uri("new/folder/x"), options=where.options)

    def test_a_range_that_is_overwritten_while_it_is_read(self, where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
        uri = where.uri("changing")
        s3dlio.put_bytes(uri, bytes(17 * MIB), options=where.options)
        stored = ShardReader.stored

        def overwrite_after(self: ShardReader, *arguments: Any) -> Any:
            found = stored(self, *arguments)
            s3dlio.put_bytes(uri, b"1" * (17 * MIB), options=where.options)
            return found

        monkeypatch.setattr(ShardReader, "stored", overwrite_after)
        with pytest.raises(StorageError, match="was overwritten while it was read"):
            s3dlio.get_range(uri, 1, 16 * MIB + 1, options=where.options)

    def test_an_object_that_is_overwritten_while_it_is_read(
        self, where: Where, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = where.uri("changing")
        s3dlio.put_bytes(uri, random_bytes(2 * MIB), options=where.options)
        head = PoolControl.head

        def overwrite_after(self: PoolControl, key: str) -> Any:
            info = head(self, key)
            monkeypatch.setattr(PoolControl, "head", head)
            s3dlio.put_bytes(uri, random_bytes(2 * MIB, seed=2), options=where.options)
            return info

        monkeypatch.setattr(PoolControl, "head", overwrite_after)
        with pytest.raises(StorageError, match="was overwritten while it was read") as caught:
            s3dlio.get(uri, options=where.options)
        assert caught.value.transient
        assert s3dlio.get(uri, options=where.options) == random_bytes(2 * MIB, seed=2)


class TestFiles(OnFiles, Everywhere):
    pass


class TestDirect(OnDirect, Everywhere):
    pass


class TestS3(OnS3, Everywhere):
    pass


class TestAzure(OnAzure, Everywhere):
    pass


SIGNATURES = {
    s3dlio.put_bytes: "(uri, data, *, borrow=True, options=None)",
    s3dlio.get: "(uri, *, options=None)",
    s3dlio.get_range: "(uri, offset, length=None, *, options=None)",
    s3dlio.list: "(uri, recursive=False, pattern=None, *, options=None)",
    s3dlio.exists: "(uri, *, options=None)",
    s3dlio.stat: "(uri, *, options=None)",
    s3dlio.delete: "(uri, recursive=False, *, options=None)",
    s3dlio.mkdir: "(uri, *, options=None)",
    s3dlio.upload: "(src_patterns, dest_prefix, max_in_flight=32, create_bucket=False, *, options=None)",
    s3dlio.download: "(src_uri, dest_dir, max_in_flight=64, recursive=True, *, options=None)",
    s3dlio.MultipartUploadWriter.from_uri: (
        "(uri, part_size=None, max_in_flight=None, content_type=None, abort_on_drop=None, *, options=None)"
    ),
    s3dlio.MultipartUploadWriter: (
        "(bucket, key, part_size=None, max_in_flight=None, content_type=None, abort_on_drop=None, *, options=None)"
    ),
    s3dlio.PyWriterOptions.with_compression: "(self, compression_type, level=None)",
    s3dlio.PyWriterOptions.with_buffer_size: "(self, size)",
    s3dlio.create_filesystem_writer: "(uri, options=None)",
    s3dlio.create_direct_filesystem_writer: "(uri, options=None)",
    s3dlio.create_s3_writer: "(uri, options=None, *, store_options=None)",
    s3dlio.create_azure_writer: "(uri, options=None, *, store_options=None)",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_are_those_of_the_published_package_and_options(function: Any) -> None:
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[function]


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("", "is no URI"),
        ("/tmp/x", "is no URI"),
        (None, "must be a string"),
        ("file:///folder/", "names no object"),
        ("file:///", "names no object"),
        ("file://folder/x", "must be absolute"),
        ("file:///a/..", "component"),
        ("s3://bucket", "names no object"),
        ("s3://bucket/", "names no object"),
        ("s3://bucket/a//b", "component"),
        ("s3://bucket/folder/", "names no object"),
        ("s3:///key", "names no bucket"),
        ("az://account/container", "names no object"),
        ("gs://bucket/key", "unknown scheme"),
        ("memory://x/y", "unknown scheme"),
    ],
)
def test_what_names_no_object(uri: Any, text: str) -> None:
    for call in (s3dlio.get, s3dlio.stat, s3dlio.MultipartUploadWriter.from_uri):
        with pytest.raises(ConfigError, match=text):
            call(uri)
    with pytest.raises(ConfigError, match=text):
        s3dlio.put_bytes(uri, b"x")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((-1, 5), "offset"), ((0, -1), "length"), (("0",), "offset"), ((True, 1), "offset"), ((0, 1.5), "length")],
)
def test_ranges_that_are_none(tmp_path: Path, arguments: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{text} must be a number of bytes"):
        s3dlio.get_range(f"file://{tmp_path}/x", *arguments)


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        s3dlio.list(f"file://{tmp_path}/", pattern="(")


def test_options_go_to_object_stores_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no options"):
        s3dlio.get(f"file://{tmp_path}/x", options={"region": "x"})


def test_a_large_object_is_not_copied(tmp_path: Path) -> None:
    s3dlio.put_bytes(f"file://{tmp_path}/x", random_bytes(2 * MIB))
    assert type(s3dlio.get(f"file://{tmp_path}/x")) is Payload
    assert type(s3dlio.get_range(f"file://{tmp_path}/x", 1, MIB + 1)) is Payload


def test_objects_lie_as_plain_files(tmp_path: Path) -> None:
    s3dlio.put_bytes(f"file://{tmp_path}/a/b.bin", b"here")
    assert (tmp_path / "a/b.bin").read_bytes() == b"here"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]
    assert s3dlio.get(f"direct://{tmp_path}/a/b.bin") == b"here"


def test_folders_of_this_machine(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}"
    s3dlio.mkdir(f"{uri}/x/y")
    assert (tmp_path / "x/y").is_dir()
    assert s3dlio.list(uri) == s3dlio.list(f"{uri}/") == [f"{uri}/x/"]
    assert s3dlio.list(uri, True) == []
    assert not s3dlio.exists(f"{uri}/x")
    s3dlio.put_bytes(f"{uri}/x/z", b"z")
    s3dlio.delete(f"{uri}/x/z")
    assert (tmp_path / "x").is_dir()
    s3dlio.delete(f"{uri}/x/", recursive=True)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="mkdir of file"):
        s3dlio.mkdir(f"file://{tmp_path}/file/below")
    with pytest.raises(StorageError, match="mkdir of file"):
        s3dlio.mkdir(f"file://{tmp_path}/file")


def test_the_workers_stay_between_calls(tmp_path: Path) -> None:
    before = pools.keep().supervisor.pids()
    s3dlio.put_bytes(f"file://{tmp_path}/x", b"x")
    assert s3dlio.get(f"file://{tmp_path}/x") == b"x"
    assert pools.keep().supervisor.pids() == before


def test_a_failed_put_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"file://{tmp_path}/x"
    s3dlio.put_bytes(uri, b"first")

    class Broken:
        total = 3 * MIB
        threads = 1

        def fill(self, address: int, start: int, stop: int) -> None:
            raise ValueError("the memory went")

    place = split_object(uri)
    with pytest.raises(ValueError, match="the memory went"):
        objects.start_storing(pools.keep(), place, Broken())
    assert s3dlio.get(uri) == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_put_where_a_folder_stands(tmp_path: Path) -> None:
    (tmp_path / "x/y").mkdir(parents=True)
    for size in (3, 2 * MIB):
        with pytest.raises(StorageError):
            s3dlio.put_bytes(f"file://{tmp_path}/x", bytes(size))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_a_folder_of_this_machine_is_no_object_to_delete(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="is a folder: pass recursive=True"):
        s3dlio.delete(f"{scheme}://{tmp_path}/folder")
    assert (tmp_path / "folder").exists()
