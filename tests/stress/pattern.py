"""Bytes of any number that are known from a seed and their offset alone: a shard of gigabytes needs no second copy.

Owns the generator and the comparison, both at memory speed with the GIL released; never stores anything. A block of the
pattern is one random megabyte combined with the block's own key, so that a byte of another place, another block or
another seed differs.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

BLOCK = 1 << 20

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

Words = np.ndarray[Any, np.dtype[np.uint64]]


class Pattern:
    """``total`` bytes; a source for a save. ``smooth``: 4-byte floats of similar size, which shrink by a tenth."""

    threads = 1

    def __init__(self, seed: int, total: int, *, smooth: bool) -> None:
        self.total = total
        self._seed = seed
        rng = np.random.default_rng(seed)
        # The key of a smooth pattern leaves sign and exponent of every float alone.
        self._mask = 0x007FFFFF_007FFFFF if smooth else 0xFFFFFFFF_FFFFFFFF
        floats = rng.standard_normal(BLOCK // 4, dtype=np.float32)
        self._base: Words = floats.view(np.uint64) if smooth else np.frombuffer(rng.bytes(BLOCK), np.uint64)
        self._scratch = threading.local()

    def fill(self, address: int, start: int, stop: int) -> None:
        """Write the bytes [start, stop) to ``address``."""
        at = start
        while at < stop:
            block, inside = divmod(at, BLOCK)
            count = min(stop - at, BLOCK - inside)
            if inside % 8 == 0 and count % 8 == 0:
                target = np.frombuffer(memoryview((ctypes.c_uint8 * count).from_address(address)), np.uint64)
                np.bitwise_xor(self._base[inside // 8 : (inside + count) // 8], self._key(block), out=target)
            else:
                words = self._base ^ self._key(block)
                ctypes.memmove(address, words.ctypes.data + inside, count)
            address, at = address + count, at + count

    def check(self, address: int, start: int, stop: int) -> None:
        """``AssertionError``, with the first offset, unless the bytes [start, stop) are at ``address``."""
        if not hasattr(self._scratch, "block"):
            self._scratch.block = ctypes.create_string_buffer(BLOCK)
        expected = ctypes.addressof(self._scratch.block)
        for at in range(start, stop, BLOCK):
            count = min(BLOCK, stop - at)
            self.fill(expected, at, at + count)
            if _memcmp(expected, address + at - start, count):
                found = ctypes.string_at(address + at - start, count)
                wanted = ctypes.string_at(expected, count)
                first = next(i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
                raise AssertionError(f"byte {at + first} is {found[first]:#04x} instead of {wanted[first]:#04x}")

    def _key(self, block: int) -> np.uint64:
        """SplitMix64 of the seed and the block's number."""
        x = (self._seed * 0x9E3779B97F4A7C15 + block * 0xD1342543DE82EF95 + 1) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        key: np.uint64 = np.uint64((x ^ (x >> 31)) & self._mask)
        return key
