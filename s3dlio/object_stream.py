"""One object of any store, written bit by bit: it is published whole by ``finish``, or nothing of it is.

Owns what is written where; its life is ``ByteStream``'s. ``multipart_writer`` and ``object_writers`` are its faces.
"""

from __future__ import annotations

import zstandard

from .byte_stream import ByteStream
from .engine.actions import StoredObject
from .engine.job import Coding
from .engine.pool import Pool
from .engine.stream import StreamJob
from .object_uri import Place


class ObjectStream(ByteStream[StoredObject]):
    """A write to ``place``. The memory it holds is that of a part, or without a ``part_size`` of what its parts may
    grow to.
    """

    FINISHED, CANCELLED = "closed", "aborted"

    def __init__(self, pool: Pool, place: Place, coding: Coding | None = None, part_size: int | None = None) -> None:
        super().__init__()
        self._pool = pool
        self._place = place
        self._coding = coding or Coding()
        self._part_size = part_size

    def __repr__(self) -> str:
        return f"<write to {self._place.uri}: {self.written} bytes, {self.state}>"

    @property
    def name(self) -> str:
        return f"the write to {self._place.uri}"

    @property
    def stored(self) -> int:
        """Bytes that the store has by now, encoded."""
        if self.result is not None:
            return self.result.info.size
        job = self._job
        return 0 if job is None else job.progress().stored

    def _start(self) -> StreamJob:
        place = self._place
        return StreamJob(self._pool, place.location, place.key, coding=self._coding, part_size=self._part_size)

    def _result_of(self, stored: StoredObject) -> StoredObject:
        return stored

    def _store_nothing(self) -> StoredObject:
        body = zstandard.ZstdCompressor().compress(b"") if self._coding.codec == "zstd" else b""
        info = self._pool.control(self._place.location).put(self._place.key, [memoryview(body)])
        return StoredObject(info, 0, 0, ())

    def _discard(self) -> None:
        """Nothing: the store publishes an object whole or not at all."""
