from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from s3dlio.engine.errors import ConfigError, CorruptError
from s3dlio.engine.grouping import ELEMENTS, WIDTHS, Grouper, Runs, normalise

GROUPER = Grouper()


def floats(count: int, dtype: str, seed: int = 0) -> NDArray[Any]:
    return (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(dtype)


def encode(raw: bytes, runs: Runs) -> bytes | None:
    out = bytearray(len(raw))
    length = GROUPER.encode(memoryview(raw).toreadonly(), runs, memoryview(out))
    return None if length is None else bytes(out[:length])


def decode(stored: bytes, length: int) -> bytes:
    out = bytearray(length)
    GROUPER.decode(memoryview(stored).toreadonly(), memoryview(out))
    return bytes(out)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[bytes, Runs]:
    """A chunk of pieces of differing kinds, and runs over it that need not match them."""
    raw = b""
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["<f4", "<f2", "<i8", "u1", "zeros", "noise"]))
        count = draw(st.integers(0, 20_000))
        if kind == "zeros":
            raw += bytes(count)
        elif kind == "noise":
            raw += np.random.default_rng(count).bytes(count)
        elif kind.startswith("<f"):
            raw += floats(count, kind, count).tobytes()
        else:
            raw += (np.arange(count) % 99).astype(kind).tobytes()
    marks = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    runs = [(a, b, draw(st.sampled_from(WIDTHS))) for a, b in zip(marks[::2], marks[1::2], strict=False)]
    return raw, tuple(runs)


@given(chunks())
def test_any_chunk_and_runs_come_back_and_encode_the_same_again(case: tuple[bytes, Runs]) -> None:
    raw, runs = case
    stored = encode(raw, runs)
    assert encode(raw, runs) == stored
    if stored is not None:
        assert len(stored) < len(raw)
        assert decode(stored, len(raw)) == raw


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [ELEMENTS - 1, ELEMENTS, ELEMENTS + 1, 2 * ELEMENTS + 777])
def test_blocks_of_every_size_come_back(width: int, count: int) -> None:
    raw = (np.arange(count) % 50).astype(f"<u{width}").tobytes()
    stored = encode(raw, ((0, len(raw), width),))
    assert stored is not None
    assert decode(stored, len(raw)) == raw


@pytest.mark.parametrize(("dtype", "least"), [("<f4", 0.13), ("<f2", 0.10), ("<f8", 0.08)])
def test_floats_are_saved_by_their_high_bytes(dtype: str, least: float) -> None:
    raw = floats(300_000, dtype).tobytes()
    width = np.dtype(dtype).itemsize
    stored = encode(raw, ((0, len(raw), width),))
    assert stored is not None
    assert 1 - len(stored) / len(raw) > least
    assert decode(stored, len(raw)) == raw


def test_wide_integers_nearly_vanish() -> None:
    raw = np.random.default_rng(0).integers(0, 50_000, 100_000).astype("<i8").tobytes()
    stored = encode(raw, ((0, len(raw), 8),))
    assert stored is not None
    assert len(stored) < 0.27 * len(raw)
    assert decode(stored, len(raw)) == raw


def test_noise_is_left_to_be_stored_raw() -> None:
    raw = np.random.default_rng(0).bytes(1 << 20)
    assert encode(raw, ((0, len(raw), 4),)) is None
    assert encode(b"", ()) is None
    assert encode(b"x", ()) is None


def test_a_chunk_at_an_odd_address_comes_back() -> None:
    raw = floats(100_000, "<f4").tobytes()
    padded = memoryview(b"x" + raw)[1:]
    out = memoryview(bytearray(len(raw) + 3))[3:]
    length = GROUPER.encode(padded, ((0, len(raw), 4),), out)
    assert length is not None
    back = memoryview(bytearray(len(raw) + 1))[1:]
    GROUPER.decode(out[:length], back)
    assert back == raw


def test_runs_are_joined_and_gaps_filled() -> None:
    big = 8192
    assert normalise((), 0) == []
    assert normalise((), 7) == [(7, 1)]
    assert normalise(((0, big, 4), (big, 2 * big, 4)), 2 * big) == [(2 * big, 4)]
    assert normalise(((3, 3 + big, 2),), big + 10) == [(3, 1), (big, 2), (7, 1)]
    assert normalise(((0, big + 3, 4), (big + 3, 2 * big, 1)), 2 * big) == [(big, 4), (big, 1)]
    assert normalise(((0, big, 1), (big, 2 * big, 1)), 2 * big) == [(2 * big, 1)]
    assert normalise(((5, 5, 8),), 5) == [(5, 1)]


def test_many_short_neighbours_are_one_run() -> None:
    runs = tuple((start, start + 64, 4) for start in range(0, 1 << 16, 64))
    assert normalise(runs, 1 << 16) == [(1 << 16, 4)]
    alternating = tuple((start, start + 64, 2 + start // 64 % 2 * 2) for start in range(0, 1 << 16, 64))
    assert normalise(alternating, 1 << 16) == [(1 << 16, 1)]


@pytest.mark.parametrize(
    "runs",
    [((0, 101, 1),), ((-1, 5, 1),), ((5, 4, 1),), ((0, 50, 4), (49, 60, 4)), ((50, 60, 4), (0, 10, 4)), ((0, 99, 3),)],
)
def test_runs_that_do_not_fit_are_refused(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="does not fit a chunk of 100 bytes"):
        normalise(runs, 100)
    with pytest.raises(ConfigError, match="does not fit a chunk of 100 bytes"):
        encode(bytes(100), runs)


def chunk(*runs: tuple[int, int], nodes: bytes, version: int = 1, count: int | None = None) -> bytes:
    table = b"".join(struct.pack("<QB", *run) for run in runs)
    return struct.pack("<BI", version, len(runs) if count is None else count) + table + nodes


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def zstd_node(data: bytes) -> bytes:
    return b"\1" + struct.pack("<I", len(data)) + data


def test_the_layout_is_as_documented() -> None:
    stored = chunk((8, 4), (4, 1), nodes=b"\2" + b"\2\0QS\0PR" + b"\0ABCD" + zstd_node(frame(b"tail")))
    assert decode(stored, 12) == b"ABPQCDRStail"


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (b"", "ends early"),
        (chunk((4, 1), nodes=b"\0abcd", version=2), "version 2"),
        (chunk((4, 1), nodes=b"\0abcd", count=0xFFFFFFFF), "ends early"),
        (chunk((1 << 63, 1), nodes=b"\0abcd"), "does not decode to 4 bytes"),
        (chunk((2, 1), nodes=b"\0ab"), "does not decode to 4 bytes"),
        (chunk((4, 3), nodes=b"\0abcd"), "do not agree"),
        (chunk((4, 0), nodes=b"\0abcd"), "do not agree"),
        (chunk((4, 16), nodes=b"\0abcd"), "do not agree"),
        (chunk((3, 2), (1, 1), nodes=b"\0abc\0d"), "do not agree"),
        (chunk((4, 1), (0, 1), nodes=b"\0abcd"), "do not agree"),
        (chunk((4, 1), nodes=b"\0abc"), "ends early"),
        (chunk((4, 1), nodes=b"\0abcde"), "1 bytes after its end"),
        (chunk((4, 1), nodes=b"\2\0ab\0cd"), "kind 2"),
        (chunk((4, 4), nodes=zstd_node(frame(b"abcd"))), "kind 1"),
        (chunk((4, 1), nodes=b"\3abcd"), "kind 3"),
        (chunk((4, 1), nodes=zstd_node(frame(b"abcde"))), "not of 4 bytes"),
        (chunk((4, 1), nodes=zstd_node(frame(b"abcd") + b"x")), "does not decode"),
        (chunk((4, 1), nodes=zstd_node(frame(b"abcd")[:-1])), "does not decode"),
        (chunk((4, 1), nodes=zstd_node(b"abcdefgh")), "does not decode"),
        (chunk((4, 1), nodes=zstd_node(b"")), "does not decode"),
        (chunk((4, 1), nodes=b"\1" + b"\xff" * 4), "ends early"),
    ],
)
def test_a_malformed_chunk_is_corruption(stored: bytes, told: str) -> None:
    with pytest.raises(CorruptError, match=told):
        decode(stored, 4)


@given(chunks(), st.data())
def test_a_damaged_chunk_raises_or_gives_its_size(case: tuple[bytes, Runs], data: st.DataObject) -> None:
    raw, runs = case
    stored = encode(raw, runs)
    if stored is None:
        return
    damaged = bytearray(stored)
    damaged[data.draw(st.integers(0, min(len(stored), 200) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged), len(raw))
    except CorruptError:
        pass
    assert decode(stored, len(raw)) == raw


def test_numpy_is_imported_with_the_first_grouped_chunk() -> None:
    code = (
        "import sys; from s3dlio.engine import codec; a, b = memoryview(bytes(9)), memoryview(bytearray(99));"
        "codec.encode(codec.CodecSpec('zstd'), a, b); assert 'numpy' not in sys.modules;"
        "codec.encode(codec.CodecSpec('zstd-grouped'), a, b); assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
