"""Encodes and decodes chunks: ``none``, ``zstd``, ``zstd-grouped``.

Owns the codecs' names and the choice to store a chunk raw; never touches storage, checksums or the raw bytes. Workers
call it, in several threads at once: compressors and buffers are each thread's own and kept for its next chunk. Encoding
is deterministic, so that a task may be sent again. What the codecs write stands in ``s3dlio/FORMAT.md``, what was
measured in ``grouping``.

A chunk that does not shrink becomes, under ``zstd``, a frame of raw blocks, so that the shard stays a standard stream;
under ``zstd-grouped`` it is stored under ``none``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, cast

import zstandard

from .errors import ConfigError, CorruptError
from .grouping import Grouper, Runs
from .zstdframe import Walk, raw_frame_size, write_raw_frame

NONE, ZSTD, GROUPED = "none", "zstd", "zstd-grouped"
NAMES = (NONE, ZSTD, GROUPED)
LEVEL = 3
"""Default level of ``zstd``."""
LEVELS = range(1, 23)

WINDOW_MAX = 128 << 20
"""Largest window accepted while decoding, that of zstd's highest level: what a hostile stream can make us allocate."""

_STREAM_BLOCK = 1 << 20
_PAGE = 4 << 10


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """How to encode one chunk: ``level`` counts for ``zstd`` (1 to 22), ``runs`` for ``zstd-grouped``."""

    name: str
    level: int = LEVEL
    runs: Runs = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """``codec`` as used, ``length`` of the stored bytes; under ``none`` the raw bytes themselves are to be stored."""

    codec: str
    length: int


class _Lane(threading.local):
    """What one thread keeps for its next chunk: at most one compressor of a level, one decompressor, one grouper."""

    def __init__(self) -> None:
        self._level = 0
        self._compressor: zstandard.ZstdCompressor | None = None
        self._decompressor: zstandard.ZstdDecompressor | None = None
        self._grouper: Grouper | None = None

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if self._compressor is None or self._level != level:
            self._compressor, self._level = zstandard.ZstdCompressor(level=level), level
        return self._compressor

    @property
    def decompressor(self) -> zstandard.ZstdDecompressor:
        if self._decompressor is None:
            self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
        return self._decompressor

    @property
    def grouper(self) -> Grouper:
        if self._grouper is None:
            self._grouper = Grouper()
        return self._grouper


_lane = _Lane()


def check_name(name: str) -> str:
    """Return ``name``; ``ConfigError`` unless it names a codec."""
    if name not in NAMES:
        raise ConfigError(f"{name!r} is no codec: it must be one of {', '.join(NAMES)}")
    return name


def bound(name: str, length: int) -> int:
    """Most bytes that a chunk of ``length`` raw bytes can take once encoded."""
    return raw_frame_size(length) if check_name(name) == ZSTD else length


def headroom(name: str, slot_size: int) -> int:
    """Bytes by which a raw chunk must be smaller than a slot, so that its worst encoding fits the slot; whole pages."""
    overhead = bound(name, slot_size) - slot_size
    return -(-overhead // _PAGE) * _PAGE


def encode(spec: CodecSpec, raw: memoryview, out: memoryview) -> Encoded:
    """Encode ``raw`` to the start of ``out``, of at least ``bound(spec.name, len(raw))`` bytes and apart from ``raw``.

    Both are contiguous views of format ``B``. Raises ``ConfigError`` for an unknown name, a level out of range, runs
    that do not fit, or too small an ``out``.
    """
    name = check_name(spec.name)
    if name == NONE:
        return Encoded(NONE, len(raw))
    if len(out) < bound(name, len(raw)):
        raise ConfigError(f"{len(raw)} bytes may need {bound(name, len(raw))} bytes encoded, the buffer has {len(out)}")
    if name == ZSTD:
        return Encoded(ZSTD, _encode_zstd(raw, spec.level, out))
    length = _lane.grouper.encode(raw, spec.runs, out)
    return Encoded(NONE, len(raw)) if length is None else Encoded(GROUPED, length)


def decode(name: str, stored: memoryview, out: memoryview) -> None:
    """Decode a whole chunk into ``out``, which has exactly its raw size.

    Raises ``CorruptError`` if ``stored`` is malformed or is not of that size decoded, ``ConfigError`` for an unknown
    name. Then ``out`` holds anything. Memory beyond both buffers is bounded by ``WINDOW_MAX``.
    """
    if check_name(name) == ZSTD:
        _decode_zstd(stored, out)
    elif name == GROUPED:
        _lane.grouper.decode(stored, out)
    elif len(stored) == len(out):
        out[:] = stored
    else:
        raise CorruptError(f"a raw chunk has {len(stored)} bytes instead of {len(out)}")


def decode_stream(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    """Decode a zstd stream of unknown size that arrives in ``pieces``, in blocks of at most 1 MiB.

    A block is valid until the next one is asked for, a piece until the next is taken. Raises ``CorruptError`` for
    anything but whole frames; what was given out before the error is then not to be used.
    """
    walk = Walk(WINDOW_MAX)
    source = _Pieces(iter(pieces), walk)
    block = memoryview(bytearray(_STREAM_BLOCK))
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
    with decompressor.stream_reader(cast(IO[bytes], source), read_across_frames=True) as reader:
        while size := _read(reader, block):
            yield block[:size]
    walk.finish()


class _Pieces:
    """Pieces as a file that zstandard reads; the walk sees each piece first."""

    def __init__(self, pieces: Iterator[memoryview], walk: Walk) -> None:
        self._pieces = pieces
        self._walk = walk

    def read(self, _size: int) -> memoryview:
        """The next piece that has bytes, whatever its size; an empty one at the end."""
        for piece in self._pieces:
            if len(piece):
                self._walk.feed(piece)
                return piece
        return memoryview(b"")


def _encode_zstd(raw: memoryview, level: int, out: memoryview) -> int:
    if level not in LEVELS:
        raise ConfigError(f"zstd level {level} is not between {LEVELS[0]} and {LEVELS[-1]}")
    if len(raw):
        # Straight into `out`, and no further than to the raw size: then it does not shrink.
        with _lane.compressor(level).stream_reader(raw, size=len(raw)) as reader:
            length = reader.readinto(out[: len(raw)])
        if length < len(raw):
            return length
    return write_raw_frame(raw, out)


def _decode_zstd(stored: memoryview, out: memoryview) -> None:
    walk = Walk(WINDOW_MAX)
    walk.feed(stored)
    walk.finish()
    if walk.content is not None and walk.content != len(out):
        raise CorruptError(f"a zstd chunk decodes to {walk.content} bytes instead of {len(out)}")
    filled = 0
    with _lane.decompressor.stream_reader(stored, read_across_frames=True) as reader:
        while filled < len(out) and (size := _read(reader, out[filled:])):
            filled += size
        if filled < len(out) or _read(reader, memoryview(bytearray(1))):
            raise CorruptError(f"a zstd chunk does not decode to {len(out)} bytes")


def _read(reader: zstandard.ZstdDecompressionReader, into: memoryview) -> int:
    try:
        return reader.readinto(into)
    except zstandard.ZstdError as error:
        raise CorruptError(f"zstd data does not decode: {error}") from error
