"""Objects written bit by bit by the multipart writer, on every kind of store."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import s3dlio
from s3dlio import (
    CancelledError,
    ConfigError,
    MultipartUploadWriter,
    S3dlioError,
    StorageError,
    UnsupportedError,
    pools,
)
from s3dlio.object_uri import split_object
from tests.store.live import contents, in_forked_child, random_bytes
from tests.store.places import OnAzure, OnDirect, OnFiles, OnS3, Where

MIB = 1 << 20
CHUNK = 16 * MIB


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    """The pool that the writers keep, ended after the last test."""
    s3dlio.exists("file:///dev/null/")
    yield
    pools.let_go()


def opened(where: Where, name: str = "written", **arguments: Any) -> MultipartUploadWriter:
    return MultipartUploadWriter.from_uri(where.uri(name), options=where.options, **arguments)


def uploads(where: Where) -> list[str]:
    """Keys of open uploads; none on Azure, which drops the blocks of an aborted one by itself, a week later."""
    place = split_object(where.uri("x"), where.options)
    return [each.key for each in pools.keep().control(place.location).uploads() if place.location.scheme != "az"]


class Everywhere:
    def test_what_is_written_is_there(self, where: Where) -> None:
        data = random_bytes(CHUNK + 5 * MIB)
        writer = opened(where, part_size=16 * MIB, max_in_flight=4, abort_on_drop=True)
        for start in range(0, len(data), 3 * MIB):
            assert writer.write(memoryview(data)[start : start + 3 * MIB]) == min(3 * MIB, len(data) - start)
        assert not s3dlio.exists(where.uri("written"), options=where.options)
        told = writer.close()
        assert (told["total_bytes"], told["parts"]) == (len(data), 2)
        assert told["started_at"] <= told["completed_at"]
        assert told["etag"] == s3dlio.stat(where.uri("written"), options=where.options)["etag"]
        assert s3dlio.get(where.uri("written"), options=where.options) == data

    @pytest.mark.parametrize("data", [b"", b"a few"])
    def test_little_is_written_too(self, where: Where, data: bytes) -> None:
        with opened(where) as writer:
            writer.write(data)
        assert s3dlio.get(where.uri("written"), options=where.options) == data

    def test_the_context_closes_or_aborts(self, where: Where) -> None:
        s3dlio.put_bytes(where.uri("written"), b"before", options=where.options)
        with pytest.raises(UnsupportedError), opened(where) as writer:
            writer.write(random_bytes(CHUNK + 1)) and writer.write("text")
        assert s3dlio.get(where.uri("written"), options=where.options) == b"before"
        with opened(where) as writer:
            writer.write(b"after")
            assert writer.close()["total_bytes"] == 5
        assert s3dlio.get(where.uri("written"), options=where.options) == b"after"
        assert uploads(where) == []

    def test_abort(self, where: Where) -> None:
        writer = opened(where)
        writer.write(random_bytes(CHUNK + 1))
        writer.abort()
        writer.abort()
        for call in (lambda: writer.write(b"x"), writer.close, writer.flush, lambda: writer.reserve(1)):
            with pytest.raises(CancelledError, match="is aborted: start another"):
                call()
        assert uploads(where) == []
        assert s3dlio.list(where.base, True, options=where.options) == []

    def test_a_lost_writer_aborts(self, where: Where) -> None:
        writer = opened(where, abort_on_drop=False)
        writer.write(random_bytes(CHUNK + 1))
        job = writer._stream._job
        assert job is not None
        del writer
        gc.collect()
        with pytest.raises(CancelledError):
            job.future.result(timeout=30)
        assert uploads(where) == []
        assert s3dlio.list(where.base, True, options=where.options) == []


class TestFiles(OnFiles, Everywhere):
    pass


class TestDirect(OnDirect, Everywhere):
    pass


class TestS3(OnS3, Everywhere):
    pass


class TestAzure(OnAzure, Everywhere):
    pass


@pytest.fixture
def base(tmp_path: Path) -> str:
    return f"file://{tmp_path}/place"


@pytest.mark.parametrize(("part_size", "parts"), [(1, 3), (CHUNK, 3), (CHUNK + 1, 2), (40 * MIB, 1)])
def test_parts_are_as_large_as_asked(base: str, part_size: int, parts: int) -> None:
    with MultipartUploadWriter.from_uri(f"{base}/x", part_size=part_size) as writer:
        writer.write(bytes(2 * CHUNK + 1))
        assert writer.close()["parts"] == parts
    assert s3dlio.stat(f"{base}/x")["size"] == 2 * CHUNK + 1


def test_many_writers_at_once(base: str) -> None:
    writers = [MultipartUploadWriter.from_uri(f"{base}/{number}", part_size=CHUNK) for number in range(16)]
    for number, writer in enumerate(writers):
        writer.write(bytes([number]) * 100)
    assert {writer.close()["total_bytes"] for writer in writers} == {100}
    assert s3dlio.get(f"{base}/15") == bytes([15]) * 100


def test_a_forked_child_writes_too(base: str) -> None:
    s3dlio.put_bytes(f"{base}/parent", b"parent")

    def child() -> None:
        with MultipartUploadWriter.from_uri(f"{base}/child") as writer:
            writer.write(s3dlio.get(f"{base}/parent"))
        pools.let_go()

    in_forked_child(child)
    assert s3dlio.get(f"{base}/child") == b"parent"


EXIT = """
import sys, s3dlio
s3dlio.put_bytes(sys.argv[1] + "/put", bytes(2 << 20))
writer = s3dlio.MultipartUploadWriter.from_uri(sys.argv[1] + "/open")
writer.write(bytes(20 << 20))
"""


def test_a_process_that_ends_with_a_writer_open(base: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EXIT, base], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert s3dlio.list(base) == [f"{base}/put"]


def test_reserve_and_commit(base: str) -> None:
    writer = MultipartUploadWriter.from_uri(f"{base}/x")
    view = writer.reserve(8)
    view[:] = b"abcdefgh"
    with pytest.raises(ConfigError, match="commit what was reserved"):
        writer.reserve(1)
    with pytest.raises(ConfigError, match="0 to 8 bytes"):
        writer.commit(9)
    writer.commit(5)
    with pytest.raises(ConfigError, match="nothing is reserved"):
        writer.commit(0)
    with pytest.raises(ConfigError, match="takes a number of bytes"):
        writer.reserve(-1)
    writer.flush()
    assert writer.close()["total_bytes"] == 5
    assert s3dlio.get(f"{base}/x") == b"abcde"


def test_an_array_of_any_layout_is_written(base: str) -> None:
    array = np.arange(9, dtype=np.int16)[::2]
    with MultipartUploadWriter.from_uri(f"{base}/x") as writer:
        assert writer.write(array) == 10
    assert s3dlio.get(f"{base}/x") == array.tobytes()


def test_what_is_no_buffer_leaves_the_writer_as_it_was(base: str) -> None:
    with MultipartUploadWriter.from_uri(f"{base}/x") as writer:
        writer.write(b"a")
        with pytest.raises(UnsupportedError):
            writer.write("text")
        writer.write(b"b")
    assert s3dlio.get(f"{base}/x") == b"ab"


def test_a_closed_writer_is_closed(base: str) -> None:
    writer = MultipartUploadWriter.from_uri(f"{base}/x")
    writer.close()
    writer.abort()
    for call in (writer.close, lambda: writer.write(b"x")):
        with pytest.raises(S3dlioError, match="is closed: start another"):
            call()
    assert s3dlio.exists(f"{base}/x")
    assert "0 bytes, closed" in repr(writer)


def test_the_storage_fails(base: str, tmp_path: Path) -> None:
    (tmp_path / "place/x/y").mkdir(parents=True)
    before = contents(tmp_path)
    writer = MultipartUploadWriter.from_uri(f"{base}/x")
    writer.write(random_bytes(CHUNK + 1))
    with pytest.raises(StorageError):
        writer.close()
    with pytest.raises(S3dlioError, match="is failed: start another"):
        writer.close()
    assert contents(tmp_path) == before


def test_an_abort_from_another_thread(base: str) -> None:
    writer = MultipartUploadWriter.from_uri(f"{base}/x")
    writer.write(bytes(MIB))
    begun = threading.Event()
    errors: list[BaseException] = []

    def write_on() -> None:
        try:
            while True:
                writer.write(bytes(MIB))
                begun.set()
        except S3dlioError as error:
            errors.append(error)

    thread = threading.Thread(target=write_on)
    thread.start()
    assert begun.wait(30)
    writer.abort()
    thread.join(30)
    assert [type(error) for error in errors] == [CancelledError]
    assert not s3dlio.exists(f"{base}/x")


@pytest.mark.parametrize("name", ["part_size", "max_in_flight"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "16"])
def test_numbers_are_checked(base: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a positive number"):
        MultipartUploadWriter.from_uri(f"{base}/x", **{name: value})


def test_a_content_type_is_refused(base: str) -> None:
    with pytest.raises(UnsupportedError, match="content_type"):
        MultipartUploadWriter.from_uri(f"{base}/x", content_type="text/plain")


def test_by_bucket_and_key() -> None:
    assert "s3://bucket/some/key: 0 bytes, open" in repr(MultipartUploadWriter("bucket", "some/key"))
