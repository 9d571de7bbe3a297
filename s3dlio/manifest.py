"""The manifest: the commit record of a checkpoint, as bytes and as a frozen record.

Pure: ``commit`` writes it, ``catalog`` reads it, ``FORMAT.md`` describes it. It is O(ranks): chunks and tensors stand
in the index beside each shard. Everything read is checked before anything is allocated for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import fields
from .engine.checksum import crc32c, format_crc32c
from .engine.errors import ConfigError, ManifestError
from .ids import STEP_MAX, CheckpointId
from .records import PLAIN_CODECS, ShardRecord
from .strategy import RANKS_MAX

NEWEST_FORMAT = 2
MANIFEST_MAX = 64 << 20
"""Bytes of a manifest: 131,072 ranks of 400 bytes."""

COMPLETE = "complete"

_SEAL = re.compile(rb',\n "checksum": "(crc32c:[0-9a-f]{8})"\n\}\n\Z')
_SEAL_SIZE = 64


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint: every rank's shard, in the order of ranks.

    ``step`` is ``global_step`` on disk; ``wall_time`` the RFC 3339 time of the commit; ``timestamp`` that of the id in
    the manifest's key, empty for a manifest without one; ``user_meta`` any JSON value; ``label`` the user's ``id=``.
    """

    step: int
    epoch: int
    framework: str
    wall_time: str
    world_size: int
    shards: tuple[ShardRecord, ...]
    timestamp: str = ""
    status: str = COMPLETE
    user_meta: Any = None
    label: str | None = None

    @property
    def id(self) -> CheckpointId:
        """The checkpoint's id; ``ConfigError`` for a manifest without a key."""
        return CheckpointId(self.step, self.timestamp)

    @property
    def format_version(self) -> int:
        """1 if the published package can read every shard, else 2."""
        return 1 if all(shard.codec in PLAIN_CODECS for shard in self.shards) else 2

    @property
    def is_complete(self) -> bool:
        return self.status == COMPLETE

    @property
    def total_size(self) -> int:
        """Stored bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def raw_size(self) -> int | None:
        """Decoded bytes of all shards; ``None`` where a foreign writer did not tell."""
        sizes = [shard.raw_size for shard in self.shards if shard.raw_size is not None]
        return sum(sizes) if len(sizes) == len(self.shards) else None

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values, under the names it has on disk."""
        return {**self._head(), "shards": [shard.to_entry() for shard in self.shards], **self._tail()}

    def encode(self) -> bytes:
        """The bytes that are stored: one line for each shard. ``ManifestError`` beyond the size limit."""
        # One dumps for each rank: a single one over 16,384 ranks would hold the GIL for its whole length.
        shards = ",\n".join(json.dumps(shard.to_entry(), separators=(",", ":")) for shard in self.shards)
        head, tail = (json.dumps(part, indent=1)[2:-2] for part in (self._head(), self._tail()))
        data = _seal(f'{{\n{head},\n "shards": [\n{shards}\n ],\n{tail}'.encode())
        if len(data) > MANIFEST_MAX:
            raise ManifestError(f"the manifest of step {self.step} is {len(data)} bytes, more than {MANIFEST_MAX}")
        return data

    def _head(self) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "framework": self.framework,
            "global_step": self.step,
            "epoch": self.epoch,
            "wall_time": self.wall_time,
            "world_size": self.world_size,
        }

    def _tail(self) -> dict[str, Any]:
        return {"status": self.status, "user_meta": self.user_meta, "label": self.label}

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, key: str) -> Manifest:
        """The manifest stored under ``key``; ``ManifestError``, naming the key, for everything that is not one."""
        if len(data) > MANIFEST_MAX:
            raise ManifestError(f"{key} is {len(data)} bytes, more than a manifest can be ({MANIFEST_MAX})")
        if not _is_sound(data):
            raise ManifestError(f"{key} does not match its own checksum: it was damaged, or edited by hand")
        return cls.from_dict(fields.loads(data, key), key)

    @classmethod
    def from_dict(cls, value: Any, key: str | None = None) -> Manifest:
        """The manifest in a dict of ``to_dict``; with ``key`` it must also be the one that the key promises."""
        what = key or "manifest"
        data = fields.mapping(value, what)
        version = _check_version(data, what)
        step = fields.integer(data, "global_step", what, most=STEP_MAX)
        epoch = fields.integer(data, "epoch", what, most=STEP_MAX)
        id_ = CheckpointId.of_manifest_key(key) if key is not None else None
        if key is not None and (id_ is None or id_.step != step):
            raise ManifestError(f"{what} holds step {step}, not that of its key")
        status = fields.text(data, "status", what, most=64)
        world_size = fields.integer(data, "world_size", what, least=1, most=RANKS_MAX)
        manifest = cls(
            step=step,
            epoch=epoch,
            framework=fields.text(data, "framework", what),
            wall_time=fields.text(data, "wall_time", what),
            world_size=world_size,
            shards=_read_shards(data.get("shards"), what, step, epoch, world_size, status),
            timestamp="" if id_ is None else id_.timestamp,
            status=status,
            user_meta=data.get("user_meta"),
            label=fields.optional_text(data, "label", what),
        )
        if manifest.format_version > version:
            raise ManifestError(f"{what} says format {version} but holds a codec of format {manifest.format_version}")
        return manifest


def is_newer_format(data: bytes) -> bool:
    """Whether these bytes are a manifest of a later version, whose shards may not be touched."""
    if not _is_sound(data):
        return False
    try:
        version = fields.mapping(fields.loads(data, "manifest"), "manifest").get("format_version")
    except ManifestError:
        return False
    return type(version) is int and version > NEWEST_FORMAT


def _seal(body: bytes) -> bytes:
    """The manifest that begins with ``body``, ended by its checksum: one flipped bit could else drop a field's name."""
    return body + b',\n "checksum": "%s"\n}\n' % format_crc32c(crc32c(body)).encode()


def _is_sound(data: bytes | bytearray | memoryview) -> bool:
    """False if the checksum at the end contradicts the rest; true where there is none, as in the published package."""
    seal = _SEAL.search(data, max(0, len(data) - _SEAL_SIZE))
    return seal is None or format_crc32c(crc32c(memoryview(data)[: seal.start()])).encode() == seal[1]


def check_world(shards: Sequence[ShardRecord], world_size: int, what: str) -> tuple[ShardRecord, ...]:
    """``shards`` in the order of ranks; ``ManifestError`` unless they are exactly those of ranks 0 to world_size-1."""
    by_rank: dict[int, ShardRecord] = {}
    for shard in shards:
        if shard.rank >= world_size:
            raise ManifestError(f"{what}: rank {shard.rank} is outside the world of {world_size}")
        if shard.rank in by_rank:
            raise ManifestError(f"{what}: rank {shard.rank} is there twice")
        by_rank[shard.rank] = shard
    if len(by_rank) < world_size:
        missing = [rank for rank in range(world_size) if rank not in by_rank]
        names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise ManifestError(f"{what}: {len(missing)} of {world_size} ranks are missing: {names}")
    return tuple(by_rank[rank] for rank in range(world_size))


def _check_version(data: fields.Json, what: str) -> int:
    version = fields.integer(data, "format_version", what, least=1)
    if version > NEWEST_FORMAT:
        raise ManifestError(
            f"{what} has format_version {version}, this version of s3dlio reads up to {NEWEST_FORMAT}: upgrade s3dlio"
        )
    return version


def _read_shards(value: Any, what: str, step: int, epoch: int, world_size: int, status: str) -> tuple[ShardRecord, ...]:
    if not isinstance(value, list):
        raise ManifestError(f"{what}: shards must be a list")
    if len(value) > world_size:
        raise ManifestError(f"{what}: {len(value)} shards in a world of {world_size}")
    shards = [
        ShardRecord.from_entry(entry, step=step, epoch=epoch, what=f"{what}: shard {number}")
        for number, entry in enumerate(value)
    ]
    return check_world(shards, world_size, what) if status == COMPLETE else tuple(shards)


def shard_of(manifest: Manifest, rank: int | None) -> ShardRecord:
    """The record of ``rank``; ``ConfigError`` if there is none, or if none is named and there are several."""
    if rank is None and manifest.world_size > 1:
        raise ConfigError(
            f"step {manifest.step} was saved by {manifest.world_size} ranks: pass rank= to load the shard of one"
        )
    wanted = 0 if rank is None else rank
    for shard in manifest.shards:
        if shard.rank == wanted:
            return shard
    raise ConfigError(f"rank {rank} is outside the world of {manifest.world_size} ranks of step {manifest.step}")
