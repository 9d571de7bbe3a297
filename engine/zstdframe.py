"""The outer structure of zstd streams (RFC 8878): writing frames of raw blocks, walking frames without decoding them.

Owns headers and lengths only; never compresses or decompresses, never allocates by what a header claims. ``codec``
calls it: to store a chunk that does not shrink inside a standard stream, and to know before and after decoding that a
stream is a sequence of whole frames, which libzstd's streaming calls do not tell: one that is cut just ends.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from .errors import CorruptError

MAGIC = 0xFD2FB528
BLOCK_MAX = 128 << 10  # Block_Maximum_Size, RFC 8878 §3.1.1.2.4
_SKIPPABLE = 0x184D2A50  # and the 15 values after it, §3.1.2
_RAW, _RLE, _COMPRESSED = 0, 1, 2  # Block_Type, §3.1.1.2.2
# Frame_Header_Descriptor (§3.1.1.1.1): an 8-byte Frame_Content_Size, no dictionary, no checksum. Window_Descriptor
# (§3.1.1.1.2): exponent 7, mantissa 0, that is 128 KiB, the least in which blocks may have their largest size.
_RAW_HEADER = struct.Struct("<IBBQ")
_RAW_DESCRIPTOR, _RAW_WINDOW = 0xC0, 7 << 3


def raw_frame_size(length: int) -> int:
    """Bytes of the frame that ``write_raw_frame`` writes for ``length`` bytes."""
    return _RAW_HEADER.size + 3 * max(1, -(-length // BLOCK_MAX)) + length


def write_raw_frame(raw: memoryview, out: memoryview) -> int:
    """Write ``raw`` as one zstd frame of raw blocks to the start of ``out``; return its size."""
    _RAW_HEADER.pack_into(out, 0, MAGIC, _RAW_DESCRIPTOR, _RAW_WINDOW, len(raw))
    position, start = _RAW_HEADER.size, 0
    while True:
        size = min(BLOCK_MAX, len(raw) - start)
        last = start + size == len(raw)
        out[position : position + 3] = (size << 3 | _RAW << 1 | last).to_bytes(3, "little")
        out[position + 3 : position + 3 + size] = raw[start : start + size]
        position, start = position + 3 + size, start + size
        if last:
            return position


class Walk:
    """Walks a stream of frames that arrives in pieces of any size; ``CorruptError`` where it is none.

    ``content``: decoded bytes of the frames begun so far, None once a frame does not tell. ``window``: the largest
    window a frame asks for, in bytes; above ``window_max`` is an error. Both count as soon as a frame's header was fed.
    """

    def __init__(self, window_max: int) -> None:
        self.content: int | None = 0
        self.window = 0
        self._window_max = window_max
        self._between = True
        self._held = bytearray()
        self._fields = self._parse()
        self._need = next(self._fields)
        self._skip = 0

    def feed(self, data: memoryview) -> None:
        """Take the stream's next bytes."""
        position, end = 0, len(data)
        while position < end:
            if self._skip:
                step = min(self._skip, end - position)
                self._skip -= step
                position += step
                continue
            step = min(self._need - len(self._held), end - position)
            self._held += data[position : position + step]
            position += step
            if len(self._held) == self._need:
                field = int.from_bytes(self._held, "little")
                self._held.clear()
                self._need = self._fields.send(field)

    def finish(self) -> None:
        """The stream ends here: ``CorruptError`` unless a frame does too."""
        if self._held or self._skip or not self._between:
            raise CorruptError("a zstd stream ends in the middle of a frame: the object was cut short")

    def _parse(self) -> Generator[int, int, None]:
        """Yields the size of the next field and receives it as an integer; ``_skip`` bytes come before it."""
        while True:
            self._between = True
            magic = yield 4
            self._between = False
            if magic & ~0xF == _SKIPPABLE:
                self._skip = yield 4
            elif magic == MAGIC:
                yield from self._frame()
            else:
                raise CorruptError(f"bytes {magic.to_bytes(4, 'little').hex()} are no zstd frame")

    def _frame(self) -> Generator[int, int, None]:
        descriptor = yield 1
        if descriptor & 8:
            raise CorruptError("a zstd frame header has its reserved bit set")
        single = bool(descriptor & 32)
        window = 0
        if not single:
            window_byte = yield 1
            base = 1 << (10 + (window_byte >> 3))
            window = base + (base >> 3) * (window_byte & 7)
        if descriptor & 3:
            dictionary = yield (1, 2, 4)[(descriptor & 3) - 1]
            if dictionary:
                raise CorruptError(f"a zstd frame needs dictionary {dictionary}; this package stores none")
        size_bytes = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        if size_bytes:
            content = yield size_bytes
            content += 256 if size_bytes == 2 else 0
            self.content = None if self.content is None else self.content + content
            window = content if single else window
        else:
            self.content = None
        if window > self._window_max:
            raise CorruptError(
                f"a zstd frame asks for a window of {window} bytes; at most {self._window_max} are accepted"
            )
        self.window = max(self.window, window)
        last = False
        while not last:
            block = yield 3
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            if kind > _COMPRESSED or (kind != _RLE and size > BLOCK_MAX):
                raise CorruptError("a zstd frame has a block that the format does not allow")
            self._skip = 1 if kind == _RLE else size
        if descriptor & 4:
            yield 4
