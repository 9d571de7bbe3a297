"""``S3dlioStorageWriter``: torch.distributed.checkpoint saves as checkpoints of a store.

The public face of saving. Owns what one save knows between DCP's calls, which all come in one thread; ``items`` finds
this rank's bytes, ``staging`` copies for ``async_save``, ``committing`` publishes. An instance holds options only, so
it can be pickled and used for one checkpoint after the other, also while an earlier one is being stored.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import uuid
import weakref
from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ... import catalog, cuda_host
from ...config import CheckpointConfig
from ...engine.errors import ConfigError, MemoryLimitError, PreconditionError
from ...ids import CheckpointId
from ...strategy import Strategy, spread_key
from ...writer import Shard, ShardWriter
from . import shared
from .committing import commit_checkpoint
from .host_copies import NotOurs, copied
from .instance import Instance
from .items import shard_of
from .places import Place, rank_place
from .prefixes import PrefixStrategy, folders
from .staging import ARENA, SHARED, Staged, stage_in_arena
from .stored import StoredShard, results_of
from .storing import store_shard
from .tickets import Ticket, new_ticket, redeem

_log = logging.getLogger("s3dlio")


@dataclasses.dataclass(slots=True)
class _Run:
    """One save on this rank, from ``set_up_storage_writer`` on; ``base``: where all ranks save, ``place``: this one."""

    base: Place
    place: Place
    rank: int = 0
    coordinator: bool = True
    collective: bool = True
    ticket: Ticket = dataclasses.field(default_factory=new_ticket)
    id: CheckpointId | None = None
    save_id: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))


class S3dlioStorageWriter(Instance[_Run], StorageWriter, AsyncStager):
    """Writes DCP checkpoints to ``s3://``, ``az://``, ``file://`` or ``direct://``; also the stager of ``async_save``.

    ``uri``: the store; ``checkpoint_id`` names another one for each checkpoint (a URI, a path, or a folder below
    ``uri``). ``step``: recorded; by default the number that the place's name ends with. ``overwrite=False`` refuses a
    place that holds a checkpoint; else a further save there is a newer checkpoint of that store, and the older ones
    stay unless ``keep_last`` says how many. ``prefix_strategy`` spreads shards over key prefixes as ``strategy`` does,
    with the meaning it has in s3torchconnector. ``pickle``: store objects that have no typed form as pickles.
    ``staging``: ``"arena"``, or ``"shared"`` for ``AsyncCheckpointerType.PROCESS``. All else as in ``CheckpointStore``.

    A save that fails on any rank fails on all of them and commits nothing. Saves of one process group must not overlap,
    with each other or with training: give ``async_save`` a group of its own. ``ConfigError`` for options.
    """

    _synchronize_after_execute = False

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        step: int | None = None,
        overwrite: bool = True,
        strategy: Strategy | str | None = None,
        prefix_strategy: PrefixStrategy | None = None,
        compression: str | None = None,
        compression_level: int | None = None,
        multipart_threshold: int | None = None,
        memory: int | None = None,
        workers: int | None = None,
        chunk_size: int | None = None,
        connections: int | None = None,
        keep_last: int | None = None,
        options: Mapping[str, Any] | None = None,
        pickle: bool = False,
        staging: str = ARENA,
        user_meta: Any = None,
    ) -> None:
        given: dict[str, Any] = {
            "strategy": strategy,
            "compression": compression,
            "compression_level": compression_level,
            "multipart_threshold": multipart_threshold,
            "memory": memory,
            "workers": workers,
            "chunk_size": chunk_size,
            "connections": connections,
            "keep_last": keep_last,
            "options": options,
        }
        if strategy is not None and prefix_strategy is not None:
            raise ConfigError("pass strategy= or prefix_strategy=, not both")
        if staging not in (ARENA, SHARED):
            raise ConfigError(f"staging must be {ARENA!r} or {SHARED!r}, not {staging!r}")
        super().__init__(uri, CheckpointConfig.of(**given), step)
        self.overwrite = overwrite
        self.user_meta = user_meta
        self._prefixes = prefix_strategy
        self._pickle = pickle
        self._staging = staging
        self._staged: weakref.WeakSet[Staged] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_staged": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._staged = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<S3dlioStorageWriter to {self._place.uri}>"

    # DCP's protocol, in the order of its calls

    def storage_meta(self) -> StorageMeta:
        """Recorded with the metadata: the place, and an id of this save."""
        return StorageMeta(checkpoint_id=self._run.base.uri, save_id=self._run.save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """``rank`` and ``use_collectives`` come by keyword; without collectives each rank writes a store of its own."""
        base, rank = self._run.base, kwargs.get("rank") or 0
        if kwargs.get("use_collectives", True):
            self._run = _Run(base, base, rank, is_coordinator)
        else:
            own = rank_place(base, rank, self._options_of(base.uri))
            self._run = _Run(base, own, rank, coordinator=True, collective=False)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """``PreconditionError`` if the place holds a checkpoint and may not be overwritten; the coordinator asks."""
        run = self._run
        if run.coordinator:
            ids = catalog.list_ids(self._shards(run.place).control)
            shared.clock.see(ids)
            if ids and not self.overwrite:
                raise PreconditionError(f"Checkpoint already exists and self.overwrite=False: {run.place.uri}")
        return dataclasses.replace(plan, storage_data=run.ticket)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell every rank the name of the checkpoint's id, for its shard's key."""
        run = self._run
        run.id = id_ = shared.clock.mint(run.place.step)

        def ticket(plan: SavePlan) -> Ticket:
            return Ticket(plan.storage_data.nonce if isinstance(plan.storage_data, Ticket) else "", id_.name)

        return [dataclasses.replace(plan, storage_data=ticket(plan)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Store this rank's shard; it is durable when this returns."""
        run = self._run
        name = redeem(run.ticket, plan.storage_data)
        id_ = CheckpointId.parse(name) if name else shared.clock.mint(run.place.step)
        assert id_ is not None
        mine = shard_of(plan, planner, pickle=self._pickle)
        rank = run.rank if run.collective else 0
        shards = self._shards(run.place)
        shard = self._name(shards, id_, rank)
        record = store_shard(shards, shard, mine)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results_of(StoredShard(record, name), mine.items(rank)))
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: every rank's shard is there. On an error nothing is committed, and DCP tells every rank."""
        run = self._run
        id_ = run.id
        assert id_ is not None
        metadata.storage_meta = self.storage_meta()
        shards = self._shards(run.place)
        commit_checkpoint(
            shards,
            lambda rank: self._name(shards, id_, rank),
            id_,
            metadata,
            results,
            location=run.place.location,
            user_meta=self.user_meta,
            keep_last=self.config.keep_last,
        )

    # DCP's stager

    def stage(self, state_dict: Any) -> Any:
        """Copy the state and return what DCP plans with; the caller may change its tensors as soon as this returns."""
        if self._staging == SHARED:
            return copied(state_dict, shared=True)
        try:
            made, staged = stage_in_arena(state_dict, self._shards(self._place), pickle=self._pickle)
        except NotOurs as error:
            _log.info("%s is a tensor that only torch can copy: the state is staged in host memory", error)
            return copied(state_dict, shared=False)
        except MemoryLimitError as error:
            _log.warning("the state is staged in host memory, beside the memory number: %s", error)
            return copied(state_dict, shared=False)
        self._staged.add(staged)
        return made

    def synchronize_staging(self) -> None:
        """Nothing to wait for: ``stage`` has copied everything."""

    def close(self) -> None:
        """Give back the memory of states that were staged and never saved. The workers stay: ``shutdown`` ends them."""
        for staged in list(self._staged):
            staged.release()

    def warmup(self, nbytes: int | None = None) -> int:
        """As in ``CheckpointStore``: the first save into cold memory copies at a tenth of the speed."""
        return shared.pool_of(self.config).warmup(nbytes, cuda_host.registrar())

    # parts of the above

    def _new_run(self, place: Place) -> _Run:
        return _Run(place, place)

    def _place_of_run(self) -> Place:
        return self._run.base

    def _shards(self, place: Place) -> ShardWriter:
        return ShardWriter(shared.pool_of(self.config), place.location, self.config)

    def _name(self, shards: ShardWriter, id_: CheckpointId, rank: int) -> Shard:
        shard = shards.shard(id_, rank, 0)
        prefix = folders(self._prefixes, rank)
        return dataclasses.replace(shard, key=spread_key(shard.key, prefix)) if prefix else shard
