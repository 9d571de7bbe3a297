"""What completes a multipart upload, and how a lost answer to that is settled: pure functions over receipts.

Owns the parameters of CompleteMultipartUpload and the comparisons with what a store says of parts and of the object;
never makes a request. ``s3`` calls it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..contract import PartReceipt
from ..errors import CorruptError
from . import crc64
from .s3_abilities import Mode

_MD5_TAG = re.compile(r'"?([0-9a-f]{32})"?')


def beginning(mode: Mode) -> dict[str, str]:
    """The parameters by which an upload says how it will be verified."""
    if mode == "full":
        return {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
    return {"ChecksumAlgorithm": "CRC64NVME"} if mode == "part" else {}


def completion(parts: Sequence[PartReceipt], size: int, mode: Mode) -> dict[str, Any]:
    """The parameters that make the object of ``parts``, with all checksums the store compares."""
    listed = []
    for part in parts:
        entry: dict[str, Any] = {"PartNumber": part.number, "ETag": part.tag}
        if part.crc64 is not None and mode in ("full", "part"):
            entry["ChecksumCRC64NVME"] = crc64.big_endian(part.crc64)
        listed.append(entry)
    parameters: dict[str, Any] = {"MultipartUpload": {"Parts": listed}}
    if mode == "full":
        parameters |= {"MpuObjectSize": size, "ChecksumType": "FULL_OBJECT"}
        whole = crc64.whole(parts)
        if whole is not None:
            parameters["ChecksumCRC64NVME"] = crc64.big_endian(whole)
    return parameters


def verified(parts: Sequence[PartReceipt]) -> str:
    """By what all of ``parts`` were verified; "" if not all were, or not alike."""
    found = {part.verified for part in parts}
    return found.pop() if len(found) == 1 else ""


def needs_listing(parts: Sequence[PartReceipt], mode: Mode) -> bool:
    """Whether the stored parts must be listed and compared first, since the store itself will not compare them."""
    return mode != "full" or crc64.whole(parts) is None


def compare(what: str, parts: Sequence[PartReceipt], stored: Mapping[int, tuple[int, str]]) -> None:
    """``CorruptError`` unless ``stored`` (number to size and tag) holds all of ``parts``."""
    for part in parts:
        found = stored.get(part.number)
        if found != (part.size, part.tag):
            held = "nothing" if found is None else f"{found[0]} bytes with the tag {found[1]}"
            raise CorruptError(
                f"{what}: as part {part.number} the store holds {held}; {part.size} bytes with the tag {part.tag} were "
                "sent; save again"
            )


def is_made_of(head: Mapping[str, Any], parts: Sequence[PartReceipt], size: int) -> bool:
    """Whether the stored object that ``head`` describes is the one that ``parts`` make: by size and checksum.

    Where the store tells no checksum the tag decides, which for a multipart object is the MD5 of its parts' MD5s. Where
    tags are something else nothing tells it from an older object of that size, and it is not believed.
    """
    if head["ContentLength"] != size:
        return False
    whole, stored = crc64.whole(parts), crc64.parse_big_endian(head.get("ChecksumCRC64NVME"))
    if whole is not None and stored is not None:
        return whole == stored
    tag = tag_of(parts)
    return tag is not None and str(head.get("ETag", "")).strip('"') == tag


def tag_of(parts: Sequence[PartReceipt]) -> str | None:
    """The tag of the object that ``parts`` make where tags are MD5s; ``None`` where they are something else."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        match = _MD5_TAG.fullmatch(part.tag)
        if match is None:
            return None
        digest.update(bytes.fromhex(match[1]))
    return f"{digest.hexdigest()}-{len(parts)}"
