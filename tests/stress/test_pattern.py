from __future__ import annotations

import ctypes
import zlib

import pytest

from .pattern import BLOCK, Pattern

TOTAL = 3 * BLOCK + 12345


def read(pattern: Pattern, start: int, stop: int) -> bytes:
    into = ctypes.create_string_buffer(max(stop - start, 1))
    pattern.fill(ctypes.addressof(into), start, stop)
    return into.raw[: stop - start]


@pytest.mark.parametrize("smooth", [True, False])
def test_any_range_is_a_part_of_the_whole(smooth: bool) -> None:
    pattern = Pattern(7, TOTAL, smooth=smooth)
    whole = read(pattern, 0, TOTAL)
    for start, stop in [(0, 8), (5, 1000), (BLOCK - 3, BLOCK + 9), (BLOCK, 3 * BLOCK), (17, TOTAL), (9, 9)]:
        assert read(pattern, start, stop) == whole[start:stop]
    assert whole[:BLOCK] != whole[BLOCK : 2 * BLOCK]
    assert read(Pattern(8, TOTAL, smooth=smooth), 0, BLOCK) != whole[:BLOCK]


def test_only_a_smooth_one_shrinks() -> None:
    assert len(zlib.compress(read(Pattern(7, TOTAL, smooth=False), 0, BLOCK), 1)) > BLOCK
    assert len(zlib.compress(read(Pattern(7, TOTAL, smooth=True), 0, BLOCK), 1)) < 0.95 * BLOCK


def test_a_wrong_byte_is_found_and_named() -> None:
    pattern = Pattern(7, TOTAL, smooth=False)
    data = bytearray(read(pattern, 100, TOTAL))
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    pattern.check(ctypes.addressof(buffer), 100, TOTAL)
    data[2 * BLOCK] ^= 1
    with pytest.raises(AssertionError, match=f"byte {2 * BLOCK + 100} is "):
        pattern.check(ctypes.addressof(buffer), 100, TOTAL)
    with pytest.raises(AssertionError, match="byte 100 is "):
        Pattern(8, TOTAL, smooth=False).check(ctypes.addressof(buffer), 100, TOTAL)
