"""Writing one shard: its object through a job of the pool, its index beside it, its record for the commit.

Owns how a shard is coded and named; never commits. ``store`` (states, payloads) and ``shards`` (bytes level) use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .config import CheckpointConfig
from .engine.actions import StoredObject
from .engine.capture import Capture, CapturedJob
from .engine.checksum import crc32c_segments, format_crc32c
from .engine.contract import Location
from .engine.errors import S3dlioError
from .engine.job import Coding, SaveJob
from .engine.messages import Runs
from .engine.plan import MIB
from .engine.pool import Pool, PoolControl
from .engine.source import PiecesSource
from .engine.stream import StreamJob
from .ids import CheckpointId
from .index import ChunkTable, index_pieces
from .records import IndexRef, ShardRecord
from .strategy import index_key, shard_key

_INLINE_INDEX = 1 * MIB
"""An index up to this size travels in a message; a larger one through the arena."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What is about to be stored: which rank's, of which checkpoint, and under which key and codec."""

    id: CheckpointId
    rank: int
    epoch: int
    codec: str
    key: str
    label: str | None = None


class ShardWriter:
    """Starts and finishes shards of one store."""

    def __init__(self, pool: Pool, location: Location, config: CheckpointConfig) -> None:
        self._pool = pool
        self._location = location
        self._config = config

    @property
    def control(self) -> PoolControl:
        return self._pool.control(self._location)

    @property
    def _codec(self) -> str:
        return "none" if self._config.codec == "auto" and self._location.scheme == "direct" else self._config.codec

    def shard(
        self, id_: CheckpointId, rank: int, epoch: int, *, empty: bool = False, label: str | None = None
    ) -> Shard:
        """Name a shard. An empty one is stored plainly: no bytes are no zstd stream."""
        codec = "none" if empty else self._codec
        return Shard(id_, rank, epoch, codec, shard_key(self._config.strategy, id_, rank, codec), label)

    def start(self, shard: Shard, total: int, runs: Callable[[int, int], Runs] | None = None) -> SaveJob:
        """A job for a shard of ``total`` raw bytes; the caller stages it."""
        return SaveJob(
            self._pool,
            self._location,
            shard.key,
            total=total,
            coding=self._coding(shard, runs),
            whole_below=self._config.multipart_threshold,
        )

    def capture(self, total: int) -> Capture:
        """Room for ``total`` (> 0) raw bytes of a shard of which no more is known yet; errors as in ``Capture``."""
        codec = "zstd-grouped" if self._codec == "auto" else self._codec
        return Capture(self._pool, self._location, total, codec, self._config.multipart_threshold)

    def start_captured(
        self, shard: Shard, capture: Capture, runs: Callable[[int, int], Runs] | None = None
    ) -> CapturedJob:
        """A job for a shard whose bytes were captured; the caller hands it over."""
        return CapturedJob(
            capture,
            self._location,
            shard.key,
            coding=self._coding(shard, runs),
            whole_below=self._config.multipart_threshold,
        )

    def start_stream(self, shard: Shard) -> StreamJob:
        """A job for a shard whose bytes come bit by bit."""
        return StreamJob(self._pool, self._location, shard.key, coding=self._coding(shard, None))

    def finish(
        self,
        shard: Shard,
        stored: StoredObject,
        *,
        tree: Iterable[bytes] | None = None,
        table: Iterable[bytes] | None = None,
    ) -> ShardRecord:
        """Store the index of a stored shard; the shard is durable when this returns its record."""
        checksum = format_crc32c(stored.crc)
        pieces = index_pieces(
            _chunk_table(stored), codec=shard.codec, size=stored.info.size, checksum=checksum, tree=tree, table=table
        )
        index = self._store_index(index_key(shard.key), PiecesSource(pieces))
        return ShardRecord(
            rank=shard.rank,
            key=shard.key,
            size=stored.info.size,
            step=shard.id.step,
            epoch=shard.epoch,
            timestamp=shard.id.timestamp,
            etag=stored.info.etag,
            checksum=checksum,
            raw_size=stored.raw_size,
            codec=shard.codec,
            index=index,
            label=shard.label,
            verified=stored.info.verified or None,
        )

    def discard(self, shard: Shard) -> None:
        """Remove what a failed save may have published; it is in no manifest."""
        control = self.control
        for key in (shard.key, index_key(shard.key)):
            try:
                control.delete(key)
            except S3dlioError:
                return  # the store that failed the save fails this too; the store's cleanup finds what is left

    def _store_index(self, key: str, source: PiecesSource) -> IndexRef:
        if source.total <= _INLINE_INDEX:
            self.control.put(key, [memoryview(piece) for piece in source.pieces])
        else:
            job = SaveJob(
                self._pool, self._location, key, total=source.total, coding=Coding(), whole_below=_INLINE_INDEX
            )
            job.stage(source)
            job.future.result()
        checksum = crc32c_segments([memoryview(piece) for piece in source.pieces])
        return IndexRef(key, source.total, format_crc32c(checksum))

    def _coding(self, shard: Shard, runs: Callable[[int, int], Runs] | None) -> Coding:
        level = self._config.compression_level
        if shard.codec == "zstd":
            return Coding("zstd", level)
        if shard.codec == "none":
            return Coding()
        return Coding("zstd-grouped", level, runs or (lambda _start, _stop: ()), auto=shard.codec == "auto")


def _chunk_table(stored: StoredObject) -> ChunkTable:
    chunks = stored.chunks
    return ChunkTable(
        [chunk.raw_length for chunk in chunks],
        [chunk.stored_length for chunk in chunks],
        [chunk.codec for chunk in chunks],
        [chunk.crc for chunk in chunks],
    )
