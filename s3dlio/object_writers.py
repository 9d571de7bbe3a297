"""The published package's streaming writers of single objects, one function for each kind of store.

Owns the names, the options and the check that a URI is of the function's store; ``object_stream`` does the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

from . import pools
from .config import LEVELS
from .engine.checksum import format_crc32c
from .engine.errors import ConfigError
from .engine.job import Coding
from .engine.plan import MIB
from .object_stream import ObjectStream
from .object_uri import split_object

SUFFIX = ".zst"
_ZSTD_PART = 32 * MIB
"""Parts of a compressing writer, which else would hold 83 chunks for parts that may grow; on S3, up to 320 GB."""


class PyWriterOptions:
    """Options of a writer; each ``with_…`` changes them in place and returns them, so that calls can be chained."""

    def __init__(self) -> None:
        self.coding = Coding()

    def __repr__(self) -> str:
        return f"<PyWriterOptions: {self.coding.codec}>"

    def with_compression(self, compression_type: str, level: int | None = None) -> PyWriterOptions:
        """``zstd`` (level 1 to 22, 3 by default), which ends the object's name in ``.zst``, or ``none``."""
        name = str(compression_type).lower()
        if name not in ("zstd", "none"):
            raise ConfigError(f"compression {compression_type!r} is unknown: it is zstd or none")
        if level is not None and (type(level) is not int or level not in LEVELS):
            raise ConfigError(f"level must be 1 to 22, not {level!r}")
        self.coding = Coding("zstd", 3 if level is None else level) if name == "zstd" else Coding()
        return self

    def with_buffer_size(self, size: int) -> PyWriterOptions:
        """Checked, and changes nothing: bytes are buffered in chunks of the pool."""
        if type(size) is not int or size < 1:
            raise ConfigError(f"a buffer size must be a positive number, not {size!r}")
        return self


class PyObjectWriter:
    """Writes one object bit by bit: ``write_chunk`` until done, then ``finalize``; it appears whole or not at all.

    ``cancel`` gives up, and so does leaving it as a context manager, or losing the last reference, without
    ``finalize``.
    """

    def __init__(self, stream: ObjectStream) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return f"<PyObjectWriter: {self._stream!r}>"

    def __enter__(self) -> PyObjectWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def write_chunk(self, data: Any, *, copy: bool = False) -> int:
        """Copy the bytes of a buffer, waiting while memory is full; their number. ``copy`` changes nothing."""
        return self._stream.write(data)

    def write_owned_bytes(self, data: Any, *, copy: bool = False) -> int:
        """``write_chunk``."""
        return self._stream.write(data)

    def finalize(self) -> tuple[int, int]:
        """Publish the object; once it is durable, how many bytes were written and how many of them are stored."""
        stored = self._stream.finish()
        return stored.raw_size, stored.info.size

    def cancel(self) -> None:
        """Give up: nothing is published. Nothing happens if the writer is finalized."""
        self._stream.cancel()

    def bytes_written(self) -> int:
        """Bytes taken so far."""
        return self._stream.written

    def compressed_bytes(self) -> int:
        """Bytes that the store has by now."""
        return self._stream.stored

    def checksum(self) -> str | None:
        """``crc32c:`` and 8 hex digits over the bytes that were written; ``None`` until ``finalize``."""
        result = self._stream.result
        return None if result is None else format_crc32c(result.crc)


def create_filesystem_writer(uri: str, options: PyWriterOptions | None = None) -> PyObjectWriter:
    """A writer of ``file:///folder/name``."""
    return _create("file", uri, options)


def create_direct_filesystem_writer(uri: str, options: PyWriterOptions | None = None) -> PyObjectWriter:
    """A writer of ``direct:///folder/name``, or of ``file://``, past the page cache."""
    text = str(uri)
    return _create("direct", "direct" + text.removeprefix("file") if text.startswith("file://") else uri, options)


def create_s3_writer(
    uri: str, options: PyWriterOptions | None = None, *, store_options: Mapping[str, Any] | None = None
) -> PyObjectWriter:
    """A writer of ``s3://bucket/key``; ``store_options``: the ``options`` of ``CheckpointConfig``."""
    return _create("s3", uri, options, store_options)


def create_azure_writer(
    uri: str, options: PyWriterOptions | None = None, *, store_options: Mapping[str, Any] | None = None
) -> PyObjectWriter:
    """A writer of ``az://account/container/key``; ``store_options``: the ``options`` of ``CheckpointConfig``."""
    return _create("az", uri, options, store_options)


def _create(
    scheme: str, uri: str, options: PyWriterOptions | None, store_options: Mapping[str, Any] | None = None
) -> PyObjectWriter:
    if options is not None and not isinstance(options, PyWriterOptions):
        raise ConfigError(
            f"options must be PyWriterOptions, not {type(options).__name__}; a store's are store_options="
        )
    place = split_object(uri, store_options)
    if place.location.scheme != scheme:
        raise ConfigError(f"{uri!r} is not of {scheme}://, which this writer writes to")
    coding = Coding() if options is None else options.coding
    if coding.codec == "zstd" and not place.key.endswith(SUFFIX):
        place = replace(place, key=place.key + SUFFIX)
    part_size = _ZSTD_PART if coding.codec == "zstd" else None
    return PyObjectWriter(ObjectStream(pools.keep(), place, coding, part_size))
