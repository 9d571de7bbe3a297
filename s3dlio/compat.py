"""The published package's names: ``PyCheckpointStore`` and the functions that do one thing with one URI.

A thin face over ``CheckpointStore`` and its bytes level; owns nothing but the names, their signatures and, for the
functions, a worker pool that stays between calls. Code written for the published package runs on it unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, SupportsIndex

from . import pools
from .bytes_level import CheckpointReader, CheckpointWriter
from .commit import check_meta
from .engine.errors import ConfigError
from .info import CheckpointInfo
from .payload import AnyPayload
from .shard_uri import split_object_uri, split_shard_uri
from .store import CheckpointStore

LOG_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}


class PyCheckpointStore:
    """Checkpoints of bytes at ``uri``, such as ``file:///dir``.

    ``strategy``: ``flat``, ``round_robin`` or ``binary``, in any case. ``multipart_threshold``: bytes up to which an
    object store gets a shard in one request. ``compression_level``: 1 to 22 turns zstd on. ``memory``, ``workers``,
    ``chunk_size`` and ``options`` as in ``CheckpointConfig``. Raises ``ConfigError``; nothing is touched before the
    first operation.

    Without ``close`` (or ``with``) its workers stay until the process ends, shared by the stores that come after.
    """

    def __init__(
        self,
        uri: str,
        strategy: str | None = None,
        multipart_threshold: int | None = None,
        compression_level: int | None = None,
        *,
        memory: int | None = None,
        workers: int | None = None,
        chunk_size: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._store = CheckpointStore(
            uri,
            strategy,
            compression=None if compression_level is None else "zstd",
            compression_level=compression_level,
            multipart_threshold=multipart_threshold,
            memory=memory,
            workers=workers,
            chunk_size=chunk_size,
            options=options,
        )

    def __repr__(self) -> str:
        return f"<PyCheckpointStore {self._store.uri}>"

    def __enter__(self) -> PyCheckpointStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the streams that were not finalized and let go of the workers."""
        self._store.close()

    def writer(self, world_size: int, rank: int) -> CheckpointWriter:
        """What stores the shards of one rank and commits; ``ConfigError`` for a rank outside 0 to world_size-1."""
        return self._store.writer(world_size, rank)

    def reader(self) -> CheckpointReader:
        """What reads manifests, and shards by rank."""
        return self._store.reader()

    def save(self, step: SupportsIndex, epoch: int, framework: str, data: Any, user_meta: Any = None) -> str:
        """Store and commit a checkpoint of one rank; the key of its manifest. Errors as those of the writer."""
        check_meta(0, "", user_meta)  # before anything is stored; the writer checks the rest
        writer = self.writer(1, 0)
        record = writer.save_distributed_shard(step, epoch, framework, data)
        return writer.finalize_distributed_checkpoint(step, epoch, framework, [record], user_meta)

    def load_latest(self) -> AnyPayload | None:
        """The bytes of the newest committed checkpoint, verified; ``None`` in an empty store.

        ``ConfigError`` if several ranks saved it: read each by ``reader()``.
        """
        reader = self.reader()
        manifest = reader.load_latest_manifest()
        if manifest is None:
            return None
        if manifest["world_size"] > 1:
            raise ConfigError(
                f"step {manifest['global_step']} was saved by {manifest['world_size']} ranks: take reader() and "
                "read_shard_by_rank(load_latest_manifest(), rank) for the bytes of one"
            )
        return reader.read_shard_by_rank(manifest, 0)

    def list_checkpoints(self) -> list[CheckpointInfo]:
        """All committed checkpoints in order of saving."""
        return self._store.list()

    def delete_checkpoint(self, step: int) -> bool:
        """Remove every save of ``step``; whether there was one."""
        return self._store.delete(step)


def save_checkpoint(uri: str, step: SupportsIndex, epoch: int, framework: str, data: Any, user_meta: Any = None) -> str:
    """``PyCheckpointStore(uri).save(...)``: the key of the manifest."""
    with _opened(uri) as store:
        return store.save(step, epoch, framework, data, user_meta)


def load_checkpoint(uri: str) -> AnyPayload | None:
    """``PyCheckpointStore(uri).load_latest()``: bytes-like, or ``None`` in an empty store."""
    with _opened(uri) as store:
        return store.load_latest()


def save_distributed_shard(
    uri: str, step: SupportsIndex, epoch: int, framework: str, data: Any, world_size: int, rank: int
) -> dict[str, Any]:
    """``writer.save_distributed_shard`` of this rank: the shard's record."""
    with _opened(uri) as store:
        return store.writer(world_size, rank).save_distributed_shard(step, epoch, framework, data)


def finalize_distributed_checkpoint(
    uri: str,
    step: SupportsIndex,
    epoch: int,
    framework: str,
    shard_metas: list[dict[str, Any]],
    world_size: int,
    rank: int,
    user_meta: Any = None,
) -> str:
    """``writer.finalize_distributed_checkpoint``, by one rank with the records of all: the key of the manifest."""
    with _opened(uri) as store:
        writer = store.writer(world_size, rank)
        return writer.finalize_distributed_checkpoint(step, epoch, framework, shard_metas, user_meta)


def load_checkpoint_with_validation(uri: str, validate_integrity: bool = True) -> bytes:
    """``load_checkpoint_with_validation_view``, copied to ``bytes``."""
    return load_checkpoint_with_validation_view(uri, validate_integrity).to_bytes()


def load_checkpoint_with_validation_view(uri: str, validate_integrity: bool = True) -> AnyPayload:
    """One shard by its own URI (the store's, ``/``, the record's ``key``): its raw bytes, bytes-like, not copied.

    They are verified against the checksum in the manifest that lists the shard. Raises ``ConfigError`` for a URI that
    is no shard's, ``CheckpointNotFoundError`` for a shard that no manifest lists, ``CorruptError`` for one without a
    recorded checksum and for bytes that are not those saved. With ``validate_integrity=False`` any object is read as it
    is stored, unverified and not decoded.
    """
    base, key = split_shard_uri(uri) if validate_integrity else split_object_uri(uri)
    with _opened(base) as store:
        reader = store.reader()
        return reader.read_shard(key) if validate_integrity else reader.read_object(key)


def init_logging(level: str) -> None:
    """Log what this package does from ``level`` on (``off error warn info debug trace``, any case), workers included.

    Records go to the handlers that the application has set up, and to standard error where there are none.
    """
    number = LOG_LEVELS.get(str(level).strip().lower())
    if number is None:
        raise ConfigError(f"unknown log level {level!r}: choose one of {', '.join(LOG_LEVELS)}")
    logger = logging.getLogger("s3dlio")
    logger.setLevel(number)
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


@contextmanager
def _opened(uri: str) -> Iterator[PyCheckpointStore]:
    """A store for one call, whose pool stays for the next."""
    with PyCheckpointStore(uri) as store:
        pools.keep()
        yield store
