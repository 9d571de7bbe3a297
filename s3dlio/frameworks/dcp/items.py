"""From a final save plan to the shard of this rank: its items, packed, and where each lies.

Owns the choice between what was staged before the plan was made and what is read from the state now. Called by
``writer``; ``packing`` lays out, ``staging`` has copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

from ...engine.capture import Capture
from ...engine.errors import UnsupportedError
from .objects import OBJECT, StagedObject, inline, object_of
from .packing import Packed, moves, pack, subset
from .staging import Staged, staged_tensor
from .stored import TENSOR, StoredItem

_KEEP = "pass async_stager=BlockingAsyncStager() to async_save, or leave the planner's resolve_data as it is"


@dataclass(frozen=True, slots=True)
class RankShard:
    """What this rank stores: items ``packed``, already in ``capture`` if there is one; ``kinds`` and ``keys`` by
    item."""

    packed: Packed
    capture: Capture | None
    found: Sequence[tuple[MetadataIndex, str, str]]

    def items(self, rank: int) -> list[tuple[MetadataIndex, StoredItem]]:
        """Where each item lies in the shard of ``rank``."""
        stored = []
        for index, kind, key in self.found:
            if kind == TENSOR:
                item = StoredItem(rank, kind, key, *self.packed.place(key))
            else:
                node = inline(self.packed.nodes[key]) if kind == OBJECT else None
                item = StoredItem(rank, kind, key, node=node)
            stored.append((index, item))
        return stored


def shard_of(plan: SavePlan, planner: SavePlanner, *, pickle: bool) -> RankShard:
    """The shard of a final plan. ``UnsupportedError`` names the item that cannot be stored."""
    names = _Names()
    tensors: dict[str, torch.Tensor] = {}
    objects: dict[str, Any] = {}
    found: list[tuple[MetadataIndex, str, str]] = []
    for item in plan.items:
        key = names.of(item.index)
        if item.type is WriteItemType.BYTE_IO:
            kind, objects[key] = object_of(planner, item, pickle=pickle)
        else:
            kind, tensors[key] = TENSOR, _tensor_of(planner, item)
        found.append((item.index, kind, key))
    staged = _staged(tensors, objects)
    if staged is None:
        return RankShard(pack(objects, tensors), None, found)
    try:
        return _from_staged(staged, tensors, objects, found)
    finally:
        staged.release()  # of a failed save: whoever keeps the error must not keep the memory


class _Names:
    """A name in the tree for each item: its FQN, with the offsets behind it where a rank holds several shards."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, index: MetadataIndex) -> str:
        name = index.fqn
        if name in self._taken and index.offset is not None:
            name = f"{name}@{','.join(map(str, index.offset))}"
        while name in self._taken:
            name += "~"
        self._taken.add(name)
        return name


def _tensor_of(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    """The item's tensor, which must be what the plan says: loads go by the plan."""
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, torch.Tensor) or item.tensor_data is None:
        raise UnsupportedError(f"{item.index.fqn}: the planner gives {type(tensor).__name__}, the plan has a tensor")
    plain = tensor.detach()
    if plain.is_meta and staged_tensor(plain) is None:
        raise UnsupportedError(
            f"{item.index.fqn} is a meta tensor, without memory: materialise it. If this state was staged by the "
            "writer: a planner that changes tensors needs async_stager=BlockingAsyncStager(), and "
            "AsyncCheckpointerType.PROCESS a writer with staging='shared'"
        )
    planned = item.tensor_data
    if plain.dtype != planned.properties.dtype or plain.shape != planned.chunk.sizes:
        raise UnsupportedError(
            f"{item.index.fqn}: the planner gives {plain.dtype} {tuple(plain.shape)}, its plan says "
            f"{planned.properties.dtype} {tuple(planned.chunk.sizes)}"
        )
    return plain


def _staged(tensors: dict[str, torch.Tensor], objects: dict[str, Any]) -> Staged | None:
    """The staged state that these items come from; ``None`` if they were not staged."""
    for tensor in tensors.values():
        handle = staged_tensor(tensor)
        if handle is not None:
            return handle[0]
    for value in objects.values():
        if isinstance(value, StagedObject):
            staged: Staged = value.staged
            return staged
    return None


def _from_staged(
    staged: Staged,
    tensors: dict[str, torch.Tensor],
    objects: dict[str, Any],
    found: Sequence[tuple[MetadataIndex, str, str]],
) -> RankShard:
    """Everything must have been staged, as it was: the state itself has changed since."""
    keys: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for name, tensor in tensors.items():
        handle = staged_tensor(tensor)
        if handle is None or handle[0] is not staged:
            raise UnsupportedError(f"{name}: the planner gives another tensor than was staged: {_KEEP}")
        keys[name] = handle[1]
    for name, value in objects.items():
        if not isinstance(value, StagedObject) or value.staged is not staged:
            raise UnsupportedError(f"{name}: the planner gives another object than was staged: {_KEEP}")
        keys[name], kinds[name] = value.key, value.kind
    packed = subset(staged.packed, keys.values())
    if len(packed.nodes) < len(staged.packed.nodes):
        staged.squeeze(moves(staged.packed, packed), packed.layout)
    capture = staged.take()
    return RankShard(packed, capture, [(index, kinds.get(key, kind), keys[key]) for index, kind, key in found])
