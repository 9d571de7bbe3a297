from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine import checksum
from s3dlio.engine.errors import ManifestError


def test_known_values() -> None:
    assert checksum.crc32c(b"123456789") == 0xE3069283
    assert checksum.crc64nvme(b"123456789") == 0xAE8B14860A799888
    assert checksum.crc32c(b"") == checksum.crc64nvme(b"") == 0


@given(st.binary(), st.binary())
def test_a_value_continues_and_combines(a: bytes, b: bytes) -> None:
    assert checksum.crc32c(b, checksum.crc32c(a)) == checksum.crc32c(a + b)
    assert checksum.combine_crc32c(checksum.crc32c(a), checksum.crc32c(b), len(b)) == checksum.crc32c(a + b)
    assert checksum.crc64nvme(b, checksum.crc64nvme(a)) == checksum.crc64nvme(a + b)
    assert checksum.combine_crc64nvme(checksum.crc64nvme(a), checksum.crc64nvme(b), len(b)) == checksum.crc64nvme(a + b)


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_pieces_and_segments_make_the_whole(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert checksum.combine_all_crc32c((checksum.crc32c(p), len(p)) for p in pieces) == checksum.crc32c(whole)
    segments = [memoryview(p) for p in pieces]
    assert checksum.crc32c_segments(segments) == checksum.crc32c(whole)
    assert checksum.crc64nvme_segments(segments) == checksum.crc64nvme(whole)


def test_a_piece_beyond_four_gib_combines() -> None:
    zeros = memoryview(bytearray(1 << 20))
    one = checksum.crc32c(zeros)
    by_doubling, length = one, 1 << 20
    for _ in range(13):
        by_doubling = checksum.combine_crc32c(by_doubling, by_doubling, length)
        length *= 2
    half = by_doubling
    by_mebibytes = checksum.combine_all_crc32c([(one, 1 << 20)] * 8192)
    assert half == by_mebibytes


def test_any_contiguous_buffer_is_read_in_place() -> None:
    view = memoryview(bytearray(b"0123456789abcdef"))
    assert checksum.crc32c(view[3:9]) == checksum.crc32c(b"345678")
    with pytest.raises(BufferError):
        checksum.crc32c(view[::2])


@given(st.integers(0, 0xFFFFFFFF))
def test_text_form_round_trips(value: int) -> None:
    text = checksum.format_crc32c(value)
    assert len(text) == len("crc32c:") + 8
    assert checksum.parse_crc32c(text) == value


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        b"crc32c:00000000",
        "",
        "00000000",
        "crc32c:",
        "crc32c:0000000",
        "crc32c:000000000",
        "crc32c:0000000G",
        "crc32c:ABCDEF01",
        "CRC32C:00000000",
        "crc32c:0x000000",
        "crc32c:+0000000",
        "crc32c: 0000000",
        " crc32c:00000000",
        "crc32c:00000000\n",
        "crc32c:" + "\N{ARABIC-INDIC DIGIT ZERO}" * 8,
        "crc32:00000000",
        "crc32c:" + "0" * 10_000_000,
    ],
    ids=lambda text: repr(text)[:20],
)
def test_malformed_text_is_refused(text: object) -> None:
    with pytest.raises(ManifestError, match="8 lower-case hex digits") as caught:
        checksum.parse_crc32c(text)
    assert len(str(caught.value)) < 200


def test_the_native_library_is_imported_with_the_first_checksum() -> None:
    code = (
        "import sys; from s3dlio.engine import checksum; assert '_awscrt' not in sys.modules;"
        "checksum.crc32c(b'x'); assert '_awscrt' in sys.modules; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
