"""torch's distributed tensors: what of one this rank holds.

Owns which box of the whole a rank's local tensor is, and which placements cannot be stored. Imports nothing of torch
unless a program has made such a tensor. Called by ``torch_leaf`` while a state is walked, and by ``into`` for targets.
"""

from __future__ import annotations

import sys
from typing import Any

from .box import Box, Part
from .leaf import Refusal

Tensor = Any


def dtensor_type() -> Any:
    """The class of distributed tensors; ``None`` where this process has none of them."""
    module = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)


def is_dtensor(value: object) -> bool:
    """Whether ``value`` is a distributed tensor; never imports torch."""
    kind = dtensor_type()
    return kind is not None and isinstance(value, kind)


def local_part(tensor: Tensor) -> tuple[Tensor, Part | None]:
    """The local tensor, and which part of the whole it is: ``None`` where every rank of its mesh holds all of it.

    ``Refusal`` for placements whose elements are not the tensor's own (``Partial``) or not one box of it.
    """
    local = tensor.to_local()
    local = local.wait() if hasattr(local, "wait") else local  # of a collective that has not ended
    mesh, placements, shape = tensor.device_mesh, tensor.placements, tuple(tensor.shape)
    if any(placement.is_partial() for placement in placements):
        raise Refusal(f"its shards are terms of a sum that was not made yet ({placements}); redistribute it first")
    sharded = [dim for dim, placement in enumerate(placements) if mesh.size(dim) > 1 and not placement.is_replicate()]
    if not sharded:
        return local, None
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return local, Part(shape, ())
    box = _box(shape, mesh, placements, coordinate)
    if tuple(local.shape) != box.sizes:
        raise Refusal(
            f"its local tensor is {list(local.shape)} where {placements} of {list(shape)} has {list(box.sizes)}"
        )
    return local, Part(shape, (box,))


def _box(shape: tuple[int, ...], mesh: Any, placements: Any, coordinate: Any) -> Box:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(type(placement).__name__ == "_StridedShard" for placement in placements):
        return _strided(shape, mesh, placements, coordinate)
    sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    # An empty shard may be told to lie behind the end.
    return Box(tuple(min(at, side) for at, side in zip(offsets, shape, strict=True)), tuple(sizes))


def _strided(shape: tuple[int, ...], mesh: Any, placements: Any, coordinate: Any) -> Box:
    """Shards taken out of order, as FSDP over tensor parallelism does: which rows are here is asked of torch."""
    import torch

    offsets, sizes = [0] * len(shape), list(shape)
    for dim in {placement.dim for placement in placements if not placement.is_replicate()}:
        rows: Any = torch.arange(shape[dim]).reshape((1,) * dim + (-1,))
        for axis, placement in enumerate(placements):
            if not placement.is_replicate() and placement.dim == dim:
                shards, _ = placement._split_tensor(rows, mesh.size(axis), with_padding=False, contiguous=False)
                rows = shards[coordinate[axis]]
        rows = rows.reshape(-1)
        first = int(rows[0]) if len(rows) else 0
        if not torch.equal(rows, torch.arange(first, first + len(rows))):
            raise Refusal(f"its rows here do not lie next to each other ({placements}); redistribute it first")
        offsets[dim], sizes[dim] = first, len(rows)
    return Box(tuple(offsets), tuple(sizes))
