from __future__ import annotations

import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.errors import CorruptError
from s3dlio.engine.zstdframe import BLOCK_MAX, MAGIC, Walk, raw_frame_size, write_raw_frame

LIMIT = 8 << 20
SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"hello"


def raw_frame(data: bytes) -> bytes:
    out = bytearray(raw_frame_size(len(data)))
    assert write_raw_frame(memoryview(data), memoryview(out)) == len(out)
    return bytes(out)


def walk(*pieces: bytes, window_max: int = LIMIT) -> Walk:
    walked = Walk(window_max)
    for piece in pieces:
        walked.feed(memoryview(piece))
    walked.finish()
    return walked


@pytest.mark.parametrize("length", [0, 1, BLOCK_MAX - 1, BLOCK_MAX, BLOCK_MAX + 1, 3 * BLOCK_MAX])
def test_a_raw_frame_is_standard(length: int) -> None:
    data = bytes(range(256)) * (length // 256) + bytes(length % 256)
    frame = raw_frame(data)
    assert zstandard.get_frame_parameters(frame).content_size == length
    assert zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False) == data
    assert walk(frame).content == length


@given(st.lists(st.tuples(st.binary(max_size=3000), st.booleans(), st.booleans())), st.lists(st.integers(1, 40)))
def test_any_frames_in_any_pieces(contents: list[tuple[bytes, bool, bool]], cuts: list[int]) -> None:
    stream = b""
    for data, checksum, sized in contents:
        compressor = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=sized)
        stream += compressor.compress(data) + SKIPPABLE
    pieces, position = [], 0
    for cut in cuts:
        pieces.append(stream[position : position + cut])
        position += cut
    walked = walk(*pieces, stream[position:])
    # An empty frame without its size still tells it: libzstd writes nothing else for it.
    sized = all(sized or not data for data, _, sized in contents)
    if sized:
        assert walked.content in (None, sum(len(data) for data, _, _ in contents))
    else:
        assert walked.content is None


def test_every_cut_of_a_stream_is_seen() -> None:
    stream = zstandard.ZstdCompressor(write_checksum=True).compress(b"some text " * 50) + SKIPPABLE + raw_frame(b"abc")
    ends = {0, len(stream) - len(raw_frame(b"abc")), len(stream) - len(raw_frame(b"abc")) - len(SKIPPABLE)}
    for cut in range(1, len(stream)):
        if cut in ends:
            walk(stream[:cut])
        else:
            with pytest.raises(CorruptError, match="cut short"):
                walk(stream[:cut])


def header(descriptor: int, *rest: int) -> bytes:
    return struct.pack("<IB", MAGIC, descriptor) + bytes(rest)


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (b"\x00\x00\x00\x00", "no zstd frame"),
        (raw_frame(b"abc") + b"garbage", "no zstd frame"),
        (raw_frame(b"abc") + b"\x28", "cut short"),
        (header(0x08, 0x38), "reserved bit"),
        (header(0x00, 0xFF), "window"),
        (header(0xE0, *b"\xff\xff\xff\xff\xff\xff\xff\xff"), "window"),
        (header(0x01, 0x38, 7), "dictionary 7"),
        (header(0x00, 0x38, 0x07, 0, 0), "does not allow"),
        (header(0x00, 0x38, *(((BLOCK_MAX + 1) << 3) | 1).to_bytes(3, "little")), "does not allow"),
    ],
)
def test_what_is_no_stream_is_refused(stream: bytes, told: str) -> None:
    with pytest.raises(CorruptError, match=told):
        walk(stream)


def test_a_window_up_to_the_limit_passes() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=21)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stream.compress(b"x") + stream.flush()
    assert walk(data).window == 1 << 21
    with pytest.raises(CorruptError, match=f"at most {1 << 20}"):
        walk(data, window_max=1 << 20)


@given(st.binary(max_size=400))
def test_hostile_bytes_never_do_more_than_raise(data: bytes) -> None:
    for stream in (data, struct.pack("<I", MAGIC) + data):
        try:
            walk(stream)
        except CorruptError:
            pass
