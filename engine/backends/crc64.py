"""CRC-64/NVME as object stores write it: S3 and Azure compute the same function and differ in the byte order only.

Owns the two text forms and the value of a whole object made of parts; the arithmetic is ``engine.checksum``'s. The
object stores' backends call it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from ..checksum import combine_crc64nvme, crc64nvme_segments
from ..contract import PartReceipt, Segments

NAME = "crc64nvme"
"""What ``verified`` says where a store has compared this checksum."""


def of(segments: Segments) -> int:
    """The checksum of segments in order, as if they were one buffer; 0 for no bytes."""
    return crc64nvme_segments(segments)


def whole(parts: Iterable[PartReceipt]) -> int | None:
    """The checksum of the object that consecutive ``parts`` make; ``None`` if one of them has none."""
    value = 0
    for part in parts:
        if part.crc64 is None:
            return None
        value = combine_crc64nvme(value, part.crc64, part.size)
    return value


def big_endian(value: int) -> str:
    """The form of S3: base64 of 8 bytes, the highest first."""
    return base64.b64encode(value.to_bytes(8, "big")).decode()


def little_endian(value: int) -> str:
    """The form of Azure: base64 of 8 bytes, the lowest first."""
    return base64.b64encode(value.to_bytes(8, "little")).decode()


def parse_big_endian(text: str | None) -> int | None:
    """The value of S3's form; ``None`` for nothing and for what is no such form (a checksum of checksums, say)."""
    return _parse(text, "big")


def parse_little_endian(text: str | None) -> int | None:
    """The value of Azure's form; ``None`` for nothing and for what is no such form."""
    return _parse(text, "little")


def _parse(text: str | None, order: str) -> int | None:
    try:
        raw = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) != 8:
        return None
    return int.from_bytes(raw, "big" if order == "big" else "little")
