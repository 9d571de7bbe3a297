"""One rank's shard at the bytes level, from its bytes to its record: stored whole, or written as a stream.

Owns what becomes of a shard that is given up: its slots are freed, its upload is aborted, and what was published of it
is removed. Never commits. ``bytes_level`` makes streams and hands them to users.
"""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Any

from .content import Content, buffer_of, payload_of
from .engine.errors import CancelledError, S3dlioError
from .engine.job import SaveJob
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
        _give_up(shards, shard, job)
        raise


def _give_up(shards: ShardWriter, shard: Shard, job: SaveJob) -> None:
    job.cancel()
    job.future.exception()  # once it has ended nobody publishes any more
    shards.discard(shard)


class ShardStream:
    """A shard whose bytes are handed in bit by bit, in bounded memory: parts leave while writing goes on.

    Made by ``writer.get_distributed_shard_stream``. ``write_chunk`` until done, then ``finalize``; ``cancel`` removes
    everything, and so does leaving it as a context manager, or losing the last reference to it, without ``finalize``.
    It holds memory from the first byte on. Methods may be called by several threads; chunks are written in turn.
    """

    def __init__(self, store: object, shards: ShardWriter, shard: Shard) -> None:
        self._store = store  # a store that was collected could not end its streams
        self._shards = shards
        self._shard = shard
        self._job: StreamJob | None = None
        self._collected: weakref.finalize[[], ShardStream] | None = None
        self._written = 0
        self._state = "open"
        self._error: BaseException | None = None
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"<ShardStream to {self._shard.key}: {self._written} bytes, {self._state}>"

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
        view = buffer_of(data)
        with self._turn:
            self._check_open()
            if len(view):
                try:
                    self._open_job().feed(view)
                except BaseException as error:
                    self._fail(error)
                    raise
            self._written += len(view)
        return len(view)

    def bytes_written(self) -> int:
        """Bytes taken so far."""
        return self._written

    def finalize(self) -> dict[str, Any]:
        """No more bytes: wait until the shard is durable; its record. On an error nothing of it stays."""
        with self._turn:
            self._check_open()
            try:
                record = self._finish()
            except BaseException as error:
                self._fail(error)
                raise
            self._state = "finalized"
            return record.to_dict()

    def cancel(self) -> None:
        """Give up and remove what was stored; nothing happens if the stream has ended."""
        job = self._job
        if job is not None:
            job.cancel()  # wakes a thread that waits in `write_chunk` with the turn
        with self._turn:
            if self._state == "open":
                self._fail(CancelledError(f"the stream to {self._shard.key} was cancelled"))

    def _open_job(self) -> StreamJob:
        if self._job is None:
            self._job = self._shards.start_stream(self._shard)
            self._collected = weakref.finalize(self, self._job.drop)
            self._collected.atexit = False  # the store ends its streams before its pool waits for them
        return self._job

    def _finish(self) -> ShardRecord:
        if self._job is None:
            shard = self._shard
            self._shard = self._shards.shard(shard.id, shard.rank, shard.epoch, empty=True)
            return store_whole(self._shards, self._shard, payload_of(b""))
        self._job.end()
        record = self._shards.finish(self._shard, self._job.future.result())
        self._forget()
        return record

    def _fail(self, error: BaseException) -> None:
        self._state, self._error = "cancelled" if isinstance(error, CancelledError) else "failed", error
        job = self._job
        if job is not None:
            self._forget()
            job.drop()
            _give_up(self._shards, self._shard, job)

    def _forget(self) -> None:
        """The job has ended, or is about to: nothing is left to do at collection."""
        self._job = None
        if self._collected is not None:
            self._collected.detach()

    def _check_open(self) -> None:
        if self._state == "open":
            return
        message = f"the stream to {self._shard.key} is {self._state}: start another"
        if isinstance(self._error, CancelledError):
            raise CancelledError(message)
        raise S3dlioError(message) from self._error
