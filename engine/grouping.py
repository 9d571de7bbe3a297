"""The ``zstd-grouped`` codec: bytes of equal significance side by side, then zstd where it pays.

Floats of a trained model hardly repeat, but their high bytes (sign, exponent) have few values. So the elements of a run
are split into byte planes; a plane that a sample shows to shrink passes zstd, the others are stored as they are. The
match finder is starved (strategy fast, hash_log 6, min_match 7): matches between exponents gain nothing over their
entropy and cost half of the speed. Owns grouping and ungrouping and their layout (``s3dlio/FORMAT.md``, Codecs);
``codec`` calls it inside workers. Needs NumPy, which is imported with the first grouped chunk only.

The same chunk and runs give the same bytes. Measured on one core (AMD EPYC, AVX-512): splitting with NumPy's casts and
shifts 17 GB/s for two planes, 7 for four, against 3.6 for strided copies or a transposition.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import zstandard

from .errors import ConfigError, CorruptError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    Array = NDArray[Any]

Runs = tuple[tuple[int, int, int], ...]
"""Element widths inside one chunk: (start, stop, width) in bytes, ascending, apart; what no run covers has width 1."""

WIDTHS = (1, 2, 4, 8)
ELEMENTS = 512 << 10
"""Elements of a node. On a trained bf16 + Adam state 128 Ki save 18.7 % at 1.24 GB/s, 512 Ki 19.2 % at 1.29: zstd
splits blocks where the values change only from a frame's second block on. 1 Mi saves 0.2 % more, for twice
the buffers."""

_VERSION = 1
_HEADER = struct.Struct("<BI")
_RUN = struct.Struct("<QB")
_RAW, _ZSTD, _SPLIT = 0, 1, 2
_FRAME = struct.Struct("<BI")
_RUN_MIN = 4 << 10  # a shorter run would cost more in headers than it gains: its bytes count as width 1
_PIECES, _PIECE = 16, 512  # elements of the sample: zstd takes 2 µs for it, 60 to 1500 for the plane


def normalise(runs: Runs, length: int) -> list[tuple[int, int]]:
    """Runs that cover a chunk of ``length`` bytes, as (length, width): neighbours joined, gaps and short runs width 1.

    Raises ``ConfigError`` where runs overlap, leave the chunk, or have a width that is not 1, 2, 4 or 8.
    """
    covered: list[tuple[int, int]] = []

    def add(size: int, width: int) -> None:
        if size and covered and covered[-1][1] == width:
            covered[-1] = (covered[-1][0] + size, width)
        elif size:
            covered.append((size, width))

    position = 0
    for start, stop, width in _join(runs):
        if start < position or stop < start or stop > length or width not in WIDTHS:
            raise ConfigError(
                f"run ({start}, {stop}, {width}) does not fit a chunk of {length} bytes after byte {position}: "
                "runs are (start, stop, width), ascending, apart, and of width 1, 2, 4 or 8"
            )
        whole = (stop - start) // width * width if stop - start >= _RUN_MIN else 0
        add(start - position, 1)
        add(whole, width)
        add(stop - start - whole, 1)
        position = stop
    add(length - position, 1)
    return covered


def _join(runs: Runs) -> list[tuple[int, int, int]]:
    joined: list[tuple[int, int, int]] = []
    for start, stop, width in runs:
        if joined and joined[-1][1:] == (start, width) and stop >= start:
            joined[-1] = (joined[-1][0], stop, width)
        else:
            joined.append((start, stop, width))
    return joined


class Grouper:
    """Encodes and decodes chunks; has 3.5 MiB of buffers (1.5 where no element is wider than 4); for one thread."""

    def __init__(self) -> None:
        import numpy

        self._np = numpy
        self._types = {width: numpy.dtype(f"<u{width}") for width in WIDTHS}
        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST, hash_log=6, min_match=7, window_log=17, write_content_size=True
        )
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self._decompressor = zstandard.ZstdDecompressor()
        self._halves = {width: numpy.empty(ELEMENTS, self._types[width]) for width in WIDTHS[:-1]}
        self._sample = numpy.empty((WIDTHS[-1], _PIECES, _PIECE), numpy.uint8)

    def encode(self, raw: memoryview, runs: Runs, out: memoryview) -> int | None:
        """Encode ``raw`` to the start of ``out``; the length, or None if it would not get shorter.

        Then ``out`` holds anything. Raises ``ConfigError`` where ``runs`` do not fit ``raw``.
        """
        covered = normalise(runs, len(raw))
        room = min(len(out), len(raw) - 1)
        header = _HEADER.pack(_VERSION, len(covered)) + b"".join(_RUN.pack(*run) for run in covered)
        if len(header) > room:
            return None
        writer = _Writer(self._np.frombuffer(out, self._np.uint8, room))
        writer.put(header)
        position = 0
        for length, width in covered:
            elements = self._np.frombuffer(raw, self._types[width], length // width, position)
            for start in range(0, len(elements), ELEMENTS):
                block = elements[start : start + ELEMENTS]
                if not self._encode(block, self._shrinking(block), writer):
                    return None
            position += length
        return writer.position

    def _shrinking(self, elements: Array) -> list[bool]:
        """For each plane, low to high, whether zstd makes a sample of it shorter; short planes are all tried."""
        width, segment = elements.itemsize, len(elements) // _PIECES
        if segment < 2 * _PIECE:
            return [True] * width
        planes = elements[: segment * _PIECES].view(self._np.uint8).reshape(_PIECES, segment, width)
        sample = self._sample[:width]
        self._np.copyto(sample, planes[:, :_PIECE].transpose(2, 0, 1))
        return [len(self._compressor.compress(plane.data)) < plane.size for plane in sample]

    def _encode(self, elements: Array, shrinking: list[bool], writer: _Writer) -> bool:
        """Write one node; False if there is no room for it."""
        np, width = self._np, elements.itemsize
        if not any(shrinking):
            target = writer.plain(elements.nbytes)
            if target is not None:
                target.view(elements.dtype)[...] = elements
            return target is not None
        if width == 1:
            frame = self._compressor.compress(elements.data)
            if len(frame) + _FRAME.size < len(elements):
                return writer.put(_FRAME.pack(_ZSTD, len(frame))) and writer.put(frame)
            return self._encode(elements, [False], writer)
        if not writer.put(bytes([_SPLIT])):
            return False
        half = width // 2
        for shift, planes in ((8 * half, shrinking[half:]), (0, shrinking[:half])):
            plain = not any(planes)
            room = writer.plain(len(elements) * half) if plain else self._halves[half][: len(elements)]
            if room is None:
                return False
            target = room.view(self._types[half])  # no aligned address needed: 1 % slower without, as measured
            if shift:
                np.right_shift(elements, shift, out=target, casting="unsafe")
            else:
                np.copyto(target, elements, casting="unsafe")
            if not plain and not self._encode(target, planes, writer):
                return False
        return True

    def decode(self, stored: memoryview, out: memoryview) -> None:
        """Decode the whole chunk ``stored`` into ``out``, which has its raw size.

        Raises ``CorruptError`` if ``stored`` is no such chunk; memory is bounded by the buffers whatever it claims.
        """
        reader = _Reader(stored)
        position = 0
        for length, width in _read_header(reader, len(out)):
            elements = self._np.frombuffer(out, self._types[width], length // width, position)
            for start in range(0, len(elements), ELEMENTS):
                block = elements[start : start + ELEMENTS]
                found = self._decode(reader, block)
                if found is not block:
                    block[...] = found
            position += length
        if reader.position != len(stored):
            raise CorruptError(f"a grouped chunk has {len(stored) - reader.position} bytes after its end")

    def _decode(self, reader: _Reader, target: Array) -> Array:
        """The next node: ``target``, filled, or an array of its kind over bytes that need no copy yet."""
        np, width, count = self._np, target.itemsize, len(target)
        tag = reader.take(1)[0]
        if tag == _RAW:
            plain: Array = np.frombuffer(reader.take(count * width), target.dtype)
            return plain
        if tag == _ZSTD and width == 1:
            inflated: Array = np.frombuffer(self._inflate(reader, count), target.dtype)
            return inflated
        if tag != _SPLIT or width == 1:
            raise CorruptError(f"a grouped chunk has a node of kind {tag} where elements of {width} bytes begin")
        half = width // 2
        scratch = self._halves[half][:count]
        np.copyto(target, self._decode(reader, scratch))
        np.left_shift(target, 8 * half, out=target)
        np.bitwise_or(target, self._decode(reader, scratch), out=target)
        return target

    def _inflate(self, reader: _Reader, count: int) -> bytes:
        frame = reader.take(int.from_bytes(reader.take(4), "little"))
        try:
            if zstandard.get_frame_parameters(frame).content_size != count:
                raise CorruptError(f"a plane of a grouped chunk is not of {count} bytes")
            return self._decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptError(f"a plane of a grouped chunk does not decode: {error}") from error


def _read_header(reader: _Reader, length: int) -> list[tuple[int, int]]:
    version, count = _HEADER.unpack(reader.take(_HEADER.size))
    if version != _VERSION:
        raise CorruptError(f"a grouped chunk has layout version {version}; this release reads {_VERSION}")
    table = reader.take(count * _RUN.size)
    covered = [(size, width) for size, width in _RUN.iter_unpack(table)]
    if any(width not in WIDTHS or size == 0 or size % width for size, width in covered):
        raise CorruptError("a grouped chunk has a run whose length and width do not agree")
    if sum(size for size, _ in covered) != length:
        raise CorruptError(f"a grouped chunk does not decode to {length} bytes")
    return covered


class _Writer:
    """Appends to a buffer as far as it has room."""

    def __init__(self, room: Array) -> None:
        self._room = room
        self._bytes = room.data
        self.position = 0

    def put(self, data: bytes) -> bool:
        end = self.position + len(data)
        if end > len(self._room):
            return False
        self._bytes[self.position : end] = data
        self.position = end
        return True

    def plain(self, size: int) -> Array | None:
        """The place for ``size`` bytes of a plain node, its tag written; None if there is no room."""
        start = self.position + 1
        if start + size > len(self._room):
            return None
        self._bytes[self.position] = _RAW
        self.position = start + size
        return self._room[start : self.position]


class _Reader:
    """Takes bytes off the front of a buffer."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self._data):
            raise CorruptError(f"a grouped chunk of {len(self._data)} bytes ends early: byte {end} is needed")
        taken = self._data[self.position : end]
        self.position = end
        return taken
