"""Staging for ``async_save``: a rank's state straight into the arena, before anybody knows where it will be stored.

Owns the staged state that DCP plans with: the same containers, with tensors that have a shape and no memory (device
``meta``) and objects that are names only, so that whatever would read them late fails instead of reading what training
has changed since. The bytes lie in a ``Capture``. When DCP calls ``stage`` neither the place nor the rank nor the plan
is known (replicas are shared out among the ranks afterwards), so all that this rank has is copied, and what the plan
gives to others is squeezed out before the slots go to the workers.

A state that does not fit the arena is copied elsewhere (``host_copies``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor, Partial

from ...engine.capture import Capture, Moves
from ...engine.errors import S3dlioError, UnsupportedError
from ...tensors import Layout
from ...writer import ShardWriter
from .host_copies import NotOurs
from .objects import StagedObject, typed_or_pickled
from .packing import Packed, pack

ARENA, SHARED = "arena", "shared"


class Staged:
    """A state's bytes in a capture, and their layout; the staged tensors know it by their storages."""

    def __init__(self, packed: Packed, capture: Capture) -> None:
        self.packed = packed
        self._capture: Capture | None = capture

    def squeeze(self, moved: Moves, layout: Layout) -> None:
        """Leave out what the plan gave to other ranks."""
        self._held().squeeze(moved, layout.header, layout.total)

    def take(self) -> Capture:
        """The capture, which can be stored once only."""
        capture = self._held()
        self._capture = None
        return capture

    def _held(self) -> Capture:
        if self._capture is None:
            raise S3dlioError("this staged state was stored or given up already: stage the state again")
        return self._capture

    def release(self) -> None:
        """Give the memory back, unless it was taken."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


def staged_tensor(tensor: torch.Tensor) -> tuple[Staged, str] | None:
    """The staged state that a planner's tensor stands for, and its key there; ``None`` for any other tensor."""
    if not tensor.is_meta:
        return None
    return getattr(tensor.untyped_storage(), "_s3dlio_staged", None)


def stage_in_arena(state: Mapping[str, Any], writer: ShardWriter, *, pickle: bool) -> tuple[dict[str, Any], Staged]:
    """Copy ``state`` into the arena; the state to plan with, and its bytes.

    ``UnsupportedError`` names what cannot be stored; ``MemoryLimitError`` if the arena cannot hold it.
    """
    walk = _Walk(pickle=pickle)
    walk.container(state, ())
    packed = pack(walk.objects, walk.tensors)
    capture = writer.capture(packed.layout.total)
    capture.fill(packed.source())
    staged = Staged(packed.without_arrays(), capture)
    return walk.rebuilt(state, staged), staged


class _Walk:
    """Reads the leaves that DCP will see, under the names that its planner will give them."""

    def __init__(self, *, pickle: bool) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.objects: dict[str, Any] = {}
        self._kinds: dict[str, str] = {}
        self._pickle = pickle

    def container(self, value: Any, path: tuple[str, ...]) -> None:
        """Take every leaf below ``value``."""
        for step, child in _children(value):
            self._child(child, (*path, step))

    def _child(self, value: Any, path: tuple[str, ...]) -> None:
        name = ".".join(path)
        if isinstance(value, (Mapping, list)) and _is_walked(value):
            self.container(value, path)
            return
        if name in self.tensors or name in self.objects:
            raise UnsupportedError(f"two items of the state are both named {name}")
        if isinstance(value, torch.Tensor):
            self.tensors[name] = _local(value, name)
        else:
            self._kinds[name], self.objects[name] = typed_or_pickled(value, pickle=self._pickle)

    def rebuilt(self, value: Any, staged: Staged, path: tuple[str, ...] = ()) -> Any:
        """The same containers around what stands for the leaves."""
        made = [(step, self._stand_in(child, staged, (*path, step))) for step, child in _children(value)]
        if isinstance(value, Mapping):
            return dict(zip(value, (child for _, child in made), strict=True))
        return [child for _, child in made]

    def _stand_in(self, value: Any, staged: Staged, path: tuple[str, ...]) -> Any:
        name = ".".join(path)
        if isinstance(value, (Mapping, list)) and _is_walked(value):
            return self.rebuilt(value, staged, path)
        if isinstance(value, torch.Tensor):
            return _hollow(value, staged, name)
        return StagedObject(staged, name, self._kinds[name])


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    return [(str(index), child) for index, child in enumerate(value)]


def _is_walked(value: Any) -> bool:
    """Whether DCP's planner goes into a container: a list only if tensors or mappings are somewhere in it."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list) and any(
        isinstance(child, torch.Tensor) or (isinstance(child, (Mapping, list)) and _is_walked(child)) for child in value
    )


def _local(value: torch.Tensor, name: str) -> torch.Tensor:
    """This rank's part of a tensor."""
    if isinstance(value, DTensor):
        if any(isinstance(placement, Partial) for placement in value.placements):
            raise UnsupportedError(
                f"{name}: a DTensor with Partial placements {value.placements} is no value yet: redistribute it first"
            )
        value = value.to_local().detach()
    if isinstance(value, ShardedTensor):
        raise NotOurs(name)
    return value.detach()


def _hollow(value: torch.Tensor, staged: Staged, name: str) -> torch.Tensor:
    """What stands for ``value`` in a plan: all of it but its memory."""
    local = value.to_local() if isinstance(value, DTensor) else value
    made = torch.empty(local.shape, dtype=local.dtype, device="meta")
    made.untyped_storage()._s3dlio_staged = (staged, name)  # type: ignore[attr-defined]
    if isinstance(value, DTensor):
        return DTensor.from_local(
            made, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )
    return made
