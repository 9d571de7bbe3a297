"""``MultipartUploadWriter``: the published package's name for writing one large object bit by bit, to any store.

Owns the names, their checks and what ``close`` tells; ``object_stream`` does the work.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from . import pools
from .engine.errors import ConfigError, UnsupportedError
from .object_stream import ObjectStream
from .object_uri import Place, split_object


class MultipartUploadWriter:
    """Writes the object ``key`` of the S3 bucket ``bucket``; ``from_uri`` one of any store.

    ``write`` until done, then ``close``: the object appears whole, or not at all. ``abort`` gives up, and so does
    leaving the writer as a context manager by an exception, or losing the last reference to it.

    ``part_size``: bytes of a part, rounded up to chunks of 16 MiB. The store's most parts (10,000 in S3) then bound the
    object; without it parts grow, and the writer holds sixteen chunks of memory, so that fewer can be open at once. As
    many parts are in flight as the pool's workers have connections: ``max_in_flight`` is checked and changes nothing,
    and neither does ``abort_on_drop``, since nobody could go on with a lost writer's upload. ``options``: as in
    ``CheckpointConfig``.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        part_size: int | None = None,
        max_in_flight: int | None = None,
        content_type: str | None = None,
        abort_on_drop: bool | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._open(split_object(f"s3://{bucket}/{key}", options), part_size, max_in_flight, content_type)

    @classmethod
    def from_uri(
        cls,
        uri: str,
        part_size: int | None = None,
        max_in_flight: int | None = None,
        content_type: str | None = None,
        abort_on_drop: bool | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> MultipartUploadWriter:
        """A writer of the object at ``uri``; ``ConfigError`` before anything is contacted."""
        writer = cls.__new__(cls)
        writer._open(split_object(uri, options), part_size, max_in_flight, content_type)
        return writer

    def _open(self, place: Place, part_size: int | None, max_in_flight: int | None, content_type: str | None) -> None:
        for name, value in (("part_size", part_size), ("max_in_flight", max_in_flight)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} must be a positive number, not {value!r}")
        if content_type is not None:
            raise UnsupportedError("content_type= is not supported: objects are stored without one")
        self._started = time.time()
        self._reserved: bytearray | None = None
        self._stream = ObjectStream(pools.keep(), place, part_size=part_size)

    def __repr__(self) -> str:
        return f"<MultipartUploadWriter: {self._stream!r}>"

    def __enter__(self) -> MultipartUploadWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        elif self._stream.state == "open":
            self.close()

    def write(self, data: Any, /, *, copy: bool = False) -> int:
        """Copy the bytes of a buffer, waiting while memory is full; their number. ``copy`` changes nothing.

        Any error but that of an unfit ``data`` (``UnsupportedError``, a ``TypeError``) ends the upload.
        """
        return self._stream.write(data)

    def reserve(self, size: int) -> memoryview:
        """Memory of ``size`` bytes to be filled and then written by ``commit``; one at a time."""
        self._stream.check_open()
        if type(size) is not int or size < 0:
            raise ConfigError(f"reserve takes a number of bytes, not {size!r}")
        if self._reserved is not None:
            raise ConfigError("commit what was reserved before reserving again")
        self._reserved = bytearray(size)
        return memoryview(self._reserved)

    def commit(self, nbytes: int) -> None:
        """Write the first ``nbytes`` of what was reserved."""
        if self._reserved is None:
            raise ConfigError("nothing is reserved: call reserve(size) first")
        if type(nbytes) is not int or not 0 <= nbytes <= len(self._reserved):
            raise ConfigError(f"commit takes 0 to {len(self._reserved)} bytes, not {nbytes!r}")
        reserved, self._reserved = self._reserved, None
        self._stream.write(memoryview(reserved)[:nbytes])

    def flush(self) -> None:
        """Nothing to do: each part leaves as soon as it is full."""
        self._stream.check_open()

    def close(self) -> dict[str, Any]:
        """Publish the object; once it is durable, its ``etag, total_bytes, parts, started_at, completed_at``."""
        stored = self._stream.finish()
        return {
            "etag": stored.info.etag,
            "total_bytes": stored.raw_size,
            "parts": stored.parts,
            "started_at": self._started,
            "completed_at": time.time(),
        }

    def abort(self) -> None:
        """Give up: nothing is published. Nothing happens if the writer is closed."""
        self._stream.cancel()
