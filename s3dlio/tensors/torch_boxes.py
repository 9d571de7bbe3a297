"""Torch tensors as boxes, for copies between them and raw memory that are more than a move of bytes.

Owns the views that such copies need. Called by ``torch_leaf`` for tensors on a host and by ``cuda_copies``. Imports no
torch: who has a tensor has it.
"""

from __future__ import annotations

import sys
from typing import Any

from ..engine.source import move, view
from .copying import Index

Tensor = Any

CARRIERS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64", 16: "complex128"}
"""A dtype of each width whose values every copy leaves as they are."""


class TensorBoxes:
    """A tensor as boxes: strided, on a device, or lazily conjugated or negated (torch resolves it as it copies)."""

    def __init__(self, tensor: Tensor) -> None:
        torch = sys.modules["torch"]
        self._torch = torch
        self.itemsize: int = tensor.element_size()
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        plain = tensor.detach()
        if not (plain.is_conj() or plain.is_neg()):
            plain = plain.view(getattr(torch, CARRIERS[self.itemsize]))
        self._tensor = plain

    def get(self, index: Index, address: int, nbytes: int) -> None:
        box = self._tensor[index]
        if address % self.itemsize:
            aligned = self._torch.empty(box.shape, dtype=box.dtype)
            aligned.copy_(box)
            move(address, aligned.data_ptr(), nbytes)
        else:
            self._memory(address, nbytes, box).copy_(box)

    def put(self, index: Index, address: int, nbytes: int) -> None:
        box = self._tensor[index]
        if address % self.itemsize:
            aligned = self._torch.empty(box.shape, dtype=box.dtype)
            move(aligned.data_ptr(), address, nbytes)
            box.copy_(aligned)
        else:
            box.copy_(self._memory(address, nbytes, box))

    def _memory(self, address: int, nbytes: int, box: Tensor) -> Tensor:
        return self._torch.frombuffer(view(address, nbytes), dtype=box.dtype).view(box.shape)


def byte_view(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor that is not lazy, in their order, as a tensor over the same memory."""
    return tensor.detach().view(-1).view(sys.modules["torch"].uint8)


def bytes_at(address: int, size: int) -> Tensor:
    """Raw memory, which the caller keeps alive, as a tensor; ``size`` is not 0."""
    torch: Any = sys.modules["torch"]
    return torch.frombuffer(view(address, size), dtype=torch.uint8)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's elements, in C order, are the bytes where it lies."""
    return bool(tensor.is_contiguous() and not (tensor.is_neg() or tensor.is_conj()))
