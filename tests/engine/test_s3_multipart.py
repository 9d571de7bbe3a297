"""What completes an upload, and whether a stored object is the one its parts make."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from s3dlio.engine.backends import crc64, s3_multipart
from s3dlio.engine.backends.s3_abilities import Mode
from s3dlio.engine.contract import PartReceipt
from s3dlio.engine.errors import CorruptError

BODIES = [b"first part", b"second", b""]
SIZE = sum(map(len, BODIES))
WHOLE = crc64.of([memoryview(b"".join(BODIES))])


def tag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def receipts(checksums: bool = True, verified: str = "crc64nvme") -> list[PartReceipt]:
    found, offset = [], 0
    for number, body in enumerate(BODIES, start=1):
        crc = crc64.of([memoryview(body)]) if checksums else None
        found.append(PartReceipt(number, offset, len(body), tag(body), crc, verified))
        offset += len(body)
    return found


def listed(parts: list[PartReceipt]) -> dict[int, tuple[int, str]]:
    return {part.number: (part.size, part.tag) for part in parts}


def test_a_whole_checksum_is_given_where_it_is_compared() -> None:
    parameters = s3_multipart.completion(receipts(), SIZE, "full")
    assert parameters["ChecksumCRC64NVME"] == crc64.big_endian(WHOLE)
    assert (parameters["ChecksumType"], parameters["MpuObjectSize"]) == ("FULL_OBJECT", SIZE)
    sent = parameters["MultipartUpload"]["Parts"]
    assert [part["PartNumber"] for part in sent] == [1, 2, 3]
    assert [part["ETag"] for part in sent] == [tag(body) for body in BODIES]
    assert [part["ChecksumCRC64NVME"] for part in sent] == [
        crc64.big_endian(crc64.of([memoryview(body)])) for body in BODIES
    ]


@pytest.mark.parametrize("mode", ["part", "md5", "none"])
def test_elsewhere_only_what_the_store_knows(mode: Mode) -> None:
    parameters = s3_multipart.completion(receipts(checksums=mode == "part"), SIZE, mode)
    assert set(parameters) == {"MultipartUpload"}
    assert all(("ChecksumCRC64NVME" in part) == (mode == "part") for part in parameters["MultipartUpload"]["Parts"])


@pytest.mark.parametrize(("mode", "needed"), [("full", False), ("part", True), ("md5", True), ("none", True)])
def test_parts_are_listed_where_the_store_compares_no_whole(mode: Mode, needed: bool) -> None:
    assert s3_multipart.needs_listing(receipts(), mode) is needed
    assert s3_multipart.needs_listing(receipts(checksums=False), mode)


def test_the_beginning_says_how_the_end_will_be_verified() -> None:
    assert s3_multipart.beginning("full") == {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
    assert s3_multipart.beginning("part") == {"ChecksumAlgorithm": "CRC64NVME"}
    assert s3_multipart.beginning("md5") == s3_multipart.beginning("none") == {}


def test_an_object_is_verified_as_all_of_its_parts_are() -> None:
    assert s3_multipart.verified(receipts()) == "crc64nvme"
    assert s3_multipart.verified(receipts(verified="md5")) == "md5"
    assert s3_multipart.verified([*receipts(), *receipts(verified="md5")]) == ""


def test_parts_that_are_stored_as_sent() -> None:
    s3_multipart.compare("s3://b/k", receipts(), listed(receipts()) | {9: (1, "left over")})


@pytest.mark.parametrize("other", [{2: (7, tag(b"second"))}, {2: (6, tag(b"other!"))}, {2: None}])
def test_parts_that_are_not(other: dict[int, Any]) -> None:
    stored = {number: found for number, found in (listed(receipts()) | other).items() if found}
    with pytest.raises(CorruptError, match="s3://b/k: as part 2 the store holds"):
        s3_multipart.compare("s3://b/k", receipts(), stored)


HASHED = s3_multipart.tag_of(receipts())


@pytest.mark.parametrize(
    ("head", "checksums", "ours"),
    [
        ({"ChecksumCRC64NVME": crc64.big_endian(WHOLE), "ETag": "x"}, True, True),
        ({"ChecksumCRC64NVME": crc64.big_endian(WHOLE + 1), "ETag": HASHED}, True, False),
        ({"ChecksumCRC64NVME": crc64.big_endian(WHOLE), "ContentLength": SIZE + 1}, True, False),
        ({"ETag": f'"{HASHED}"'}, True, True),
        ({"ETag": f'"{HASHED}"'}, False, True),
        ({"ETag": tag(b"".join(BODIES))}, True, False),
        ({"ETag": f'"{HASHED}"', "ContentLength": SIZE - 1}, False, False),
        ({}, False, False),
    ],
)
def test_whose_object_it_is(head: dict[str, Any], checksums: bool, ours: bool) -> None:
    assert s3_multipart.is_made_of({"ContentLength": SIZE} | head, receipts(checksums), SIZE) is ours


def test_where_tags_are_no_md5_the_size_does_not_do() -> None:
    parts = [PartReceipt(1, 0, SIZE, '"opaque"')]
    assert s3_multipart.tag_of(parts) is None
    assert not s3_multipart.is_made_of({"ContentLength": SIZE, "ETag": '"z"'}, parts, SIZE)


def test_the_tag_of_parts_as_stores_make_it() -> None:
    digests = b"".join(hashlib.md5(body, usedforsecurity=False).digest() for body in BODIES)
    assert f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-3" == HASHED
