"""The body of a request: the bytes of the segments, whatever the sizes asked for, and no reference kept."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.backends import crc64
from s3dlio.engine.backends.body import SegmentsBody
from s3dlio.engine.contract import PartReceipt

_pieces = st.lists(st.binary(max_size=9), max_size=6)


def body_of(pieces: list[bytes]) -> SegmentsBody:
    return SegmentsBody([memoryview(piece) for piece in pieces])


@given(pieces=_pieces, sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_reads_give_the_bytes_in_order(pieces: list[bytes], sizes: list[int]) -> None:
    body, whole, found = body_of(pieces), b"".join(pieces), b""
    assert len(body) == len(whole)
    while True:
        size = sizes[len(found) % len(sizes)]
        piece = body.read(size)
        assert len(piece) <= size
        if not piece:
            break
        found += piece
        assert body.tell() == len(found)
    assert found == whole
    assert body.read(5) == b""


@given(pieces=_pieces, moves=st.lists(st.tuples(st.sampled_from((0, 1, 2)), st.integers(-20, 20), st.integers(0, 12))))
def test_it_moves_as_a_file_does(pieces: list[bytes], moves: list[tuple[int, int, int]]) -> None:
    body, file = body_of(pieces), io.BytesIO(b"".join(pieces))
    for whence, offset, size in moves:
        base = (0, file.tell(), len(body))[whence]
        if base + offset < 0:
            with pytest.raises(ValueError, match="position"):
                body.seek(offset, whence)
            continue
        assert body.seek(offset, whence) == file.seek(base + offset)
        piece = bytes(body.read(size))
        assert piece == file.read(len(piece))
        assert piece or size == 0 or file.read(1) == b""
        assert body.tell() == base + offset + len(piece)
        file.seek(body.tell())


@given(pieces=_pieces, skipped=st.integers(0, 60))
def test_read_without_a_size_gives_all_that_follow(pieces: list[bytes], skipped: int) -> None:
    for size in (None, -1):
        body, whole = body_of(pieces), b"".join(pieces)
        body.seek(skipped)
        assert body.read(size) == whole[skipped:]
        assert body.read(size) == b""
        body.seek(0)
        assert body.read(size) == whole


def test_reading_copies_nothing() -> None:
    memory = bytearray(b"0123456789")
    body = SegmentsBody([memoryview(memory)])
    piece = body.read(4)
    memory[0] = ord("x")
    assert piece == b"x123"
    body.close()


@given(pieces=_pieces, least=st.integers(1, 12), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_a_read_may_give_more_than_was_asked_for(pieces: list[bytes], least: int, sizes: list[int]) -> None:
    body, found = SegmentsBody([memoryview(piece) for piece in pieces], least=least), b""
    ends = {sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)}
    for size in sizes * sum(map(len, pieces)):
        begun = len(found)
        found += body.read(size)
        assert len(found) == begun + max(size, least) or len(found) in ends
    assert found == b"".join(pieces)


def test_a_closed_body_holds_no_memory() -> None:
    memory = bytearray(100)
    with memoryview(memory) as view, SegmentsBody([view[:50], view[50:]]) as body:
        kept = body.read(10)
    with pytest.raises(ValueError, match="released"):
        bytes(kept)
    memory.clear()  # BufferError if a view were left
    assert (len(body), body.read(1), body.tell()) == (0, b"", 0)


def test_an_empty_body_is_a_body() -> None:
    assert body_of([])
    assert body_of([b""]).read(7) == b""
    assert body_of([]).seekable()
    assert body_of([]).readable()


# CRC-64/NVME

CHECK = 0xAE8B14860A799888  # the published value of b"123456789"


def test_the_published_check_value() -> None:
    assert crc64.of([memoryview(b"1234"), memoryview(b""), memoryview(b"56789")]) == CHECK
    assert crc64.of([]) == 0


def test_the_text_forms_differ_in_byte_order_only() -> None:
    assert crc64.big_endian(CHECK) == "rosUhgp5mIg="
    assert crc64.little_endian(CHECK) == "iJh5CoYUi64="


@given(value=st.integers(0, 2**64 - 1))
def test_text_forms_are_read_back(value: int) -> None:
    assert crc64.parse_big_endian(crc64.big_endian(value)) == value
    assert crc64.parse_little_endian(crc64.little_endian(value)) == value


@pytest.mark.parametrize("text", [None, "", "rosUhgp5mIg", "rosUhgp5mIg=-3", "AAAA", "é", "rosUhgp5mIgAAAA="])
def test_other_texts_are_no_checksum(text: str | None) -> None:
    assert crc64.parse_big_endian(text) is None
    assert crc64.parse_little_endian(text) is None


@given(pieces=st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_parts_combine_to_the_whole(pieces: list[bytes]) -> None:
    receipts = [
        PartReceipt(number, 0, len(piece), crc64=crc64.of([memoryview(piece)]))
        for number, piece in enumerate(pieces, start=1)
    ]
    assert crc64.whole(receipts) == crc64.of([memoryview(b"".join(pieces))])
    assert crc64.whole([*receipts, PartReceipt(9, 0, 1)]) is None
