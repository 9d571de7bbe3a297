"""What a rank tells of its part of a save, and what the metadata keeps of it: where each item lies.

Pure records, sent between ranks by DCP's own collectives and kept as ``Metadata.storage_data``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from ...engine.errors import S3dlioError
from ...records import ShardRecord

TENSOR = "tensor"


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item: the ``rank`` whose shard holds it, its ``kind`` and ``key`` in the tree there.

    A tensor's bytes are [``offset``, ``offset + nbytes``) of the shard's raw bytes, in C order. ``node``: of an object
    that is whole without its shard, its tree node in a list.
    """

    rank: int
    kind: str
    key: str
    offset: int = 0
    nbytes: int = 0
    node: Any = None


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A rank's shard: its ``record``, and the name of the checkpoint's id if the coordinator gave one."""

    record: ShardRecord
    ticket: str | None


_SHARD = MetadataIndex(".s3dlio.shard")


def results_of(shard: StoredShard, items: Sequence[tuple[MetadataIndex, StoredItem]]) -> list[WriteResult]:
    """A rank's write results: its shard, which is there even where the plan was empty, then its items."""
    first = WriteResult(_SHARD, shard.record.size, shard)
    return [first, *(WriteResult(index, item.nbytes, item) for index, item in items)]


def gathered(
    results: Sequence[Sequence[WriteResult]], ticket: str
) -> tuple[list[ShardRecord], dict[MetadataIndex, StoredItem]]:
    """Every rank's record, in the order of ranks, and where each item lies.

    ``S3dlioError`` if a rank's results are missing or belong to another save: two saves at once on one process group
    take each other's answers.
    """
    records = []
    items: dict[MetadataIndex, StoredItem] = {}
    for rank, found in enumerate(results):
        shards = [result.storage_data for result in found if isinstance(result.storage_data, StoredShard)]
        if len(shards) != 1 or shards[0].record.rank != rank:
            raise S3dlioError(f"rank {rank} told of {len(shards)} shards: nothing was committed; save again")
        if shards[0].ticket not in (ticket, None):
            raise S3dlioError(
                f"rank {rank} answered for the save {shards[0].ticket}, not {ticket}: two saves ran at once on one "
                "process group; nothing was committed; wait for one before starting the next"
            )
        records.append(shards[0].record)
        items.update((each.index, each.storage_data) for each in found if isinstance(each.storage_data, StoredItem))
    return records, items


def check_complete(metadata: Metadata, items: dict[MetadataIndex, StoredItem]) -> None:
    """``S3dlioError``, naming some, if an item of the metadata was written by no rank."""
    missing = []
    for name, what in metadata.state_dict_metadata.items():
        if isinstance(what, BytesStorageMetadata):
            missing += [] if MetadataIndex(name) in items else [name]
        else:
            offsets = [chunk.offsets for chunk in what.chunks]
            missing += [f"{name} at {tuple(at)}" for at in offsets if MetadataIndex(name, at) not in items]
    if missing:
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise S3dlioError(f"{len(missing)} items were written by no rank: {few}; nothing was committed; save again")
