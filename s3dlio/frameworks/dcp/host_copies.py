"""Copies of a state in host memory: what ``async_save`` stages where the arena cannot serve.

Owns the copying of containers and tensors into new memory, shared with other processes if that is asked for. Called by
``writer`` for a state that does not fit the arena, and for ``AsyncCheckpointerType.PROCESS``, whose process has an
arena of its own. Tensors that only torch can copy (``ShardedTensor``) are left to its stager. No others are: the newer
one of torch 2.13 forgets the conjugation of a lazily conjugated tensor, and fails on an empty one in shared memory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor


class NotOurs(Exception):
    """The state holds tensors that only torch can copy."""


def copied(state: Any, *, shared: bool) -> Any:
    """A copy in new memory each time: an earlier one may be being stored."""
    try:
        return _Copying(shared=shared).of(state)
    except NotOurs:
        return BlockingAsyncStager().stage(state)


class _Copying:
    """One copy of a state; a tensor that occurs twice is copied once."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._made: dict[Any, torch.Tensor] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, DTensor):
            local = self._tensor(value.to_local())
            return DTensor.from_local(
                local, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
            )
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            return {key: self.of(child) for key, child in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.of(child) for child in value)
        return copy.deepcopy(value)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        if isinstance(plain, ShardedTensor):
            raise NotOurs
        if type(plain) is not torch.Tensor or plain.layout is not torch.strided or plain.is_meta or plain.is_quantized:
            return copy.deepcopy(plain)  # the save refuses it, by its name
        place = (plain.data_ptr(), plain.shape, plain.stride(), plain.dtype, plain.is_conj(), plain.is_neg())
        if not plain.numel() or place not in self._made:
            self._made[place] = self._room(plain.shape, plain.dtype).copy_(plain)
        return self._made[place]

    def _room(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        size = shape.numel() * dtype.itemsize
        if not self._shared or not size:
            return torch.empty(shape, dtype=dtype)
        storage: Any = torch.UntypedStorage
        return torch.empty(0, dtype=dtype).set_(storage._new_shared(size, device="cpu")).view(shape)
