"""The checksums: CRC-32C of raw bytes as it is recorded, CRC-64/NVME of stored bytes as it goes on the wire.

Owns the arithmetic and the text form; never reads or writes storage. Workers and the parent call it. The package behind
it releases the GIL while it computes (measured: another thread of the process waits at most 1 ms beside a checksum of
1 GiB, which takes 51 ms) and is imported with the first checksum: 50 ms and 6 MB, nearly all of it the native library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol, cast

from .contract import Segments
from .errors import ManifestError

Buffer = bytes | bytearray | memoryview

PREFIX = "crc32c:"
_TEXT = re.compile(r"crc32c:([0-9a-f]{8})")
_SHOWN = 60


class _Native(Protocol):
    def crc32c(self, data: bytes, previous: int) -> int: ...
    def crc64nvme(self, data: bytes, previous: int) -> int: ...
    def combine_crc32c(self, first: int, second: int, second_length: int) -> int: ...
    def combine_crc64nvme(self, first: int, second: int, second_length: int) -> int: ...


def _native() -> _Native:
    from awscrt import checksums  # type: ignore[import-untyped]

    return cast(_Native, checksums)


def preload() -> None:
    """Import what computes, now rather than in the middle of a training step."""
    _native()


def crc32c(data: Buffer, previous: int = 0) -> int:
    """CRC-32C of ``data`` (any C-contiguous buffer), which follows bytes whose value is ``previous``."""
    return _native().crc32c(cast(bytes, data), previous)


def crc64nvme(data: Buffer, previous: int = 0) -> int:
    """CRC-64/NVME of ``data`` (any C-contiguous buffer), which follows bytes whose value is ``previous``."""
    return _native().crc64nvme(cast(bytes, data), previous)


def combine_crc32c(first: int, second: int, second_length: int) -> int:
    """CRC-32C of two neighbours from their own values and the length of the second in bytes (0.3 µs)."""
    return _native().combine_crc32c(first, second, second_length)


def combine_crc64nvme(first: int, second: int, second_length: int) -> int:
    """CRC-64/NVME of two neighbours from their own values and the length of the second in bytes."""
    return _native().combine_crc64nvme(first, second, second_length)


def combine_all_crc32c(pieces: Iterable[tuple[int, int]]) -> int:
    """CRC-32C of consecutive pieces, each given as (its CRC-32C, its length in bytes); 0 for none."""
    whole = 0
    for crc, length in pieces:
        whole = combine_crc32c(whole, crc, length)
    return whole


def crc32c_segments(segments: Segments, previous: int = 0) -> int:
    """CRC-32C of segments in order, as if they were one buffer."""
    for segment in segments:
        previous = crc32c(segment, previous)
    return previous


def crc64nvme_segments(segments: Segments, previous: int = 0) -> int:
    """CRC-64/NVME of segments in order, as if they were one buffer."""
    for segment in segments:
        previous = crc64nvme(segment, previous)
    return previous


def format_crc32c(value: int) -> str:
    """The recorded form: ``crc32c:`` and 8 hex digits."""
    return f"{PREFIX}{value:08x}"


def parse_crc32c(text: object) -> int:
    """The value of a recorded checksum; ``ManifestError`` unless it is ``crc32c:`` and 8 lower-case hex digits."""
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        shown = repr(text[:_SHOWN]) if isinstance(text, str) else type(text).__name__
        raise ManifestError(f"{shown} is not a checksum: it must be crc32c: and 8 lower-case hex digits")
    return int(match[1], 16)
