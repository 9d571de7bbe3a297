"""Filling a load plan: tensors by ranges of shards, objects from the metadata or from their shards.

Owns the order: one read of each shard for all that is wanted of it, then whatever has to be copied on. Called by
``reader``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from ...engine.errors import ManifestError, S3dlioError
from ...index import ShardIndex
from ...reader import ShardReader, Wanted
from ...records import ShardRecord
from ...tensors import Selection, parse_table, restore_named
from ...tensors.restore import build
from ...tensors.table import Piece, Table
from .objects import PICKLE, check_pickle, saved
from .regions import wanted
from .stored import TENSOR, StoredItem


class Filling:
    """One load: of ``shards`` of a checkpoint, by its ``metadata``."""

    def __init__(self, reader: ShardReader, shards: Sequence[ShardRecord], metadata: Metadata, *, pickle: bool) -> None:
        self._reader = reader
        self._shards = shards
        self._metadata = metadata
        self._pickle = pickle
        self._indexes: dict[int, ShardIndex] = {}

    def fill(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Read everything that ``plan`` asks for. Errors name the item."""
        landings = [_Landing(item, planner) for item in plan.items if item.type is not LoadItemType.BYTE_IO]
        by_rank: dict[int, list[Wanted]] = {}
        for landing in landings:
            stored = self._stored(landing.item.storage_index)
            by_rank.setdefault(stored.rank, []).extend(self._wanted(landing, stored))
        for rank, ranges in sorted(by_rank.items()):
            if ranges:
                self._reader.pieces(self._shards[rank], self._index(rank), ranges)
        for landing in landings:
            landing.finish(planner)
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, io.BytesIO(self._bytes(item.storage_index)))

    def _stored(self, index: MetadataIndex) -> StoredItem:
        item = self._metadata.storage_data.get(index)
        if not isinstance(item, StoredItem):
            raise ManifestError(f"{index.fqn}: the checkpoint does not tell where it lies")
        return item

    def _index(self, rank: int) -> ShardIndex:
        if rank not in self._indexes:
            index = self._reader.index(self._shards[rank])
            if index is None:
                raise ManifestError(f"{self._shards[rank].key} has no index")
            self._indexes[rank] = index
        return self._indexes[rank]

    # tensors

    def _wanted(self, landing: _Landing, stored: StoredItem) -> list[Wanted]:
        index = landing.item.storage_index
        what = self._metadata.state_dict_metadata.get(index.fqn)
        if stored.kind != TENSOR or not isinstance(what, TensorStorageMetadata):
            raise S3dlioError(f"{index.fqn} was saved as an object, and the target has a tensor")
        sizes = _saved_sizes(what, index)
        dtype = what.properties.dtype
        width = dtype.itemsize
        if stored.nbytes != sizes.numel() * width or stored.offset + stored.nbytes > self._index(stored.rank).raw_size:
            raise ManifestError(f"{index.fqn}: {stored.nbytes} bytes at {stored.offset} do not hold {dtype} {sizes}")
        item = landing.item
        try:
            return list(wanted(sizes, item.storage_offsets, item.lengths, width, stored.offset, landing.address(dtype)))
        except ValueError as error:
            raise S3dlioError(f"{index.fqn}: {error}") from error

    # objects

    def _bytes(self, index: MetadataIndex) -> bytes:
        """What a planner expects of an object: as ``torch.save`` makes it."""
        stored = self._stored(index)
        if stored.kind == TENSOR:
            raise S3dlioError(f"{index.fqn} was saved as a tensor, and the target has an object")
        if stored.kind == PICKLE:
            check_pickle(index.fqn, pickle=self._pickle)
        value = build(stored.node[0], 0, _no_leaf) if stored.node is not None else self._from_shard(index.fqn, stored)
        if stored.kind != PICKLE:
            return saved(value)
        if not isinstance(value, bytes):
            raise ManifestError(f"{index.fqn}: a pickle that is no bytes")
        return value

    def _from_shard(self, name: str, stored: StoredItem) -> Any:
        index, record = self._index(stored.rank), self._shards[stored.rank]
        tree = index.tree
        nodes = tree.get("dict") if isinstance(tree, dict) else None
        if not isinstance(nodes, dict) or stored.key not in nodes:
            raise ManifestError(f"{name}: {record.key} does not hold {stored.key[:200]!r}")
        table = parse_table(index.table, index.raw_size)
        arrays: dict[int, Any] = {}

        def leaf(number: int) -> Any:
            if number not in arrays:
                arrays[number] = self._leaf(record, index, table, number)
            return arrays[number]

        return build(nodes[stored.key], len(table), leaf)

    def _leaf(self, record: ShardRecord, index: ShardIndex, table: Table, number: int) -> Any:
        start, stop = table.range(number)
        memory = bytearray(stop - start)
        if memory:
            target = torch.frombuffer(memory, dtype=torch.uint8)
            ranges = list(wanted([stop - start], [0], [stop - start], 1, start, target.data_ptr()))
            self._reader.pieces(record, index, ranges)
        selection = Selection({"leaf": number}, [Piece(number, start, stop, 0)], stop - start)
        return restore_named(table, selection, memory)["leaf"]


class _Landing:
    """Where one item of a plan goes: the planner's tensor itself, or memory from which it is copied on."""

    def __init__(self, item: ReadItem, planner: LoadPlanner) -> None:
        self.item = item
        self._target = planner.resolve_tensor(item).detach()
        self._memory: torch.Tensor | None = None
        if self._target.size() != item.lengths:
            raise S3dlioError(
                f"{item.storage_index.fqn}: the plan reads {tuple(item.lengths)}, the target has "
                f"{tuple(self._target.size())}"
            )

    def address(self, dtype: torch.dtype) -> int:
        """Where bytes of ``dtype`` land end to end."""
        target = self._target
        plain = target.is_cpu and target.is_contiguous() and not (target.is_conj() or target.is_neg())
        if plain and target.dtype == dtype:
            return target.data_ptr()
        self._memory = torch.empty(target.size(), dtype=dtype)
        return self._memory.data_ptr()

    def finish(self, planner: LoadPlanner) -> None:
        """Copy on, as torch converts, and tell the planner."""
        if self._memory is not None:
            self._target.copy_(self._memory)
        planner.commit_tensor(self.item, self._target)


def _saved_sizes(what: TensorStorageMetadata, index: MetadataIndex) -> torch.Size:
    """Shape of the saved chunk at the index's offset."""
    hint = index.index
    if hint is not None and hint < len(what.chunks) and what.chunks[hint].offsets == index.offset:
        return what.chunks[hint].sizes
    for chunk in what.chunks:
        if index.offset is None or chunk.offsets == index.offset:
            return chunk.sizes
    raise ManifestError(f"{index.fqn}: the checkpoint has no chunk at {index.offset}")


def _no_leaf(_: int) -> Any:
    raise AssertionError("a tree of no leaves has none")
