"""What a worker does for each task, in this process, on the in-memory backend."""

from __future__ import annotations

import gc
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from s3dlio.engine import plan
from s3dlio.engine.arena import SharedMemory
from s3dlio.engine.attached import Memories
from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.checksum import crc32c
from s3dlio.engine.contract import Backend, Limits, Location, ObjectInfo, Page
from s3dlio.engine.errors import CorruptError, MemoryLimitError, NotFoundError, PoolClosedError, StorageError
from s3dlio.engine.messages import (
    Abort,
    Begin,
    Call,
    Complete,
    Encode,
    Encoded,
    Fetch,
    Inflate,
    Inflated,
    Populate,
    PutWhole,
    Span,
    Stored,
    StorePart,
    Task,
)
from s3dlio.engine.tasks import TaskRunner

SIZE = 1 << 16
LOCATION = Location("memory", "test")


class World:
    """A runner, its one memory, and its backend."""

    def __init__(self) -> None:
        self.memory = SharedMemory("test", SIZE)
        self.memories = Memories()
        self.memories.attach(0, os.dup(self.memory.fd), SIZE)
        self.backend = MemoryBackend("test")
        self.opened: list[Location] = []
        self.runner = TaskRunner(self.memories, self._open)

    def _open(self, location: Location) -> Backend:
        self.opened.append(location)
        return self.backend

    def run(self, task: Task) -> object:
        return self.runner.run(task)

    def write(self, offset: int, data: bytes) -> Span:
        os.pwrite(self.memory.fd, data, offset)
        return Span(0, offset, len(data))

    def read(self, span: Span) -> bytes:
        return os.pread(self.memory.fd, span.length, span.offset)

    def put(self, key: str, data: bytes) -> None:
        self.backend.put(key, [memoryview(data)])

    def close(self) -> None:
        if 0 in self.memories._attached:
            self.memories.detach(0)
        self.memory.close()
        forget("test")


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_an_upload_from_begin_to_complete(world: World) -> None:
    first, second, third = world.write(0, b"aaaa"), world.write(100, b"bb"), world.write(200, b"c")
    upload = world.run(Begin(LOCATION, "key", None))
    assert isinstance(upload, str)
    assert list(world.runner.opened) == [("key", upload)]
    later = world.run(StorePart(LOCATION, "key", upload, 2, 6, (third,), checksum=False))
    part = world.run(StorePart(LOCATION, "key", upload, 1, 0, (first, second), checksum=True))
    assert isinstance(part, Stored)
    assert isinstance(later, Stored)
    assert part.crcs == (crc32c(b"aaaa"), crc32c(b"bb"))
    assert later.crcs == ()
    assert (part.receipt.number, part.receipt.offset, part.receipt.size) == (1, 0, 6)
    assert part.seconds >= 0
    info = world.run(Complete(LOCATION, "key", upload, (part.receipt, later.receipt)))
    assert isinstance(info, ObjectInfo)
    assert info.size == 7
    assert world.backend.read("key", limit=10)[0] == b"aaaabbc"
    assert world.opened == [LOCATION]  # one backend for all


def test_an_upload_that_is_dropped(world: World) -> None:
    upload = world.run(Begin(LOCATION, "key", 10))
    assert isinstance(upload, str)
    assert world.run(Abort(LOCATION, "key", upload)) is None
    assert list(world.backend.uploads()) == []


def test_uploads_are_dropped_when_the_parent_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a", "b"):
        world.run(Begin(LOCATION, key, None))
    abort = world.backend.abort

    def abort_b(key: str, upload: str) -> None:
        if key == "a":
            raise StorageError("gone too")
        abort(key, upload)

    monkeypatch.setattr(world.backend, "abort", abort_b)
    world.runner.abort_opened()
    assert [found.key for found in world.backend.uploads()] == ["a"]


def test_an_upload_that_is_just_opened_is_dropped_as_well(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, abort = world.backend.begin, world.backend.abort
    opening, dropped, go_on = threading.Event(), threading.Event(), threading.Event()

    def slow_begin(key: str, *, size: int | None = None) -> str:
        upload = begin(key, size=size)
        opening.set()
        assert go_on.wait(60)
        return upload

    def told_abort(key: str, upload: str) -> None:
        abort(key, upload)
        dropped.set()

    world.run(Begin(LOCATION, "known", None))
    monkeypatch.setattr(world.backend, "begin", slow_begin)
    monkeypatch.setattr(world.backend, "abort", told_abort)
    lane = threading.Thread(target=world.run, args=(Begin(LOCATION, "a", None),))
    end = threading.Thread(target=world.runner.abort_opened)
    lane.start()
    assert opening.wait(60)
    end.start()
    assert dropped.wait(60)  # the known one does not wait for the other
    assert [found.key for found in world.backend.uploads()] == ["a"]
    go_on.set()
    lane.join(60)
    end.join(60)
    assert list(world.backend.uploads()) == []
    with pytest.raises(PoolClosedError, match="the worker is ending"):
        world.run(Begin(LOCATION, "b", None))
    assert list(world.backend.uploads()) == []


def test_a_whole_object(world: World) -> None:
    spans = world.write(0, b"12"), world.write(50, b"345")
    stored = world.run(PutWhole(LOCATION, "key", spans, checksum=True))
    assert isinstance(stored, Stored)
    assert stored.crcs == (crc32c(b"12"), crc32c(b"345"))
    assert (stored.receipt.size, stored.receipt.tag) == (5, world.backend.head("key").etag)
    assert world.backend.read("key", limit=10)[0] == b"12345"


@pytest.mark.parametrize("codec", ["zstd", "zstd-grouped"])
def test_encoding_leaves_the_raw_bytes(world: World, codec: str) -> None:
    data = bytes(4000)
    source, target = world.write(0, data), Span(0, 8192, 8192)
    result = world.run(Encode(codec, 1, source, target, ((0, 4000, 4),)))
    assert isinstance(result, Encoded)
    assert (result.codec, result.crc) == (codec, crc32c(data))
    assert result.length < 1000
    assert world.read(source) == data


def test_encoding_nothing_is_a_checksum(world: World) -> None:
    result = world.run(Encode("zstd", 1, world.write(0, b"abc"), None))
    assert isinstance(result, Encoded)
    assert (result.codec, result.length, result.crc) == ("none", 3, crc32c(b"abc"))


@pytest.mark.parametrize("codec", ["none", "zstd", "zstd-grouped"])
@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_a_chunk_comes_back(world: World, codec: str, landed: bool, known: bool) -> None:
    data = bytes(range(256)) * 16
    stored = data
    if codec != "none":
        encoded = world.run(Encode(codec, 1, world.write(0, data), Span(0, 8192, 8192), ((0, 4096, 4),)))
        assert isinstance(encoded, Encoded)
        assert encoded.codec == codec
        stored = world.read(Span(0, 8192, encoded.length))
    world.put("key", b"before" + stored)
    target = Span(0, 32768, len(data)) if landed else None
    crc = crc32c(data) if known else None
    for _ in range(2):  # the second time in the lane's own, warm, buffers
        assert world.run(Fetch(LOCATION, "key", 6, len(stored), codec, len(data), crc, target)) == crc32c(data)
    if target is not None:
        assert world.read(target) == data


@pytest.mark.parametrize("codec", ["none", "zstd-grouped"])
def test_a_chunk_lands_in_memory_of_its_own(world: World, codec: str) -> None:
    """Landings are written through their descriptor; what does not match its checksum never gets there."""
    data = bytes(range(256)) * 16
    encoded = world.run(Encode("zstd-grouped", 1, world.write(0, data), Span(0, 8192, 8192), ((0, 4096, 4),)))
    assert isinstance(encoded, Encoded)
    stored = data if codec == "none" else world.read(Span(0, 8192, encoded.length))
    world.put("key", stored)
    landing = SharedMemory("landing", 3 * len(data))
    world.memories.attach(7, os.dup(landing.fd), landing.size)
    fetch = Fetch(LOCATION, "key", 0, len(stored), codec, len(data), crc32c(data), Span(7, 4096, len(data)))
    with pytest.raises(CorruptError):
        world.run(replace(fetch, crc=1))
    assert os.pread(landing.fd, landing.size, 0) == bytes(landing.size)
    assert world.run(fetch) == crc32c(data)
    assert os.pread(landing.fd, landing.size, 0) == bytes(4096) + data + bytes(4096)
    world.memories.detach(7)
    landing.close()


@pytest.mark.parametrize("landed", [True, False])
def test_what_a_network_brings_lands_block_by_block(
    world: World, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    monkeypatch.setattr(plan, "BLOCK", 1000)
    data = os.urandom(4096)
    world.put("key", b"before" + data)
    landing = SharedMemory("landing", 3 * len(data))
    world.memories.attach(7, os.dup(landing.fd), landing.size)
    target = Span(7, 4096, len(data)) if landed else None
    asked: list[int] = []
    get_range = world.backend.get_range

    def noted(key: str, offset: int, into: memoryview, **more: str | None) -> None:
        asked.append(len(into))
        get_range(key, offset, into, **more)

    monkeypatch.setattr(world.backend, "get_range", noted)
    far = Location("s3", "test")
    with pytest.raises(CorruptError, match="do not match their checksum"):
        world.run(Fetch(far, "key", 6, 4096, "none", 4096, crc32c(data) ^ 1, target))
    landed_before = data[:4000] if landed else b""  # the last block only once all is known right
    assert os.pread(landing.fd, landing.size, 4096) == landed_before.ljust(8192, b"\0")
    asked.clear()
    assert world.run(Fetch(far, "key", 6, 4096, "none", 4096, crc32c(data), target)) == crc32c(data)
    assert asked == [1000, 1000, 1000, 1000, 96]
    assert os.pread(landing.fd, landing.size, 0) == bytes(4096) + (data if landed else bytes(4096)) + bytes(4096)
    world.memories.detach(7)
    landing.close()


def test_a_wrong_checksum_names_the_place(world: World) -> None:
    world.put("key", b"0123456789")
    with pytest.raises(CorruptError, match=r"memory://test: key: bytes 2\.\.6 do not match their checksum .*00000001"):
        world.run(Fetch(LOCATION, "key", 2, 4, "none", 4, 1, None))


def test_a_short_object_is_corrupt(world: World) -> None:
    world.put("key", b"0123")
    with pytest.raises(CorruptError):
        world.run(Fetch(LOCATION, "key", 2, 4, "none", 4, None, None))


def test_a_foreign_object_is_inflated(world: World) -> None:
    data = os.urandom(3 << 20) + bytes(1 << 20)
    stored = zstandard.compress(data[: 2 << 20]) + zstandard.compress(data[2 << 20 :])
    world.put("key", stored)
    landing = SharedMemory("landing", 0)
    world.memories.attach(7, os.dup(landing.fd), 0)
    result = world.run(Inflate(LOCATION, "key", len(stored), 7, len(data)))
    assert result == Inflated(len(data), crc32c(data))
    assert os.pread(landing.fd, len(data) + 1, 0) == data
    with pytest.raises(MemoryLimitError, match=f"decodes to more than {len(data) - 1} bytes"):
        world.run(Inflate(LOCATION, "key", len(stored), 7, len(data) - 1))
    world.memories.detach(7)
    landing.close()


def test_pages_are_allocated(world: World) -> None:
    world.run(Populate(Span(0, 0, SIZE)))
    assert os.fstat(world.memory.fd).st_blocks * 512 == SIZE


def test_the_small_operations(world: World) -> None:
    assert isinstance(world.run(Call(LOCATION, "limits")), Limits)
    info = world.run(Call(LOCATION, "put", ("a", (b"12", b"3")), (("if_absent", True),)))
    assert isinstance(info, ObjectInfo)
    assert world.run(Call(LOCATION, "head", ("a",))) == info
    assert world.run(Call(LOCATION, "read", ("a",), (("limit", 10),))) == (b"123", info)
    assert world.run(Call(LOCATION, "list_page", ("",))) == Page((info,))
    assert world.run(Call(LOCATION, "uploads", ("",))) == []
    assert world.run(Call(LOCATION, "delete", ("a",))) is None
    with pytest.raises(NotFoundError):
        world.run(Call(LOCATION, "head", ("a",)))


@pytest.mark.parametrize("method", ["close", "put_part", "__class__"])
def test_nothing_else_can_be_called(world: World, method: str) -> None:
    with pytest.raises(AssertionError, match="no control operation"):
        world.run(Call(LOCATION, method))


def test_a_memory_is_mapped_once_it_is_looked_at(world: World) -> None:
    def mapped() -> bool:
        return "memfd:landing " in Path("/proc/self/maps").read_text()

    landing = SharedMemory("landing", 4096)
    world.memories.attach(7, os.dup(landing.fd), landing.size)
    world.memories.write(Span(7, 100, 5), memoryview(b"hello"))
    assert not mapped()
    assert bytes(world.memories.view(Span(7, 100, 5))) == b"hello"
    assert mapped()
    world.memories.detach(7)
    assert not mapped()
    with pytest.raises(KeyError):
        world.memories.view(Span(7, 0, 1))
    landing.close()


def test_a_lanes_buffer_grows(world: World) -> None:
    assert len(world.runner._buffer("raw", 10)) == 10
    small = world.runner._buffer("raw", mmap.PAGESIZE)
    large = world.runner._buffer("raw", 10 * mmap.PAGESIZE)
    assert (len(small), len(large)) == (mmap.PAGESIZE, 10 * mmap.PAGESIZE)


def test_a_lane_that_rests_gives_its_buffers_back(world: World) -> None:
    buffer = world.runner._buffer("raw", 10)
    kept = weakref.ref(buffer.obj)
    buffer.release()
    assert kept() is not None
    world.runner.rest()
    gc.collect()
    assert kept() is None
