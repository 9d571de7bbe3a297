"""``S3dlioStorageReader``: torch.distributed.checkpoint loads from checkpoints of a store.

The public face of loading. Owns which checkpoint is meant and what one load knows between DCP's calls; ``metadata``
parses, ``filling`` reads. An instance holds options only, so it can be pickled and used for one load after the other.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ... import catalog, loading
from ...config import CheckpointConfig
from ...engine.errors import ConfigError, ManifestError, S3dlioError
from ...manifest import Manifest
from ...reader import ShardReader
from . import shared
from .committing import FORMAT, FRAMEWORK
from .filling import Filling
from .instance import Instance
from .metadata import load
from .places import Place, rank_place


@dataclasses.dataclass(slots=True)
class _Run:
    """One load on this rank."""

    base: Place
    place: Place
    manifest: Manifest | None = None
    metadata: Metadata | None = None
    load_id: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))


class S3dlioStorageReader(Instance[_Run], StorageReader):
    """Reads DCP checkpoints that ``S3dlioStorageWriter`` wrote; of each shard only the chunks that a rank needs.

    ``uri`` and ``checkpoint_id`` as in the writer. ``step`` and ``id``: which checkpoint of a store that holds several
    (default: the newest). ``pickle``: unpickle objects that were saved as pickles. All else as in ``CheckpointStore``.
    Every byte is checked against its checksum: ``CorruptError`` for those that are not what was saved.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        step: int | None = None,
        id: str | None = None,
        memory: int | None = None,
        workers: int | None = None,
        chunk_size: int | None = None,
        connections: int | None = None,
        options: Mapping[str, Any] | None = None,
        pickle: bool = False,
    ) -> None:
        given: dict[str, Any] = {
            "memory": memory,
            "workers": workers,
            "chunk_size": chunk_size,
            "connections": connections,
            "options": options,
        }
        super().__init__(uri, CheckpointConfig.of(**given), step)
        self.id = id
        self._pickle = pickle

    def __repr__(self) -> str:
        return f"<S3dlioStorageReader of {self._place.uri}>"

    # DCP's protocol, in the order of its calls

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata; of one rank's own checkpoint (``rank=``) where ranks saved without each other.

        ``CheckpointNotFoundError`` if there is none, ``ConfigError`` if it is not one of DCP.
        """
        base, rank = self._run.base, kwargs.get("rank")
        run = self._run = _Run(base, base if rank is None else rank_place(base, rank, self._options_of(base.uri)))
        control = shared.pool_of(self.config).control(run.place.location)
        run.manifest = manifest = catalog.resolve(control, run.place.uri, self.step, self.id)
        shard = manifest.shards[_metadata_shard(manifest)]
        with loading.holding(run.place.location, manifest.id.name):
            reader = self._reader(run)
            data = reader.whole(shard, reader.index(shard))
        run.metadata = metadata = load(memoryview(data), manifest.world_size - 1)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = run.load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """``metadata`` is what ``read_metadata`` gave."""
        run = self._run
        if metadata.storage_data is None or run.manifest is None:
            raise S3dlioError("the metadata does not tell where items lie: read it by this reader's read_metadata")
        run.metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Tell the coordinator which checkpoint this rank has found."""
        return dataclasses.replace(plan, storage_data=self._manifest.id.name)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """``S3dlioError`` unless all ranks have found the same: one may have been committed meanwhile."""
        names = {plan.storage_data for plan in plans} - {None}
        if len(names) > 1 and self._run.place is self._run.base:
            raise S3dlioError(f"the ranks found different checkpoints ({', '.join(sorted(names))}): load one by id=")
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for; all is there when this returns."""
        run = self._run
        assert run.metadata is not None
        with loading.holding(run.place.location, self._manifest.id.name):
            filling = Filling(self._reader(run), self._manifest.shards, run.metadata, pickle=self._pickle)
            filling.fill(plan, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    # parts of the above

    def _new_run(self, place: Place) -> _Run:
        return _Run(place, place)

    def _place_of_run(self) -> Place:
        return self._run.base

    @property
    def _manifest(self) -> Manifest:
        if self._run.manifest is None:
            raise S3dlioError("read_metadata comes first")
        return self._run.manifest

    def _reader(self, run: _Run) -> ShardReader:
        return ShardReader(shared.pool_of(self.config), run.place.location)


def _metadata_shard(manifest: Manifest) -> int:
    """The number of the shard that is DCP's metadata."""
    meta = manifest.user_meta
    dcp = meta.get("dcp") if isinstance(meta, dict) else None
    if manifest.framework != FRAMEWORK or not isinstance(dcp, dict):
        raise ConfigError(
            f"{manifest.id.name} was not saved by torch.distributed.checkpoint but by {manifest.framework!r}: load it "
            "with CheckpointStore"
        )
    version, number = dcp.get("format"), dcp.get("metadata")
    if type(version) is not int or version > FORMAT:
        raise ManifestError(
            f"{manifest.id.name} has DCP format {version!r}, this version reads up to {FORMAT}: upgrade"
        )
    if type(number) is not int or number != manifest.world_size - 1 or not manifest.is_complete:
        raise ManifestError(f"{manifest.id.name} names shard {number!r} as its metadata")
    return number
