from __future__ import annotations

import array
import ctypes
import json
import mmap
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.content import Content, buffer_of, draft_of, payload_of, width_runs
from s3dlio.engine.errors import UnsupportedError

BYTES = bytes(range(48))


def read(content: Content, start: int = 0, stop: int | None = None) -> bytes:
    """Raw bytes of a content, through the way that a save takes."""
    stop = content.source.total if stop is None else stop
    into = ctypes.create_string_buffer(max(stop - start, 1))
    content.source.fill(ctypes.addressof(into), start, stop)
    return into.raw[: stop - start]


def content_of(state: object) -> Content:
    return draft_of(state).content()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_one_buffer_is_a_payload(kind: Any) -> None:
    assert draft_of(kind(BYTES)).framework == "bytes"
    content = content_of(kind(BYTES))
    assert (content.tree, content.table, content.runs) == (None, None, None)
    assert content.source.total == len(BYTES)
    assert read(content) == BYTES
    assert read(content, 5, 9) == BYTES[5:9]


def test_a_mapping_is_a_payload() -> None:
    with mmap.mmap(-1, 48) as mapping:
        mapping[:] = BYTES
        content = content_of(mapping)
        assert read(content) == BYTES
        del content


def test_a_payload_is_read_in_place() -> None:
    data = bytearray(BYTES)
    content = content_of(data)
    data[0] = 99
    assert read(content)[0] == 99


def test_an_empty_payload_has_no_bytes() -> None:
    assert content_of(b"").source.total == 0


def test_a_bare_array_is_a_state() -> None:
    content = content_of(np.arange(3, dtype=np.int16))
    assert content.tree is not None
    assert b"".join(content.tree()) == b"0"
    assert content.table is not None
    assert json.loads(b"".join(content.table()))["names"] == ["tensor"]


def test_a_state_is_an_image_with_tree_table_and_widths() -> None:
    weight = np.arange(1000, dtype=np.float32)
    content = content_of({"w": weight, "step": 7})
    assert content.tree is not None
    assert content.table is not None
    assert content.runs is not None
    assert json.loads(b"".join(content.tree()))["dict"]["w"] == 0
    offset = json.loads(b"".join(content.table()))["offsets"][0]
    assert read(content)[offset : offset + weight.nbytes] == weight.tobytes()
    assert content.runs(offset, offset + 400) == ((0, 400, 4),)
    assert content.runs(0, content.source.total) == ((offset, offset + weight.nbytes, 4),)


def test_one_torch_tensor_makes_the_framework_pytorch() -> None:
    assert draft_of({"a": np.ones(2), "b": torch.ones(2)}).framework == "pytorch"
    assert draft_of({"a": np.ones(2), "b": 3}).framework == "numpy"
    assert draft_of({"b": 3}).framework == "numpy"


def test_what_cannot_be_stored_is_named_by_its_path() -> None:
    with pytest.raises(UnsupportedError, match=r"\['model'\]\[1\]"):
        draft_of({"model": [1, object()]})


@pytest.mark.parametrize(
    "data",
    [
        BYTES,
        bytearray(BYTES),
        memoryview(BYTES),
        np.frombuffer(BYTES, np.uint8),
        np.frombuffer(BYTES, np.float32).reshape(3, 4),
        np.frombuffer(BYTES, np.complex64),
        np.frombuffer(BYTES, ">i2"),
        np.frombuffer(BYTES, "f4,i4"),
        np.frombuffer(BYTES, "M8[s]"),
        array.array("i", np.frombuffer(BYTES, np.int32).tolist()),
    ],
    ids=lambda data: f"{type(data).__name__}-{getattr(data, 'dtype', '')}",
)
def test_any_contiguous_memory_is_a_payload(data: Any) -> None:
    content = payload_of(data)
    assert read(content) == BYTES


def test_a_contiguous_array_is_not_copied() -> None:
    data = np.zeros(8, np.uint16)
    view = buffer_of(data)
    data[0] = 0x0101
    assert view[0] == 1


@pytest.mark.parametrize(
    "data",
    [
        np.arange(12, dtype=np.int32)[::2],
        np.arange(12, dtype=np.int32).reshape(3, 4).T,
        np.broadcast_to(np.int64(3), (4,)),
        memoryview(BYTES)[::2],
    ],
    ids=["strided", "transposed", "expanded", "memoryview"],
)
def test_what_is_not_contiguous_is_gathered_in_c_order(data: Any) -> None:
    assert bytes(buffer_of(data)) == np.ascontiguousarray(data).tobytes()


def test_an_array_without_elements_has_no_bytes() -> None:
    assert buffer_of(np.empty((0, 4))[:, ::2]).nbytes == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", "a str is no payload: encode it first"),
        (5, "a payload must be a buffer of bytes, not int"),
        ([1, 2], "a payload must be a buffer of bytes, not list"),
        (iter(b"x"), "a payload must be a buffer of bytes, not bytes_iterator"),
        (None, "a payload must be a buffer of bytes, not NoneType"),
        ({"a": 1}, "a payload must be a buffer of bytes, not dict"),
        (np.array([object()]), "a payload must be a buffer of bytes, not ndarray"),
    ],
)
def test_what_is_no_buffer_is_a_type_error_of_ours(data: Any, message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        payload_of(data)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, TypeError)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30), st.sampled_from([1, 2, 4, 8])), max_size=8), st.data()
)
def test_runs_within_a_range_are_those_of_its_bytes(steps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    runs, widths = [], []
    for gap, length, width in steps:
        widths += [1] * gap
        runs.append((len(widths), len(widths) + length, width))
        widths += [width] * length
    start = data.draw(st.integers(0, len(widths)))
    stop = data.draw(st.integers(start, len(widths)))
    found = [1] * (stop - start)
    last = 0
    for first, end, width in width_runs(tuple(runs))(start, stop):
        assert last <= first < end <= stop - start
        assert width > 1
        found[first:end] = [width] * (end - first)
        last = end
    assert found == widths[start:stop]
