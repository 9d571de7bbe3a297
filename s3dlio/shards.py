"""One rank's shard at the bytes level, from its bytes to its record: stored whole, or written as a stream.

Owns what becomes of a shard that is given up: its slots are freed, its upload is aborted, and what was published of it
is removed. Never commits. ``bytes_level`` makes streams and hands them to users.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .byte_stream import ByteStream
from .content import Content, payload_of
from .engine.actions import StoredObject
from .engine.stream import StreamJob
from .records import ShardRecord
from .writer import Shard, ShardWriter


def store_whole(shards: ShardWriter, shard: Shard, content: Content) -> ShardRecord:
    """Store ``content``; the shard is durable when this returns. On an error nothing of it stays."""
    job = shards.start(shard, content.source.total, content.runs)
    try:
        job.stage(content.source)
        return shards.finish(shard, job.future.result())
    except BaseException:
        job.cancel()
        job.future.exception()  # once it has ended nobody publishes any more
        shards.discard(shard)
        raise


class ShardStream:
    """A shard whose bytes are handed in bit by bit, in bounded memory: parts leave while writing goes on.

    Made by ``writer.get_distributed_shard_stream``. ``write_chunk`` until done, then ``finalize``; ``cancel`` removes
    everything, and so does leaving it as a context manager, or losing the last reference to it, without ``finalize``.
    It holds memory from the first byte on. Methods may be called by several threads; chunks are written in turn.
    """

    def __init__(self, store: object, shards: ShardWriter, shard: Shard) -> None:
        self._stream = _ShardBytes(store, shards, shard)

    def __repr__(self) -> str:
        stream = self._stream
        return f"<ShardStream to {stream.shard.key}: {stream.written} bytes, {stream.state}>"

    def __enter__(self) -> ShardStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def write_chunk(self, data: Any) -> int:
        """Copy the bytes of a buffer, waiting while memory is full; their number.

        ``UnsupportedError`` (a ``TypeError``) for what is no buffer leaves the stream as it was. Any other error, also
        that of bytes written before, ends the stream and removes what was stored.
        """
        return self._stream.write(data)

    def bytes_written(self) -> int:
        """Bytes taken so far."""
        return self._stream.written

    def finalize(self) -> dict[str, Any]:
        """No more bytes: wait until the shard is durable; its record. On an error nothing of it stays."""
        return self._stream.finish().to_dict()

    def cancel(self) -> None:
        """Give up and remove what was stored; nothing happens if the stream has ended."""
        self._stream.cancel()


class _ShardBytes(ByteStream[ShardRecord]):
    """The bytes of a shard, which is durable once its index is stored too."""

    FINISHED, CANCELLED = "finalized", "cancelled"

    def __init__(self, store: object, shards: ShardWriter, shard: Shard) -> None:
        super().__init__()
        self._store = store  # a store that was collected could not end its streams
        self._shards = shards
        self.shard = shard

    @property
    def name(self) -> str:
        return f"the stream to {self.shard.key}"

    def _start(self) -> StreamJob:
        return self._shards.start_stream(self.shard)

    def _result_of(self, stored: StoredObject) -> ShardRecord:
        return self._shards.finish(self.shard, stored)

    def _store_nothing(self) -> ShardRecord:
        shard = self.shard
        self.shard = self._shards.shard(shard.id, shard.rank, shard.epoch, empty=True)
        return store_whole(self._shards, self.shard, payload_of(b""))

    def _discard(self) -> None:
        self._shards.discard(self.shard)
