"""The checkpoints that a store holds: loading, checking, listing and removing them.

Owns which checkpoint and which shard a call means; delegates the rest: ``restoring`` and ``reader`` read, ``catalog``
finds, ``removal`` and ``leftovers`` delete. Saves nothing: that is ``store``, whose ``CheckpointStore`` inherits this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from . import catalog, leftovers, loading, removal
from .coordination.boards import Coordinator
from .engine.errors import ConfigError
from .group_loader import agreed_id
from .info import CheckpointInfo
from .manifest import Manifest, shard_of
from .open_store import OpenStore
from .reader import OnBytes, ShardReader


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` read and found right: shards and raw bytes of one checkpoint."""

    info: CheckpointInfo
    shards: int
    bytes: int

    @property
    def ok(self) -> bool:
        """True: damage raises instead."""
        return True


class StoredCheckpoints(OpenStore):
    """What can be asked of the checkpoints that are there."""

    def load(
        self,
        step: int | None = None,
        *,
        into: Any = None,
        names: str | Iterable[str] | None = None,
        rank: int | None = None,
        id: str | None = None,
        coordinator: Coordinator = "auto",
    ) -> Any:
        """The state of the newest committed checkpoint, or of ``step``'s newest save.

        Arrays are views of one memory, without a copy, so a kept array pins the whole shard. ``into``: a state of the
        same structure whose arrays are filled in place; names, shapes, dtypes are checked before a byte is written.
        ``names``: globs; only these arrays are read, as a dict by name. A payload comes back bytes-like. ``id``: a
        checkpoint by its own name (``CheckpointInfo.id``), where a step was saved more than once.

        Of a checkpoint of several ranks, arrays come back whole, and a rank of as many gets what was its own;
        ``rank``: whose own state or payload, elsewhere. Where this process is one of several ranks, all must call, and
        load the checkpoint that rank 0 finds, unless ``coordinator=None``. Raises ``CheckpointNotFoundError``,
        ``CorruptError`` for bytes that are not those saved, ``ConfigError`` with everything that does not fit ``into``,
        ``names`` or the number of ranks.
        """
        if into is not None and names is not None:
            raise ConfigError("load takes into= or names=, not both")
        from .restoring import load_into, load_named, load_whole  # with NumPy, which a store is opened without

        with self._open_agreed(step, id, coordinator) as (manifest, reader, own):
            wanted = own if rank is None else rank
            if into is not None:
                return load_into(reader, manifest, wanted, into)
            if names is not None:
                return load_named(reader, manifest, wanted, names)
            return load_whole(reader, manifest, wanted)

    def verify(
        self, step: int | None = None, *, id: str | None = None, on_bytes: OnBytes | None = None
    ) -> VerifyReport:
        """Read every byte of a checkpoint back and check every checksum; ``CorruptError`` names what is damaged.

        ``id``: as in ``load``. ``on_bytes`` is called with the number of bytes just checked, in a thread of the pool.
        """
        with self._open_checkpoint(step, id) as (manifest, reader):
            total = sum(reader.verify(record, on_bytes) for record in manifest.shards)
            return VerifyReport(CheckpointInfo.of(manifest), len(manifest.shards), total)

    def read_shard(self, step: int | None = None, *, rank: int | None = None, id: str | None = None) -> Any:
        """A shard's raw bytes, bytes-like: of a state, a valid safetensors file. ``rank`` and ``id`` as in ``load``."""
        with self._open_checkpoint(step, id) as (manifest, reader):
            record = shard_of(manifest, rank)
            return reader.whole(record, reader.index(record))

    @contextmanager
    def _open_checkpoint(self, step: int | None, id: str | None) -> Iterator[tuple[Manifest, ShardReader]]:
        """A manifest and a reader; the checkpoint is not pruned by this process meanwhile."""
        manifest = catalog.resolve(self.control(), self.uri, step, id)
        with self._holding(manifest.id.name):
            yield manifest, self._reader()

    @contextmanager
    def _open_agreed(
        self, step: int | None, id: str | None, coordinator: Coordinator
    ) -> Iterator[tuple[Manifest, ShardReader, int | None]]:
        """As ``_open_checkpoint``, of the checkpoint that all ranks open; third, this rank if as many have saved it."""
        seat = self._seat(coordinator)
        if seat is not None and id is None:
            id = agreed_id(seat, step, lambda: catalog.resolve(self.control(), self.uri, step).id.name)
        with self._open_checkpoint(step, id) as (manifest, reader):
            council = None if seat is None else seat.council
            alike = council is not None and council.world_size == manifest.world_size
            yield manifest, reader, council.rank if council is not None and alike else None

    def _holding(self, name: str) -> AbstractContextManager[None]:
        """The checkpoint of this id is not pruned by this process meanwhile."""
        return loading.holding(self.location, name)

    def list(self) -> list[CheckpointInfo]:
        """All committed checkpoints in order of saving."""
        control = self.control()
        return catalog.list_checkpoints(control, control.each)

    def latest(self) -> CheckpointInfo | None:
        """The newest committed checkpoint by (start of the save, step); ``None`` in an empty store."""
        manifest = catalog.resolve_latest(self.control())
        return None if manifest is None else CheckpointInfo.of(manifest)

    def info(self, step: int) -> CheckpointInfo:
        """The newest save of ``step``; ``CheckpointNotFoundError`` if there is none."""
        return CheckpointInfo.of(catalog.resolve(self.control(), self.uri, step))

    def delete(self, step: int) -> bool:
        """Remove every save of ``step``; whether there was one."""
        control = self.control()
        return removal.delete(control, step, control.each)

    def prune(self, keep_last: int) -> int:
        """Remove all but the ``keep_last`` newest checkpoints, none that is being loaded here; how many went."""
        return self._prune(self.control(), keep_last)

    def cleanup(self, min_age: float = leftovers.DAY) -> int:
        """Remove what saves that never committed left behind ``min_age`` seconds ago or longer; how many objects."""
        control = self.control()
        found = leftovers.find_leftovers(control, min_age=min_age, each=control.each)
        return leftovers.remove_leftovers(control, found, control.each)
