"""Copying a checkpoint from one store to another: as it is stored, verified there, and committed last.

Owns the order of the steps; the workers of the target's pool move all bytes, from store to store through its arena, so
the source's pool does nothing and may be of any size. ``cli`` calls it.

Keys stay, and so do the bytes of shards, indexes and manifest. Each shard is read back from the target and checked
against its checksums before the manifest is put there, so a copy that was killed leaves no checkpoint; the next one
takes over every shard that is there and verifies.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from . import catalog, loading
from .commit import check_stored, publish_copy
from .config import DEFAULT_THRESHOLD
from .engine.checksum import crc32c, format_crc32c
from .engine.contract import Control, Location
from .engine.errors import (
    ConfigError,
    CorruptError,
    ManifestError,
    NotFoundError,
    PreconditionError,
)
from .engine.job import Coding, SaveJob
from .engine.messages import ARENA, Fetch, Span
from .engine.plan import MIB
from .engine.pool import Pool
from .ids import CheckpointId
from .info import CheckpointInfo
from .manifest import MANIFEST_MAX, Manifest
from .reader import ShardReader
from .records import IndexRef, ShardRecord
from .store import CheckpointStore

_INLINE = 1 * MIB
"""An index up to this size travels in a message; a larger one through the arena."""

OnBytes = Callable[[int], None]


def copy_checkpoint(
    source: CheckpointStore,
    target: CheckpointStore,
    step: int | None = None,
    *,
    id: str | None = None,
    on_bytes: OnBytes | None = None,
) -> CheckpointInfo:
    """Copy the newest checkpoint of ``source``, or ``step``'s newest save, or the one of this ``id``, to ``target``.

    ``on_bytes`` is called with the number of stored bytes of shards that have just been copied, or were found there, in
    any thread. Raises ``CheckpointNotFoundError``, ``ConfigError`` if both stores are one place, ``PreconditionError``
    if the target holds another checkpoint of this id, ``CorruptError`` for bytes that are not those saved; then the
    target has no manifest of it. A failure leaves what was copied, for the next try.
    """
    if is_same_place(source.location, target.location):
        raise ConfigError(f"{source.uri} and {target.uri} are the same place: copy to another one")
    pool = target._use_pool()
    there, here = pool.control(source.location), pool.control(target.location)
    id_ = catalog.resolve(there, source.uri, step, id).id
    with loading.holding(source.location, id_.name), loading.holding(target.location, id_.name):
        data = there.read(id_.manifest_key, limit=MANIFEST_MAX)[0]
        manifest = Manifest.decode(data, id_.manifest_key)
        if not manifest.is_complete:
            raise ManifestError(f"{id_.manifest_key} has status {manifest.status!r}: only a complete one is copied")
        committed = _is_committed(here, id_, data)
        for record in manifest.shards:
            _Copy(pool, source.location, target, on_bytes or _ignore, committed=committed).shard(record)
        check_stored(here, manifest.shards, here.each)  # a clean-up may have taken what a first try had left
        publish_copy(here, id_, data)
    target._clock.see([id_])  # what is saved there next is newer
    return CheckpointInfo.of(manifest)


def is_same_place(one: Location, other: Location) -> bool:
    """Whether two locations are one store, as far as their names tell."""
    if {one.scheme, other.scheme} <= {"file", "direct"}:
        return os.path.realpath(one.root) == os.path.realpath(other.root)
    ends = [dict(location.options).get("endpoint_url") for location in (one, other)]
    return (one.scheme, one.root, ends[0]) == (other.scheme, other.root, ends[1])


def _is_committed(control: Control, id_: CheckpointId, data: bytes) -> bool:
    """Whether the target has this very checkpoint; ``PreconditionError``, before a byte is copied, if another."""
    try:
        there = control.read(id_.manifest_key, limit=MANIFEST_MAX)[0]
    except NotFoundError:
        return False
    if there != data:
        raise PreconditionError(f"{id_.manifest_key} is taken by another checkpoint: delete it there before copying")
    return True


def _ignore(_: int) -> None:
    pass


class _Copy:
    """The copy of one shard."""

    def __init__(
        self, pool: Pool, source: Location, target: CheckpointStore, on_bytes: OnBytes, *, committed: bool
    ) -> None:
        self._pool = pool
        self._source = source
        self._target = target.location
        self._whole_below = target.config.multipart_threshold
        self._on_bytes = on_bytes
        self._committed = committed

    def shard(self, record: ShardRecord) -> None:
        """Have the shard and its index in the target, read back and verified."""
        if self._is_there(record):
            self._on_bytes(record.size)
            return
        if self._committed:  # the copy is to mend it: only what is whole may take the place of a committed shard
            ShardReader(self._pool, self._source).verify(record)
        crc = self._object(record.key, record.size, self._on_bytes)
        if record.index is not None:
            self._index(record.index)
        try:
            self._verify(record, crc)
        except CorruptError as error:
            raise CorruptError(
                f"the copy of {record.key} is not what was saved: {error}; if verify says the same of "
                f"{self._source.uri}, its bytes are damaged there, else copy again"
            ) from error

    def _is_there(self, record: ShardRecord) -> bool:
        """Whether a former copy left all of it, by its checksums; of what is committed nothing is written here.

        Without checksums it is copied again, unless it is committed: then it is left alone.
        """
        try:
            if self._pool.control(self._target).head(record.key).size != record.size:
                return False
        except NotFoundError:
            return False
        if record.checksum is None:
            return self._committed
        if record.index is not None and not self._committed:
            self._index(record.index)
        try:
            ShardReader(self._pool, self._target).verify(record)
        except (NotFoundError, CorruptError):
            return False
        return True

    def _verify(self, record: ShardRecord, crc: int) -> None:
        """Read the target's bytes back: against their checksums, and where there are none, what was sent there."""
        if record.checksum is None:
            record = replace(record, codec="none", raw_size=record.size, checksum=format_crc32c(crc), index=None)
        ShardReader(self._pool, self._target).verify(record)

    def _index(self, index: IndexRef) -> None:
        """Copy a shard's index, whatever is there: it is small."""
        if index.size > _INLINE:
            self._object(index.key, index.size, _ignore)
            return
        data = self._pool.control(self._source).read(index.key, limit=_INLINE)[0]
        if format_crc32c(crc32c(data)) != index.checksum:
            raise CorruptError(f"{self._source.uri}: {index.key} does not match its checksum: copy another checkpoint")
        self._pool.control(self._target).put(index.key, [memoryview(data)])

    def _object(self, key: str, size: int, on_bytes: OnBytes) -> int:
        return copy_object(
            self._pool, self._source, key, self._target, key, size, whole_below=self._whole_below, on_bytes=on_bytes
        )


def copy_object(
    pool: Pool,
    source: Location,
    key: str,
    target: Location,
    target_key: str,
    size: int,
    *,
    whole_below: int = DEFAULT_THRESHOLD,
    on_bytes: OnBytes = _ignore,
) -> int:
    """Copy the stored bytes of an object; their CRC-32C."""
    job = SaveJob(pool, target, target_key, total=size, coding=Coding(), whole_below=whole_below)
    try:
        job.stage(_StoredSource(pool, source, key, size, on_bytes))
        return job.future.result().crc
    except BaseException:
        job.cancel()
        job.future.exception()  # once it has ended nobody writes any more
        raise


class _StoredSource:
    """The stored bytes of an object elsewhere as a job's source: workers fetch them into its slots."""

    def __init__(self, pool: Pool, location: Location, key: str, size: int, on_bytes: OnBytes) -> None:
        self.total = size
        self.threads = pool.width(location)
        self._pool = pool
        self._location = location
        self._key = key
        self._on_bytes = on_bytes

    def fill(self, address: int, start: int, stop: int) -> None:
        """Have a worker read a range into the slot at ``address``."""
        size = stop - start
        target = Span(ARENA, address - self._pool.arena.address(0), size)
        self._pool.run(Fetch(self._location, self._key, start, size, "none", size, None, target)).result()
        self._on_bytes(size)
