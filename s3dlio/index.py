"""The index beside a shard: its chunk table and, for a state, the tree and the tensor table.

Pure. The writer stores ``index_pieces`` before the shard counts as durable; the reader reads it whole and opens it with
``open_index``. The tree and the table are JSON of ``s3dlio.tensors``, opaque here.

The chunk table is columns of lengths: chunks lie end to end in the raw and in the stored bytes, so offsets are sums,
and a gap or an overlap cannot even be written down.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from . import fields
from .engine.checksum import combine_all_crc32c, crc32c, format_crc32c
from .engine.errors import CorruptError, ManifestError
from .records import CODECS, INDEX_MAX, PLAIN_CODECS, RATIO_MAX, ShardRecord

CHUNK_CODECS = ("none", "zstd", "zstd-grouped")
CHUNK_MAX = 1 << 32
CHUNKS_MAX = 1 << 22
NEWEST_FORMAT = 1
_BATCH = 4096  # numbers of one JSON piece: about 0.3 ms under the GIL


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: ``raw_size`` bytes at ``raw_offset`` of the decoded shard, stored as ``stored_size`` bytes."""

    raw_offset: int
    raw_size: int
    stored_offset: int
    stored_size: int
    codec: str
    crc32c: int


class ChunkTable(Sequence[Chunk]):
    """The chunks of a shard in order, end to end. Built from columns; offsets are their sums.

    ``raw`` and ``stored``: bytes of each chunk; ``codecs``: one for all, or one each; ``crcs``: CRC-32C of the raw
    bytes. Raises ``ManifestError`` if the columns disagree or a chunk is impossible.
    """

    __slots__ = ("_codecs", "_crcs", "_raw", "_raw_at", "_stored", "_stored_at")

    def __init__(self, raw: Sequence[int], stored: Sequence[int], codecs: str | Sequence[str], crcs: Sequence[int]):
        if isinstance(codecs, str):
            codecs = (codecs,) * len(raw)
        if not len(raw) == len(stored) == len(codecs) == len(crcs):
            raise ManifestError(
                f"chunk table: columns of {len(raw)}, {len(stored)}, {len(codecs)} and {len(crcs)} entries"
            )
        if len(raw) > CHUNKS_MAX:
            raise ManifestError(f"chunk table: {len(raw)} chunks, more than {CHUNKS_MAX}")
        for number, (size, held, codec) in enumerate(zip(raw, stored, codecs, strict=True)):
            if not _possible(size, held, codec):
                raise ManifestError(f"chunk table: chunk {number} of {size} bytes as {held} by {codec!r} is impossible")
        self._raw, self._stored, self._codecs, self._crcs = raw, stored, codecs, crcs
        self._raw_at = list(accumulate(raw, initial=0))
        self._stored_at = list(accumulate(stored, initial=0))

    @property
    def raw_size(self) -> int:
        return self._raw_at[-1]

    @property
    def stored_size(self) -> int:
        return self._stored_at[-1]

    def codecs(self) -> set[str]:
        """The codecs that occur."""
        return set(self._codecs)

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Chunk(
            self._raw_at[number],
            self._raw[number],
            self._stored_at[number],
            self._stored[number],
            self._codecs[number],
            self._crcs[number],
        )

    def covering(self, start: int, stop: int) -> range:
        """Numbers of the chunks that hold the raw bytes [start, stop); ``ValueError`` outside the shard."""
        if not 0 <= start <= stop <= self.raw_size:
            raise ValueError(f"bytes {start} to {stop} are outside a shard of {self.raw_size}")
        if start == stop:
            return range(0)
        return range(bisect_right(self._raw_at, start) - 1, bisect_right(self._raw_at, stop - 1))

    def pieces(self) -> Iterator[bytes]:
        """The table as JSON, in pieces."""
        yield b'{"raw":'
        yield from _list_pieces(self._raw)
        yield b',"stored":'
        yield from _list_pieces(self._stored)
        yield b',"codec":'
        if len(self.codecs()) == 1:
            yield json.dumps(self._codecs[0]).encode()
        else:
            yield from _list_pieces(self._codecs)
        yield b',"crc32c":"'
        for first in range(0, len(self._crcs), _BATCH):
            yield "".join([f"{crc:08x}" for crc in self._crcs[first : first + _BATCH]]).encode()
        yield b'"}'


def _possible(size: Any, held: Any, codec: Any) -> bool:
    if type(size) is not int or type(held) is not int or codec not in CHUNK_CODECS:
        return False
    if not (0 < size <= CHUNK_MAX and 0 < held <= CHUNK_MAX * 2):
        return False
    return held == size if codec == "none" else size <= held * RATIO_MAX


def _list_pieces(values: Sequence[Any]) -> Iterator[bytes]:
    if not values:
        yield b"[]"
    for first in range(0, len(values), _BATCH):
        head = b"[" if first == 0 else b","
        tail = b"]" if first + _BATCH >= len(values) else b""
        yield head + json.dumps(list(values[first : first + _BATCH]), separators=(",", ":")).encode()[1:-1] + tail


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """An index as read: ``codec``, ``raw_size`` and ``size`` of the shard as in its record, ``chunks``, and the
    state's ``tree`` and ``table`` (``None`` for a payload of bytes)."""

    codec: str
    raw_size: int
    size: int
    checksum: str
    chunks: ChunkTable
    tree: Any = None
    table: Any = None

    def check(self, record: ShardRecord) -> None:
        """``ManifestError`` unless this is the index of that shard."""
        ours = (self.codec, self.raw_size, self.size, self.checksum)
        theirs = (record.codec, record.raw_size, record.size, record.checksum)
        if ours != theirs:
            raise ManifestError(f"the index of {record.key} says {ours}, its record in the manifest {theirs}")


def index_pieces(
    chunks: ChunkTable,
    *,
    codec: str,
    size: int,
    checksum: str,
    tree: Iterable[bytes] | None = None,
    table: Iterable[bytes] | None = None,
) -> Iterator[bytes]:
    """The bytes of an index, in pieces short enough that no thread waits for the GIL.

    ``size``: stored bytes of the shard; ``tree`` and ``table``: pieces of one JSON value each. ``ManifestError``, at
    once, if the shard contradicts its chunks.
    """
    _check_totals(chunks, codec, chunks.raw_size, size)
    head = {"format_version": 1, "codec": codec, "raw_size": chunks.raw_size, "size": size, "checksum": checksum}

    def pieces() -> Iterator[bytes]:
        yield json.dumps(head, separators=(",", ":")).encode()[:-1]
        yield b',\n"chunks":'
        yield from chunks.pieces()
        for name, value in ((b"tree", tree), (b"table", table)):
            if value is not None:
                yield b',\n"' + name + b'":'
                yield from value
        yield b"}\n"

    return pieces()


def parse_index(data: bytes | bytearray | memoryview, key: str) -> ShardIndex:
    """The index stored under ``key``; ``ManifestError``, naming the key, for everything that is not one."""
    if len(data) > INDEX_MAX:
        raise ManifestError(f"{key} is {len(data)} bytes, more than an index can be ({INDEX_MAX})")
    value = fields.mapping(fields.loads(data, key), key)
    version = fields.integer(value, "format_version", key, least=1)
    if version > NEWEST_FORMAT:
        raise ManifestError(f"{key} has format_version {version}, this version reads up to {NEWEST_FORMAT}: upgrade")
    codec = fields.text(value, "codec", key)
    if codec not in CODECS:
        raise ManifestError(f"{key}: unknown codec {codec[:40]!r}")
    raw_size = fields.integer(value, "raw_size", key)
    size = fields.integer(value, "size", key)
    checksum = fields.checksum(value, "checksum", key)
    if checksum is None:
        raise ManifestError(f"{key}: checksum is missing")
    try:
        chunks = _read_chunks(fields.mapping(value.get("chunks"), f"{key}: chunks"))
        _check_totals(chunks, codec, raw_size, size)
    except ManifestError as error:
        raise ManifestError(f"{key}: {error}") from None
    return ShardIndex(codec, raw_size, size, checksum, chunks, value.get("tree"), value.get("table"))


def open_index(data: bytes | bytearray | memoryview, record: ShardRecord) -> ShardIndex:
    """The index of ``record``'s shard from its stored bytes, checked in full against the record.

    Raises ``CorruptError`` if the bytes are not those that were stored, ``ManifestError`` if they are no index of this
    shard, ``ValueError`` for a record without an index.
    """
    if record.index is None:
        raise ValueError(f"{record.key} has no index")
    ref = record.index
    found = format_crc32c(crc32c(data))
    if len(data) != ref.size or found != ref.checksum:
        raise CorruptError(
            f"{ref.key} is damaged: {len(data)} bytes with {found}, recorded were {ref.size} with {ref.checksum}"
        )
    index = parse_index(data, ref.key)
    index.check(record)
    whole = format_crc32c(combine_all_crc32c((chunk.crc32c, chunk.raw_size) for chunk in index.chunks))
    if whole != index.checksum:
        raise ManifestError(f"{ref.key}: the checksums of the chunks make {whole}, not the shard's {index.checksum}")
    return index


def _read_chunks(value: fields.Json) -> ChunkTable:
    raw, stored, codecs, crcs = (value.get(name) for name in ("raw", "stored", "codec", "crc32c"))
    if not isinstance(raw, list) or not isinstance(stored, list) or not isinstance(codecs, (str, list)):
        raise ManifestError("chunk table: raw and stored must be lists, codec a string or a list")
    if not isinstance(crcs, str) or len(crcs) != 8 * len(raw):
        raise ManifestError("chunk table: crc32c must be a string of 8 hexadecimal digits for each chunk")
    if any(not isinstance(codec, str) for codec in codecs):
        raise ManifestError("chunk table: codec must hold strings")
    try:
        packed = bytes.fromhex(crcs)
    except ValueError:
        raise ManifestError("chunk table: crc32c must be hexadecimal digits") from None
    if len(packed) != 4 * len(raw):  # fromhex skips blanks
        raise ManifestError("chunk table: crc32c must be hexadecimal digits")
    sums = [int.from_bytes(packed[at : at + 4], "big") for at in range(0, len(packed), 4)]
    return ChunkTable(raw, stored, codecs, sums)


def _check_totals(chunks: ChunkTable, codec: str, raw_size: int, size: int) -> None:
    if chunks.raw_size != raw_size:
        raise ManifestError(f"the chunks hold {chunks.raw_size} bytes, the shard {raw_size}")
    # An empty payload is stored as nothing, or as one empty zstd frame, which is no chunk.
    if chunks.stored_size != size and (len(chunks) or codec != "zstd"):
        raise ManifestError(f"the chunks take {chunks.stored_size} stored bytes, the shard {size}")
    if codec in PLAIN_CODECS and chunks.codecs() - {codec}:
        raise ManifestError(f"a shard of codec {codec!r} holds a chunk of another codec")
