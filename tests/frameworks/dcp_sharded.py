"""Sharded states, the same in a world of any size, for the scripts of ``dcp_ranks``."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from tests.frameworks.dcp_states import bits

FULL: dict[str, tuple[tuple[int, ...], torch.dtype, Placement]] = {
    "rows": ((1001, 300), torch.float32, Shard(0)),
    "columns": ((64, 701), torch.float32, Shard(1)),
    "deep": ((5, 9, 14), torch.float64, Shard(2)),
    "half": ((513, 7), torch.bfloat16, Shard(0)),
    "float8": ((100, 11), torch.float8_e4m3fn, Shard(0)),
    "complex": ((31, 3), torch.complex64, Shard(0)),
    "few": ((1, 6), torch.float32, Shard(0)),  # some ranks have nothing of it
    "everywhere": ((50, 50), torch.float32, Replicate()),
}


def full(name: str) -> torch.Tensor:
    """A whole tensor of the state."""
    shape, dtype, _ = FULL[name]
    chance = torch.Generator().manual_seed(sorted(FULL).index(name))
    if dtype.is_complex:
        return torch.complex(torch.randn(shape, generator=chance), torch.randn(shape, generator=chance)).to(dtype)
    return torch.randn(shape, generator=chance).to(dtype)


def part(whole: torch.Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    """``whole`` as a DTensor, without talking to the other ranks."""
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, [placement])
    local = whole
    for dim, (length, at) in enumerate(zip(shape, offset, strict=True)):
        local = local.narrow(dim, min(at, whole.shape[dim]), length)
    return DTensor.from_local(
        local.contiguous(), mesh, [placement], run_check=False, shape=whole.shape, stride=whole.stride()
    )


def sharded(mesh: DeviceMesh, *, empty: bool = False) -> dict[str, Any]:
    """A state of DTensors, replicated tensors, tensors and objects of one rank alone, and objects of all."""
    rank = dist.get_rank()
    state: dict[str, Any] = {
        "model": {
            name: part(torch.zeros(full(name).shape).to(full(name).dtype) if empty else full(name), mesh, placement)
            for name, (_, _, placement) in FULL.items()
        },
        "plain": torch.zeros(700, 300) if empty else torch.arange(210_000.0).reshape(700, 300),
        "buffer": torch.zeros(3) if empty else torch.ones(3),
        "step": None if empty else 17,
        "groups": [{"lr": None if empty else 0.125, "betas": None if empty else (0.9, 0.95)}],
    }
    if rank < 2:
        state[f"own{rank}"] = torch.zeros(400_000) if empty else torch.full((400_000,), float(rank))
        state[f"seen{rank}"] = "" if empty else f"by {rank}"
    return state


def check(state: dict[str, Any], mesh: DeviceMesh) -> None:
    """The state is that of ``sharded``, in this world."""
    expected = sharded(mesh)
    for name, tensor in expected["model"].items():
        found = state["model"][name]
        assert found.placements == tensor.placements
        assert bits(found.to_local()) == bits(tensor.to_local()), name
    assert bits(state["plain"]) == bits(expected["plain"])
    assert bits(state["buffer"]) == bits(expected["buffer"])
    for name, value in expected.items():
        if name.startswith(("own", "seen")) and name in state:
            assert bits(state[name]) == bits(value) if isinstance(value, torch.Tensor) else state[name] == value
    assert state["step"] == 17
    assert state["groups"] == expected["groups"]


def clobber(state: dict[str, Any]) -> None:
    """Change every tensor, as training does."""
    for value in [*state["model"].values(), *(each for each in state.values() if isinstance(each, torch.Tensor))]:
        local = value.to_local() if isinstance(value, DTensor) else value
        local.view(torch.uint8).fill_(1) if local.numel() else None
