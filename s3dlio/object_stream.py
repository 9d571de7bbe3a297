"""One object of any store, written bit by bit.

Owns the life of such a write: it is published whole by ``finish``, or nothing of it is; whoever loses it aborts it.
``multipart_writer`` and ``object_writers`` are its faces. ``shards.ShardStream`` is its like for a checkpoint's shard.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import zstandard

from .content import buffer_of
from .engine.errors import CancelledError, S3dlioError
from .engine.job import Coding
from .engine.ledger import StoredObject
from .engine.pool import Pool
from .engine.stream import StreamJob
from .object_uri import Place


class ObjectStream:
    """A write to ``place`` in bounded memory: parts leave while writing goes on.

    It holds memory from the first byte on: that of a part, or without a ``part_size`` of what its parts may grow to.
    Methods may be called by several threads; buffers are written in turn.
    """

    def __init__(self, pool: Pool, place: Place, coding: Coding | None = None, part_size: int | None = None) -> None:
        self._pool = pool
        self._place = place
        self._coding = coding or Coding()
        self._part_size = part_size
        self._job: StreamJob | None = None
        self._collected: weakref.finalize[[], ObjectStream] | None = None
        self._error: BaseException | None = None
        self._turn = threading.Lock()
        self.written = 0
        self.state = "open"
        self.result: StoredObject | None = None

    def __repr__(self) -> str:
        return f"<write to {self._place.uri}: {self.written} bytes, {self.state}>"

    @property
    def stored(self) -> int:
        """Bytes that the store has by now, encoded."""
        if self.result is not None:
            return self.result.info.size
        job = self._job
        return 0 if job is None else job.progress().stored

    def write(self, data: Any) -> int:
        """Copy the bytes of a buffer, waiting while memory is full; their number.

        ``UnsupportedError`` (a ``TypeError``) for what is no buffer leaves the write as it was. Any other error, also
        that of bytes written before, ends it.
        """
        view = buffer_of(data)
        with self._turn:
            self.check_open()
            if len(view):
                try:
                    self._open_job().feed(view)
                except BaseException as error:
                    self._fail(error)
                    raise
            self.written += len(view)
        return len(view)

    def finish(self) -> StoredObject:
        """No more bytes: wait until the object is durable under its key. On an error nothing of it is published."""
        with self._turn:
            self.check_open()
            try:
                self.result = self._finish()
            except BaseException as error:
                self._fail(error)
                raise
            self.state = "closed"
            return self.result

    def cancel(self) -> None:
        """Give up; nothing happens if it has ended."""
        job = self._job
        if job is not None:
            job.cancel()  # wakes a thread that waits in `write` with the turn
        with self._turn:
            if self.state == "open":
                self._fail(CancelledError(f"the write to {self._place.uri} was aborted"))

    def check_open(self) -> None:
        """``S3dlioError`` once it has ended."""
        if self.state == "open":
            return
        message = f"the write to {self._place.uri} is {self.state}: start another"
        if isinstance(self._error, CancelledError):
            raise CancelledError(message)
        raise S3dlioError(message) from self._error

    def _open_job(self) -> StreamJob:
        if self._job is None:
            place = self._place
            self._job = StreamJob(self._pool, place.location, place.key, coding=self._coding, part_size=self._part_size)
            self._collected = weakref.finalize(self, self._job.drop)
            self._collected.atexit = False  # an ending process aborts what is open by ending its pools
        return self._job

    def _finish(self) -> StoredObject:
        if self._job is None:
            body = zstandard.ZstdCompressor().compress(b"") if self._coding.codec == "zstd" else b""
            info = self._pool.control(self._place.location).put(self._place.key, [memoryview(body)])
            return StoredObject(info, 0, 0, ())
        self._job.end()
        stored = self._job.future.result()
        self._forget()
        return stored

    def _fail(self, error: BaseException) -> None:
        self.state, self._error = "aborted" if isinstance(error, CancelledError) else "failed", error
        job = self._job
        if job is not None:
            self._forget()
            job.drop()
            job.future.exception()  # once it has ended nobody publishes any more

    def _forget(self) -> None:
        """The job has ended, or is about to: nothing is left to do at collection."""
        self._job = None
        if self._collected is not None:
            self._collected.detach()
