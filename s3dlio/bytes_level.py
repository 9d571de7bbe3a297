"""The bytes level: every rank stores its own shard, then one rank commits them all.

Owns the writer and the reader that ``CheckpointStore.writer`` and ``.reader`` give; ``compat`` gives the same ones
under the published package's names. Ranks pass each other the records, which are plain dicts, as they like.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, SupportsIndex

from . import catalog
from .commit import check_meta, commit
from .content import payload_of
from .engine.errors import ConfigError, ManifestError
from .engine.pool import PoolControl
from .ids import CheckpointId, check_step
from .manifest import Manifest
from .payload import AnyPayload
from .reader import ShardReader
from .records import ShardRecord
from .shard_uri import listed_record
from .shards import ShardStream, store_whole
from .strategy import check_rank
from .writer import ShardWriter


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """What the bytes level asks of a store.

    ``mint``: a new id for a step; ``committed``: called after each commit; ``holding(name)``: while within, this
    process does not prune the checkpoint of that id; ``opened``: takes note of a stream, for the store to end it.
    """

    writer: Callable[[], ShardWriter]
    reader: Callable[[], ShardReader]
    control: Callable[[], PoolControl]
    mint: Callable[[int], CheckpointId]
    committed: Callable[[], None]
    holding: Callable[[str], AbstractContextManager[None]]
    opened: Callable[[ShardStream], None]


class CheckpointWriter:
    """Stores the shards of one rank of ``world_size``; ``ConfigError`` if there is no such rank."""

    def __init__(self, store: StoreAccess, world_size: int, rank: int) -> None:
        self._store = store
        self.world_size = _integer(world_size)
        self.rank = check_rank(_integer(rank), self.world_size)

    def __repr__(self) -> str:
        return f"<CheckpointWriter of rank {self.rank} of {self.world_size}>"

    def save_distributed_shard(self, step: SupportsIndex, epoch: int, framework: str, data: Any) -> dict[str, Any]:
        """Store this rank's bytes; they are durable when this returns their record, for the commit.

        ``data``: any C-contiguous buffer, read in place; other arrays are gathered once. Raises ``ConfigError`` and
        ``UnsupportedError`` (a ``TypeError``) before anything is written.
        """
        step, epoch = _check(step, epoch, framework)
        content = payload_of(data)
        writer = self._store.writer()
        shard = writer.shard(self._store.mint(step), self.rank, epoch, empty=not content.source.total)
        return store_whole(writer, shard, content).to_dict()

    def get_distributed_shard_stream(self, step: SupportsIndex, epoch: int, framework: str) -> ShardStream:
        """A stream that takes this rank's bytes bit by bit; its ``finalize`` gives the record."""
        step, epoch = _check(step, epoch, framework)
        writer = self._store.writer()
        stream = ShardStream(self._store, writer, writer.shard(self._store.mint(step), self.rank, epoch))
        self._store.opened(stream)
        return stream

    def finalize_distributed_checkpoint(
        self,
        step: SupportsIndex,
        epoch: int,
        framework: str,
        shard_metas: Sequence[dict[str, Any]],
        user_meta: Any = None,
    ) -> str:
        """Commit the checkpoint made of the records of all ranks; the key of its manifest.

        One rank calls this, with one record of each. Raises ``ConfigError`` for arguments (``user_meta``: JSON),
        ``ManifestError`` for records that are malformed, of another step, twice there or missing, ``NotFoundError`` and
        ``CorruptError`` for listed objects that are missing or of another size; then nothing is published.
        """
        step, epoch = _check(step, epoch, framework, user_meta)
        control = self._store.control()
        committed = commit(
            control,
            _records(shard_metas),
            step=step,
            epoch=epoch,
            framework=framework,
            world_size=self.world_size,
            user_meta=user_meta,
            require_checksums=False,
            each=control.each,
        )
        self._store.committed()
        return committed.manifest_key

    def put_shard(self, data: Any, step: SupportsIndex = 0) -> dict[str, Any]:
        """``save_distributed_shard`` without an epoch and a framework: ``write_manifest`` tells them."""
        return self.save_distributed_shard(step, 0, "", data)

    def write_manifest(
        self, epoch: int, framework: str, shard_metas: Sequence[dict[str, Any]], user_meta: Any = None
    ) -> str:
        """``finalize_distributed_checkpoint`` of the step that the records tell."""
        records = _records(shard_metas)
        if not records:
            raise ManifestError(f"no shard records, {self.world_size} ranks: pass what put_shard gave each of them")
        return self.finalize_distributed_checkpoint(records[0].step, epoch, framework, shard_metas, user_meta)


class CheckpointReader:
    """Reads manifests and shards of a store."""

    def __init__(self, store: StoreAccess) -> None:
        self._store = store

    def load_latest_manifest(self) -> dict[str, Any] | None:
        """The newest committed checkpoint's manifest under the names it has on disk; ``None`` in an empty store."""
        manifest = catalog.resolve_latest(self._store.control())
        return None if manifest is None else manifest.to_dict()

    def read_shard_by_rank(self, manifest: dict[str, Any], rank: int) -> AnyPayload:
        """The raw bytes of a rank, verified; bytes-like, and not copied on the way to the caller.

        Raises ``ManifestError`` for what is no manifest, ``ConfigError`` for a rank that it does not list,
        ``NotFoundError`` and ``CorruptError`` for bytes that are gone or not those saved.
        """
        found = Manifest.from_dict(manifest)
        wanted = _integer(rank)
        record = next((shard for shard in found.shards if type(wanted) is int and shard.rank == wanted), None)
        if record is None:
            raise ConfigError(f"rank {rank!r} is not among the {found.world_size} ranks of step {found.step}")
        name = f"ckpt-{found.step}-{found.shards[0].timestamp}"  # a manifest is named by rank 0's shard
        with self._store.holding(name):
            return self._whole(record)

    def read_shard(self, key: str) -> AnyPayload:
        """The raw bytes of the shard under ``key``, verified by the manifest that lists it; errors of ``shard_uri``."""
        return self._whole(listed_record(self._store.control(), key))

    def read_object(self, key: str) -> AnyPayload:
        """The bytes of any object as they are stored, unverified."""
        size = self._store.control().head(key).size
        plain = ShardRecord(rank=0, key=key, size=size, step=0, epoch=0, timestamp="")
        return self._store.reader().whole(plain, None)

    def _whole(self, record: ShardRecord) -> AnyPayload:
        reader = self._store.reader()
        return reader.whole(record, reader.index(record))


def _check(step: SupportsIndex, epoch: int, framework: str, user_meta: Any = None) -> tuple[int, int]:
    """Step and epoch, once all of it is such that a manifest can hold it."""
    plain = check_step(step), _integer(epoch)
    check_meta(plain[1], framework, user_meta)
    return plain


def _records(shard_metas: Sequence[dict[str, Any]]) -> list[ShardRecord]:
    if not isinstance(shard_metas, (list, tuple)):
        raise ConfigError(f"shard_metas must be a list of shard records, not {type(shard_metas).__name__}")
    return [ShardRecord.from_dict(meta) for meta in shard_metas]


def _integer(value: Any) -> int:
    """An integer of any type, NumPy's too, as an ``int``; everything else as it is, for the check to refuse."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    return value  # type: ignore[no-any-return]
