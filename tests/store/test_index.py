from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.checksum import combine_all_crc32c, crc32c, format_crc32c
from s3dlio.engine.errors import CorruptError, ManifestError
from s3dlio.index import CHUNK_CODECS, CHUNKS_MAX, ChunkTable, index_pieces, open_index, parse_index
from s3dlio.records import IndexRef, ShardRecord
from s3dlio.strategy import index_key
from tests.store.fake import make_id, make_record

KEY = "shards/ckpt-7-x/rank-0.idx"


@st.composite
def tables(draw: st.DrawFn, codecs: tuple[str, ...] = CHUNK_CODECS) -> ChunkTable:
    rows = draw(
        st.lists(st.tuples(st.integers(1, 2**20), st.sampled_from(codecs), st.integers(0, 2**32 - 1)), max_size=20)
    )
    stored = [raw if codec == "none" else draw(st.integers(1, 2 * raw)) for raw, codec, _ in rows]
    return ChunkTable([row[0] for row in rows], stored, [row[1] for row in rows], [row[2] for row in rows])


def whole(table: ChunkTable) -> str:
    return format_crc32c(combine_all_crc32c((chunk.crc32c, chunk.raw_size) for chunk in table))


def encode(chunks: ChunkTable, codec: str = "auto", **parts: Any) -> bytes:
    return b"".join(index_pieces(chunks, codec=codec, size=chunks.stored_size, checksum=whole(chunks), **parts))


def record_of(table: ChunkTable, data: bytes, codec: str = "auto") -> ShardRecord:
    record = make_record(make_id(7), codec=codec)
    return replace(
        record,
        size=table.stored_size,
        raw_size=table.raw_size,
        checksum=whole(table),
        index=IndexRef(index_key(record.key), len(data), format_crc32c(crc32c(data))),
    )


@given(tables())
def test_an_index_comes_back_as_it_was(table: ChunkTable) -> None:
    data = encode(table, tree=[b'{"a"', b":1}"], table=[b"[]"])
    index = open_index(data, record_of(table, data))
    assert list(index.chunks) == list(table)
    assert (index.raw_size, index.size, index.tree, index.table) == (table.raw_size, table.stored_size, {"a": 1}, [])


@given(tables(("none",)))
def test_an_index_of_plain_bytes_has_neither_tree_nor_table(table: ChunkTable) -> None:
    index = parse_index(encode(table, "none"), KEY)
    assert (index.tree, index.table) == (None, None)
    assert list(index.chunks) == list(table)


@given(tables())
def test_chunks_lie_end_to_end(table: ChunkTable) -> None:
    raw = stored = 0
    for chunk in table:
        assert (chunk.raw_offset, chunk.stored_offset) == (raw, stored)
        raw, stored = raw + chunk.raw_size, stored + chunk.stored_size
    assert (raw, stored) == (table.raw_size, table.stored_size)


@given(tables(), st.data())
def test_covering_gives_just_the_chunks_that_hold_a_range(table: ChunkTable, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, table.raw_size))
    stop = data.draw(st.integers(start, table.raw_size))
    expected = [
        number
        for number, chunk in enumerate(table)
        if start < stop and chunk.raw_offset < stop and chunk.raw_offset + chunk.raw_size > start
    ]
    assert list(table.covering(start, stop)) == expected


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 11), (3, 2)])
def test_covering_outside_the_shard_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        ChunkTable([10], [10], "none", [0]).covering(start, stop)


def test_a_table_is_a_sequence() -> None:
    table = ChunkTable([4, 6], [4, 6], "none", [1, 2])
    assert table[-1] == table[1] == table[0:2][1]
    with pytest.raises(IndexError):
        table[2]


def test_a_long_index_is_made_in_short_pieces() -> None:
    count = 50_000
    pieces = list(
        index_pieces(
            ChunkTable([1] * count, [1] * count, ["none", "zstd"] * (count // 2), [0] * count),
            codec="auto",
            size=count,
            checksum="crc32c:00000000",
        )
    )
    assert max(map(len, pieces)) < 50_000
    assert len(parse_index(b"".join(pieces), KEY).chunks) == count


def test_the_pieces_of_a_tree_are_taken_only_when_their_turn_comes() -> None:
    def tree() -> Iterator[bytes]:
        raise RuntimeError("taken")
        yield b""

    pieces = index_pieces(ChunkTable([], [], "none", []), codec="none", size=0, checksum="crc32c:00000000", tree=tree())
    assert next(pieces).startswith(b'{"format_version"')
    with pytest.raises(RuntimeError, match="taken"):
        list(pieces)


@pytest.mark.parametrize(
    ("raw", "stored", "codecs"),
    [
        ([1], [1, 2], "none"),
        ([1, 1], [1, 1], ["none"]),
        ([0], [0], "none"),
        ([-1], [-1], "none"),
        ([1], [0], "zstd"),
        ([1], [2], "none"),
        ([1.0], [1], "zstd"),
        ([True], [True], "none"),
        ([1], [1], "lz4"),
        ([1], [1], [None]),
        ([2**33], [2**33], "none"),
        ([2**30], [1], "zstd"),
        ([1], [2**34], "zstd"),
    ],
)
def test_an_impossible_chunk_is_refused(raw: Any, stored: Any, codecs: Any) -> None:
    with pytest.raises(ManifestError, match="chunk table"):
        ChunkTable(raw, stored, codecs, [0] * len(raw))


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(ManifestError, match="more than"):
        ChunkTable(range(CHUNKS_MAX + 1), range(CHUNKS_MAX + 1), range(CHUNKS_MAX + 1), range(CHUNKS_MAX + 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("codec", "chunk", "size", "reason"),
    [("none", "none", 5, "stored bytes"), ("zstd", "none", 4, "another codec"), ("none", "zstd", 4, "another codec")],
)
def test_a_shard_that_contradicts_its_chunks_is_refused_at_once(codec: str, chunk: str, size: int, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        index_pieces(ChunkTable([4], [4], chunk, [0]), codec=codec, size=size, checksum="crc32c:00000000")


def test_an_empty_payload_has_no_chunk() -> None:
    empty = ChunkTable([], [], "none", [])
    assert len(parse_index(encode(empty, "none"), KEY).chunks) == 0
    frame = b"".join(index_pieces(empty, codec="zstd", size=9, checksum="crc32c:00000000"))
    assert parse_index(frame, KEY).size == 9


def hostile(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(ChunkTable([4, 4], [4, 3], ["none", "zstd"], [1, 2])))
    return {**found, **changes}


def hostile_chunks(**changes: Any) -> dict[str, Any]:
    return hostile(chunks={**hostile()["chunks"], **changes})


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        hostile(format_version=2),
        hostile(format_version=None),
        hostile(codec="lz4"),
        hostile(codec=3),
        hostile(raw_size=9),
        hostile(raw_size=-8),
        hostile(size=8),
        hostile(size=10**30),
        hostile(checksum=None),
        hostile(checksum="md5:1"),
        hostile(chunks=None),
        hostile(chunks=[]),
        hostile_chunks(raw="ab"),
        hostile_chunks(raw=[4]),
        hostile_chunks(raw=[4, None]),
        hostile_chunks(raw=[9, -1]),
        hostile_chunks(stored=None),
        hostile_chunks(codec=None),
        hostile_chunks(codec=[{}, []]),
        hostile_chunks(codec="none"),
        hostile_chunks(crc32c=[1, 2]),
        hostile_chunks(crc32c="0" * 15),
        hostile_chunks(crc32c="0" * 17),
        hostile_chunks(crc32c="zz" * 8),
        hostile_chunks(crc32c="00 " * 5 + "0"),
    ],
)
def test_a_hostile_index_is_refused(value: Any) -> None:
    with pytest.raises(ManifestError, match=KEY):
        parse_index(json.dumps(value).encode(), KEY)


@given(tables(), st.data())
def test_a_flipped_or_missing_byte_is_found(table: ChunkTable, data: st.DataObject) -> None:
    stored = bytearray(encode(table))
    record = record_of(table, bytes(stored))
    at = data.draw(st.integers(0, len(stored) - 1))
    if data.draw(st.booleans()):
        stored[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del stored[at]
    with pytest.raises(CorruptError, match=r"rank-0\.idx is damaged"):
        open_index(stored, record)


@pytest.mark.parametrize(
    "change", [{"size": 6}, {"raw_size": 9}, {"codec": "zstd-grouped"}, {"checksum": "crc32c:00000000"}]
)
def test_the_index_of_another_shard_is_refused(change: dict[str, Any]) -> None:
    table = ChunkTable([4, 4], [4, 3], ["none", "zstd"], [1, 2])
    data = encode(table)
    with pytest.raises(ManifestError, match="its record in the manifest"):
        open_index(data, replace(record_of(table, data), **change))


def test_chunk_checksums_must_make_the_shards_own() -> None:
    table = ChunkTable([4], [4], "none", [1])
    data = b"".join(index_pieces(table, codec="none", size=4, checksum="crc32c:00000009"))
    with pytest.raises(ManifestError, match="checksums of the chunks"):
        open_index(data, replace(record_of(table, data, "none"), checksum="crc32c:00000009"))


def test_a_record_without_an_index_has_none_to_open() -> None:
    with pytest.raises(ValueError, match="no index"):
        open_index(b"", make_record(make_id(7)))
