"""The shard record: what one rank stored, as the commit gathers it and as the manifest keeps it.

Pure. Three shapes of one thing: the frozen record, the dict that ranks exchange and users hold (``to_dict``; the
published package's dicts are read too), and the entry of a manifest, which leaves out what the manifest says once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import fields
from .engine.errors import ManifestError
from .ids import STEP_MAX, CheckpointId
from .strategy import RANKS_MAX, SHARDS, index_key, parse_shard_key

CODECS = ("none", "zstd", "zstd-grouped", "auto")
"""How a shard was encoded; with ``auto`` each chunk's codec stands in the index."""

PLAIN_CODECS = ("none", "zstd")
"""Codecs whose shards the published package reads: the payload itself, or a standard zstd stream."""

INDEX_MAX = 1 << 30
"""Bytes of an index: a state of a million tensors needs about a fifth of it."""

RATIO_MAX = 1 << 20
"""Most raw bytes of one stored byte. zstd ends at 2^15; more is a bomb, refused before memory is set aside."""


@dataclass(frozen=True, slots=True)
class IndexRef:
    """Where a shard's index lies: ``key``, stored ``size`` in bytes and ``checksum`` of the stored bytes."""

    key: str
    size: int
    checksum: str

    def to_dict(self) -> dict[str, Any]:
        return {"key": self.key, "size": self.size, "checksum": self.checksum}


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What one rank stored for one checkpoint.

    ``size``: stored bytes; ``raw_size``: decoded bytes, ``None`` where a foreign writer did not tell; ``checksum``:
    ``crc32c:xxxxxxxx`` over the decoded bytes or ``None``; ``timestamp``: that of the id the shard lies under;
    ``label``: the user's ``id=``; ``verified``: by which checksum the store checked what it received (``crc64nvme``,
    ``md5``), ``None`` where it did not or where there is no wire. Built from trusted values by the writer, through
    ``from_dict`` from everything else.
    """

    rank: int
    key: str
    size: int
    step: int
    epoch: int
    timestamp: str
    etag: str | None = None
    checksum: str | None = None
    raw_size: int | None = None
    codec: str = "none"
    index: IndexRef | None = None
    label: str | None = None
    verified: str | None = None

    @property
    def id(self) -> CheckpointId:
        """The id the shard lies under; ``ConfigError`` for a record that names none."""
        return CheckpointId(self.step, self.timestamp)

    def to_dict(self) -> dict[str, Any]:
        """The dict that ranks exchange: plain JSON values."""
        entry = self.to_entry()
        entry.update(step=self.step, epoch=self.epoch, timestamp=self.timestamp, label=self.label)
        return entry

    def to_entry(self) -> dict[str, Any]:
        """The entry in a manifest: ``rank, key, size, etag, checksum, raw_size, codec, index, verified`` (if any)."""
        entry = {
            "rank": self.rank,
            "key": self.key,
            "size": self.size,
            "etag": self.etag,
            "checksum": self.checksum,
            "raw_size": self.raw_size,
            "codec": self.codec,
            "index": None if self.index is None else self.index.to_dict(),
        }
        if self.verified is not None:
            entry["verified"] = self.verified
        return entry

    @classmethod
    def from_dict(cls, value: Any) -> ShardRecord:
        """The record in a dict of ``to_dict`` or of the published package; ``ManifestError`` if it is malformed."""
        data = fields.mapping(value, "shard record")
        what = f"shard record of rank {fields.integer(data, 'rank', 'shard record', most=RANKS_MAX - 1)}"
        step = fields.integer(data, "step", what, most=STEP_MAX)
        epoch = fields.optional_integer(data, "epoch", what, most=STEP_MAX) or 0
        record = _read(data, what, step, epoch)
        stated = fields.optional_text(data, "timestamp", what)
        if stated is not None and stated != record.timestamp:
            raise ManifestError(f"{what} says {stated!r}, its key {record.timestamp!r}")
        return record

    @classmethod
    def from_entry(cls, value: Any, *, step: int, epoch: int, what: str) -> ShardRecord:
        """The record of a manifest's entry; ``what`` names it in errors."""
        return _read(fields.mapping(value, what), what, step, epoch)


def _read(data: fields.Json, what: str, step: int, epoch: int) -> ShardRecord:
    rank = fields.integer(data, "rank", what, most=RANKS_MAX - 1)
    key = fields.key(data, "key", what, prefix=SHARDS)
    size = fields.integer(data, "size", what)
    raw_size = fields.optional_integer(data, "raw_size", what)
    codec = fields.optional_text(data, "codec", what)
    if codec is None:
        codec = "zstd" if key.endswith(".zst") else "none"
    if codec not in CODECS:
        raise ManifestError(f"{what}: unknown codec {codec[:40]!r}: written by a newer version?")
    checksum = fields.checksum(data, "checksum", what)
    index = _read_index(data.get("index"), key, what)
    if (codec == "zstd") != key.endswith(".zst"):
        raise ManifestError(f"{what}: codec {codec!r} contradicts the key {key!r}")
    if codec == "none":
        raw_size = size if raw_size is None else raw_size
    if codec not in PLAIN_CODECS and (raw_size is None or checksum is None or index is None):
        raise ManifestError(f"{what}: codec {codec!r} needs raw_size, checksum and index")
    if raw_size is not None and (raw_size != size if codec == "none" else raw_size > size * RATIO_MAX):
        raise ManifestError(f"{what}: {size} stored bytes cannot hold {raw_size} bytes with codec {codec!r}")
    name = parse_shard_key(key)
    if name is not None and (name.index or name.rank != rank or name.id.step != step):
        raise ManifestError(f"{what}: the key {key!r} is not that of rank {rank} at step {step}")
    return ShardRecord(
        rank=rank,
        key=key,
        size=size,
        step=step,
        epoch=epoch,
        timestamp="" if name is None else name.id.timestamp,
        etag=fields.optional_text(data, "etag", what, most=1024),
        checksum=checksum,
        raw_size=raw_size,
        codec=codec,
        index=index,
        label=fields.optional_text(data, "label", what),
        verified=fields.optional_text(data, "verified", what, most=64),
    )


def _read_index(value: Any, shard: str, what: str) -> IndexRef | None:
    if value is None:
        return None
    what = f"{what}: index"
    data = fields.mapping(value, what)
    key = fields.key(data, "key", what, prefix=SHARDS)
    if key != index_key(shard):
        raise ManifestError(f"{what}: {key!r} does not lie beside the shard {shard!r}")
    checksum = fields.checksum(data, "checksum", what)
    if checksum is None:
        raise ManifestError(f"{what}: checksum is missing")
    return IndexRef(key, fields.integer(data, "size", what, least=1, most=INDEX_MAX), checksum)
