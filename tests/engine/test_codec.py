from __future__ import annotations

import random
import shutil
import subprocess
import threading
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine import codec
from s3dlio.engine.codec import GROUPED, NAMES, NONE, ZSTD, CodecSpec
from s3dlio.engine.errors import ConfigError, CorruptError

NOISE = random.Random(0).randbytes(1 << 20)
TEXT = b"".join(b"%d bottles of beer on the wall\n" % n for n in range(40_000))


def encode(spec: CodecSpec, raw: bytes) -> tuple[str, bytes]:
    guard = b"guard"
    out = bytearray(codec.bound(spec.name, len(raw))) + guard
    kept = bytes(raw)
    encoded = codec.encode(spec, memoryview(raw).toreadonly(), memoryview(out)[: -len(guard)])
    assert bytes(out[-len(guard) :]) == guard
    assert raw == kept
    assert encoded.length <= codec.bound(spec.name, len(raw))
    return encoded.codec, raw if encoded.codec == NONE else bytes(out[: encoded.length])


def decode(name: str, stored: bytes, length: int) -> bytes:
    out = bytearray(length)
    codec.decode(name, memoryview(stored).toreadonly(), memoryview(out))
    return bytes(out)


chunks = st.one_of(
    st.binary(max_size=2000),
    st.builds(lambda piece, n: piece * n, st.binary(min_size=1, max_size=50), st.integers(0, 300)),
    st.builds(lambda start, n: NOISE[start : start + n], st.integers(0, 1000), st.integers(0, 9000)),
)


@given(chunks, st.sampled_from(NAMES), st.sampled_from([1, 3]))
def test_any_chunk_comes_back_and_encodes_the_same_again(raw: bytes, name: str, level: int) -> None:
    spec = CodecSpec(name, level)
    used, stored = encode(spec, raw)
    assert decode(used, stored, len(raw)) == raw
    assert encode(spec, raw) == (used, stored)


@pytest.mark.parametrize("name", [ZSTD, GROUPED])
def test_what_shrinks_is_stored_short(name: str) -> None:
    used, stored = encode(CodecSpec(name), TEXT)
    assert used == name
    assert len(stored) < len(TEXT) // 2


def test_what_does_not_shrink_is_stored_raw() -> None:
    assert encode(CodecSpec(GROUPED), NOISE) == (NONE, NOISE)
    used, stored = encode(CodecSpec(ZSTD), NOISE)
    assert used == ZSTD
    assert len(NOISE) < len(stored) == codec.bound(ZSTD, len(NOISE))
    assert zstandard.ZstdDecompressor().decompress(stored) == NOISE


def test_a_frame_that_would_just_not_shrink_is_replaced() -> None:
    # One byte around the size at which zstd's own frame is as long as the chunk.
    for length in range(1, 40):
        raw = b"a" * length
        used, stored = encode(CodecSpec(ZSTD), raw)
        assert decode(used, stored, length) == raw


def test_the_chunks_together_are_a_standard_stream(tmp_path: Path) -> None:
    raws = [TEXT, NOISE, b"", b"x", TEXT[:100_000]]
    stream = b"".join(encode(CodecSpec(ZSTD, level), raw)[1] for level, raw in zip((1, 3, 5, 9, 19), raws, strict=True))
    whole = b"".join(raws)
    reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    assert reader.read(len(whole) + 1) == whole
    assert decode(ZSTD, stream, len(whole)) == whole
    tool = shutil.which("zstd")
    assert tool, "the zstd tool is needed to test that its stream is standard"
    path = tmp_path / "shard.zst"
    path.write_bytes(stream)
    assert subprocess.run([tool, "-dc", str(path)], check=True, capture_output=True).stdout == whole


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slot", [4096, 1 << 20, 16 << 20, (16 << 20) + 1, 1 << 30])
def test_headroom_leaves_room_for_the_worst_chunk(name: str, slot: int) -> None:
    chunk = slot - codec.headroom(name, slot)
    assert codec.headroom(name, slot) % 4096 == 0
    assert codec.bound(name, chunk) <= slot


def test_wrong_arguments_are_refused_before_anything_is_written() -> None:
    raw, out = memoryview(bytes(100)), bytearray(200)
    for spec, told in (
        (CodecSpec("lz4"), "no codec"),
        (CodecSpec("raw"), "none, zstd, zstd-grouped"),
        (CodecSpec(ZSTD, level=0), "between 1 and 22"),
        (CodecSpec(ZSTD, level=23), "between 1 and 22"),
        (CodecSpec(GROUPED, runs=((0, 101, 4),)), "does not fit"),
    ):
        with pytest.raises(ConfigError, match=told):
            codec.encode(spec, raw, memoryview(out))
    with pytest.raises(ConfigError, match="the buffer has 99"):
        codec.encode(CodecSpec(ZSTD), raw, memoryview(out)[:99])
    assert bytes(out) == bytes(200)
    with pytest.raises(ConfigError, match="no codec"):
        codec.decode("lz4", raw, memoryview(out))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_than_stored_is_corruption(name: str, change: int) -> None:
    used, stored = encode(CodecSpec(name), TEXT)
    with pytest.raises(CorruptError):
        decode(used, stored, len(TEXT) + change)


@pytest.mark.parametrize("name", [ZSTD, GROUPED])
@pytest.mark.parametrize("tail", [b"\0", b"garbage", b"\x28\xb5\x2f\xfd"])
def test_garbage_behind_a_chunk_is_corruption(name: str, tail: bytes) -> None:
    used, stored = encode(CodecSpec(name), TEXT)
    with pytest.raises(CorruptError):
        decode(used, stored + tail, len(TEXT))


@pytest.mark.parametrize("name", [ZSTD, GROUPED])
def test_every_cut_is_corruption(name: str) -> None:
    raw = TEXT[:3000]
    used, stored = encode(CodecSpec(name), raw)
    assert used == name
    for cut in range(len(stored)):
        with pytest.raises(CorruptError):
            decode(used, stored[:cut], len(raw))


@given(st.data(), st.sampled_from([ZSTD, GROUPED]))
def test_a_damaged_chunk_raises_or_gives_its_size(data: st.DataObject, name: str) -> None:
    raw = TEXT[:2000] + NOISE[:500]
    used, stored = encode(CodecSpec(name), raw)
    damaged = bytearray(stored)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(used, bytes(damaged), len(raw))
    except CorruptError:
        pass
    assert decode(used, stored, len(raw)) == raw  # the thread's decompressor is as good as new


@given(st.binary(max_size=300), st.integers(0, 300), st.sampled_from([ZSTD, GROUPED]))
def test_hostile_bytes_never_do_more_than_raise(stored: bytes, length: int, name: str) -> None:
    try:
        decode(name, stored, length)
    except CorruptError:
        pass


def test_a_small_chunk_that_claims_to_be_large_takes_no_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    stream = zstandard.ZstdCompressor().compressobj()
    unsized = stream.compress(bytes(64 << 20)) + stream.flush()
    tracemalloc.start()
    try:
        for stored in (bomb, unsized):
            with pytest.raises(CorruptError, match=r"(instead of|does not decode to) 100"):
                decode(ZSTD, stored, 100)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    stored = stream.compress(b"x" * 100) + stream.flush()
    with pytest.raises(CorruptError, match="window"):
        decode(ZSTD, stored, 100)


def test_frames_without_sizes_decode() -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    stored = stream.compress(TEXT) + stream.flush()
    assert decode(ZSTD, stored + stored, 2 * len(TEXT)) == TEXT + TEXT


@given(chunks, st.lists(st.integers(1, 5000), max_size=5))
def test_a_stream_decodes_in_any_pieces(raw: bytes, cuts: list[int]) -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    stored = stream.compress(raw) + stream.flush() + zstandard.ZstdCompressor().compress(raw)
    pieces, position = [], 0
    for cut in cuts:
        pieces.append(memoryview(stored[position : position + cut]))
        position += cut
    pieces.append(memoryview(stored[position:]))
    assert b"".join(map(bytes, codec.decode_stream(pieces))) == raw + raw


def test_a_stream_decodes_in_bounded_blocks() -> None:
    stored = memoryview(zstandard.ZstdCompressor().compress(bytes(10 << 20)))
    sizes = [len(block) for block in codec.decode_stream([stored])]
    assert sum(sizes) == 10 << 20
    assert max(sizes) <= 1 << 20


@pytest.mark.parametrize("pieces", [[b"not zstd at all"], [b"\x28\xb5"], [b"\x28\xb5\x2f\xfd\x00"]])
def test_a_stream_that_is_none_is_corruption(pieces: list[bytes]) -> None:
    with pytest.raises(CorruptError):
        list(codec.decode_stream(map(memoryview, pieces)))


def test_a_stream_that_is_cut_or_flipped_is_corruption() -> None:
    stored = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    with pytest.raises(CorruptError, match="cut short"):
        list(codec.decode_stream([memoryview(stored[:-1])]))
    flipped = bytearray(stored)
    flipped[len(stored) // 2] ^= 1
    with pytest.raises(CorruptError):
        list(codec.decode_stream([memoryview(flipped)]))


def test_an_empty_stream_is_empty() -> None:
    assert list(codec.decode_stream([])) == []


def test_lanes_do_not_share_compressors() -> None:
    expected = {(name, level): encode(CodecSpec(name, level), TEXT) for name in (ZSTD, GROUPED) for level in (1, 3)}
    wrong: list[object] = []

    def lane(level: int) -> None:
        for name in (ZSTD, GROUPED) * 2:
            found = encode(CodecSpec(name, level), TEXT)
            if found != expected[name, level] or decode(*found, len(TEXT)) != TEXT:
                wrong.append((name, level))

    threads = [threading.Thread(target=lane, args=(level,)) for level in (1, 3, 1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
