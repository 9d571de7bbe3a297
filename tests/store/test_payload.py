from __future__ import annotations

import gc
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3dlio.engine.arena import SharedMemory
from s3dlio.engine.errors import MemoryLimitError
from s3dlio.payload import EmptyPayload, Payload, as_buffer

TEXT = "höhö\n".encode() * 3


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory("test", len(TEXT))
    os.pwrite(memory.fd, TEXT, 0)
    yield memory
    memory.close()


@pytest.fixture
def payload(memory: SharedMemory) -> Iterator[Payload]:
    payload = Payload([(memory.fd, len(TEXT))])
    yield payload
    payload.close()


def test_it_equals_everything_that_holds_the_same_bytes(payload: Payload, memory: SharedMemory) -> None:
    assert payload == TEXT
    assert TEXT.__eq__(payload) is NotImplemented  # so that `bytes == payload` asks the payload
    assert payload == bytearray(TEXT)
    assert payload == memoryview(TEXT)
    assert payload == Payload([(memory.fd, len(TEXT))])
    assert payload != TEXT[:-1]
    assert payload != TEXT[:-1] + b"!"
    assert payload != TEXT.decode()
    assert payload != 5


def test_it_behaves_as_bytes(payload: Payload) -> None:
    assert len(payload) == len(TEXT)
    assert payload[0] == TEXT[0]
    assert payload[-1] == TEXT[-1]
    assert payload[2:7] == TEXT[2:7]
    assert payload[::2] == TEXT[::2]
    assert list(payload) == list(TEXT)
    assert bytes(payload) == TEXT
    assert payload.to_bytes() == TEXT
    assert type(payload.to_bytes()) is bytes
    assert payload.decode() == TEXT.decode()
    assert payload.decode("ascii", "replace").startswith("h\ufffd\ufffdh")
    assert repr(payload) == f"<Payload of {len(TEXT)} bytes>"


def test_text_that_does_not_decode_raises_as_bytes_do(payload: Payload) -> None:
    with pytest.raises(UnicodeDecodeError):
        payload.decode("ascii")


def test_it_cannot_be_hashed(payload: Payload) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(payload)


def test_views_share_its_memory(payload: Payload) -> None:
    view = payload.memoryview()
    array = np.frombuffer(payload, np.uint8)
    view[0] = ord("H")
    assert payload[0] == ord("H")
    assert array[0] == ord("H")


def test_a_write_stays_in_this_mapping(payload: Payload, memory: SharedMemory) -> None:
    payload[0] = ord("H")
    assert Payload([(memory.fd, len(TEXT))]) == TEXT
    assert os.pread(memory.fd, 1, 0) == TEXT[:1]


VIEWS: dict[str, Callable[[Payload], Any]] = {
    "numpy": lambda payload: np.frombuffer(payload, np.uint8)[1:],
    "torch": lambda payload: torch.from_numpy(np.frombuffer(payload, np.uint8))[1:],
    "memoryview": lambda payload: memoryview(payload)[1:],
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_keeps_the_mapping_alive(memory: SharedMemory, kind: str) -> None:
    payload = Payload([(memory.fd, len(TEXT))])
    memory.close()
    gone = weakref.ref(payload)
    view = VIEWS[kind](payload)
    del payload
    gc.collect()
    assert gone() is not None
    assert bytes(view) == TEXT[1:]
    del view
    gc.collect()
    assert gone() is None


def test_memories_lie_one_behind_another(memory: SharedMemory) -> None:
    page = os.urandom(mmap.PAGESIZE)
    first = SharedMemory("test", len(page))
    os.pwrite(first.fd, page, 0)
    payload = Payload([(first.fd, len(page)), (first.fd, len(page)), (memory.fd, len(TEXT))])
    first.close()
    assert len(payload) == 2 * len(page) + len(TEXT)
    assert payload == page + page + TEXT
    payload[0] ^= 1
    assert payload[len(page)] == page[0]
    payload.close()


def test_it_keeps_no_descriptor(memory: SharedMemory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    payload = Payload([(memory.fd, len(TEXT))])
    assert len(os.listdir("/proc/self/fd")) == before
    payload.close()


def test_letting_it_go_unmaps_all_of_it(memory: SharedMemory) -> None:
    payload = Payload([(memory.fd, len(TEXT))])
    assert "memfd:test " in Path("/proc/self/maps").read_text()
    payload.close()
    assert "memfd:test " not in Path("/proc/self/maps").read_text()


def test_what_cannot_be_mapped_is_told_and_leaves_nothing(memory: SharedMemory) -> None:
    with pytest.raises(MemoryLimitError, match=r"cannot map \d+ loaded bytes: .*let go of what was loaded before"):
        Payload([(memory.fd, mmap.PAGESIZE), (-1, 1)])
    gc.collect()
    assert "memfd:test " not in Path("/proc/self/maps").read_text()


def test_an_empty_one_has_the_same_methods() -> None:
    empty = EmptyPayload()
    assert empty == b""
    assert len(empty.memoryview()) == 0
    assert empty.to_bytes() == b""
    assert type(empty.to_bytes()) is bytes
    assert empty.decode() == ""
    assert np.frombuffer(empty, np.uint8).size == 0


def test_any_contiguous_buffer_is_one_of_bytes() -> None:
    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    with mmap.mmap(-1, 8) as anonymous:
        view = as_buffer(anonymous)
        assert (view.nbytes, view.format, view.ndim) == (8, "B", 1)
        view.release()
    data: Any
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        assert bytes(as_buffer(data)) == b"abc"
    view = as_buffer(array)
    assert (view.nbytes, view.format, view.ndim) == (12, "B", 1)
    assert bytes(view) == array.tobytes()


def test_no_bytes_are_an_empty_buffer() -> None:
    for data in (b"", bytearray(), np.empty((0, 3)), memoryview(b"")):
        assert as_buffer(data).nbytes == 0


@pytest.mark.parametrize("data", ["text", 5, [1, 2], None, iter(b"x")])
def test_what_has_no_buffer_is_a_type_error(data: object) -> None:
    with pytest.raises(TypeError):
        as_buffer(data)


def test_what_is_not_contiguous_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="not contiguous"):
        as_buffer(memoryview(b"abcdef")[::2])
