"""Helpers of these tests: a shard in memory, the way a save and a load would make it; comparison to the bit."""

from __future__ import annotations

import ctypes
import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from s3dlio.tensors import (
    Layout,
    Leaf,
    Leaves,
    ShardImage,
    Table,
    dump_json_pieces,
    dump_tree,
    flatten,
    parse_table,
    plan_layout,
    restore,
)


@dataclass(frozen=True, slots=True)
class Saved:
    tree: Any
    table: Table
    layout: Layout
    leaves: Leaves
    data: bytearray


def address_of(memory: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory)) if memory else 0


def image_of(leaf: Leaf) -> bytes:
    memory = bytearray(leaf.nbytes)
    leaf.copy_to(address_of(memory), 0, leaf.nbytes)
    return bytes(memory)


def save(state: object, **options: Any) -> Saved:
    flat = flatten(state)
    layout = plan_layout(flat, **options)
    data = bytearray(layout.total)
    ShardImage(flat.leaves, layout).copy_to(address_of(data), 0, layout.total)
    tree = json.loads(b"".join(dump_tree(flat.tree)))
    table = json.loads(b"".join(dump_json_pieces(layout.table)))
    return Saved(tree, parse_table(table, layout.total), layout, flat.leaves, data)


def again(state: object) -> Any:
    saved = save(state)
    return restore(saved.tree, saved.table, saved.data)


def raw(array: Any) -> bytes:
    """The bytes of an array in C order, whatever its values mean."""
    if isinstance(array, torch.Tensor):
        array = array.detach().resolve_conj().resolve_neg().contiguous().cpu()
        return bytes(array.reshape(-1).view(torch.uint8).numpy().tobytes()) if array.numel() else b""
    return bytes(array.tobytes())


def same(left: Any, right: Any) -> None:
    """Assert that two states are equal: types, order and bits."""
    assert type(left) is type(right), (left, right)
    if isinstance(left, dict):
        assert list(map(repr, left)) == list(map(repr, right))
        for one, other in zip(left, right, strict=True):
            same(one, other)
            same(left[one], right[other])
        if isinstance(left, OrderedDict):
            assert vars(left) == vars(right)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    elif isinstance(left, torch.Tensor):
        same_tensor(left, right)
    elif isinstance(left, np.ndarray | np.generic):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert raw(left) == raw(right)
    elif isinstance(left, float | complex):
        assert np.array(left).tobytes() == np.array(right).tobytes()
    else:
        assert left == right


def same_tensor(left: torch.Tensor, right: torch.Tensor) -> None:
    assert (left.dtype, left.shape, left.layout) == (right.dtype, right.shape, right.layout)
    assert left.requires_grad == right.requires_grad
    if left.layout is torch.strided:
        assert raw(left) == raw(right)
    elif left.layout is torch.sparse_coo:
        assert left.is_coalesced() == right.is_coalesced()
        same_tensor(left.detach()._indices(), right.detach()._indices())
        same_tensor(left.detach()._values(), right.detach()._values())
    else:
        assert torch.equal(left.detach().to_dense(), right.detach().to_dense())


def filled_numpy(dtype: Any, shape: tuple[int, ...], seed: int = 7) -> Any:
    """An array of random bits; booleans and texts keep to what is valid for them."""
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    random = np.random.default_rng(seed)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "U":
        return np.array(["".join(random.choice(list("aé😀"), 3)) for _ in range(size)], dtype).reshape(shape)
    return np.frombuffer(random.bytes(size * dtype.itemsize), dtype).copy().reshape(shape)


def filled_torch(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 7) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.from_numpy(filled_numpy(bool, shape, seed))
    size = math.prod(shape)
    raw_bytes = torch.from_numpy(filled_numpy(np.uint8, (max(1, size) * dtype.itemsize,), seed))
    return raw_bytes.view(dtype)[:size].reshape(shape)
