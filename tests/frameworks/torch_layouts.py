"""States on meshes, the same in a world of any size, for the scripts of ``dcp_ranks`` that save them as one state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WHOLE: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "rows": ((1001, 30), torch.bfloat16),
    "few": ((3, 5), torch.float32),
    "none": ((0, 4), torch.float32),
    "grid": ((61, 23), torch.float64),
    "nested": ((37, 6), torch.float32),
    "columns": ((8, 41), torch.int32),
    "copies": ((50, 50), torch.float32),
    "float8": ((100, 11), torch.float8_e4m3fn),
    "param": ((16, 9), torch.float32),
}

Layout = tuple[tuple[int, ...], list[Placement]]

ON_FOUR: dict[str, Layout] = {
    "rows": ((4,), [Shard(0)]),
    "few": ((4,), [Shard(0)]),
    "none": ((4,), [Shard(0)]),
    "grid": ((2, 2), [Shard(0), Shard(1)]),
    "nested": ((2, 2), [Shard(0), Shard(0)]),
    "columns": ((2, 2), [Replicate(), Shard(1)]),
    "copies": ((4,), [Replicate()]),
    "float8": ((2, 2), [Shard(0), Replicate()]),
    "param": ((4,), [Shard(1)]),
}
ON_TWO: dict[str, Layout] = {
    "rows": ((2,), [Shard(1)]),
    "few": ((2,), [Shard(0)]),
    "none": ((2,), [Shard(1)]),
    "grid": ((2,), [Shard(0)]),
    "nested": ((2,), [Replicate()]),
    "columns": ((2,), [Shard(0)]),
    "copies": ((2,), [Shard(0)]),
    "float8": ((2,), [Shard(0)]),
    "param": ((2,), [Shard(0)]),
}


def whole(name: str) -> torch.Tensor:
    shape, dtype = WHOLE[name]
    chance = torch.Generator().manual_seed(sorted(WHOLE).index(name))
    if not dtype.is_floating_point:
        return torch.randint(-1000, 1000, shape, generator=chance, dtype=dtype)
    return torch.randn(shape, generator=chance).to(dtype)


def local_of(tensor: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> torch.Tensor:
    """What of a whole tensor this rank has, cut as torch says that ``Shard`` cuts."""
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            pieces = tensor.chunk(mesh.size(axis), placement.dim) if tensor.shape[placement.dim] else []
            here = coordinate[axis]
            tensor = pieces[here] if here < len(pieces) else tensor.narrow(placement.dim, 0, 0)
    return tensor.contiguous()


def laid_out(layouts: dict[str, Layout], *, zeros: bool = False) -> dict[str, Any]:
    """Every whole tensor on its mesh."""
    state: dict[str, Any] = {}
    for name, (mesh_shape, placements) in layouts.items():
        mesh = init_device_mesh("cpu", mesh_shape)
        tensor = whole(name)
        local = local_of(tensor, mesh, placements).clone()
        if zeros:
            local.view(torch.uint8).zero_()
        state[name] = DTensor.from_local(
            local, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
    state["param"] = torch.nn.Parameter(state["param"])
    return state


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(13, 37), torch.nn.Tanh(), torch.nn.Linear(37, 5))


def trained(mesh: DeviceMesh, seed: int = 0) -> tuple[Any, torch.optim.Optimizer]:
    """A model sharded over ``mesh`` by FSDP2 (of two dimensions: HSDP) and its optimizer, after a step."""
    made = model()
    for layer in (made[0], made[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    return made, _stepped(made, seed)


def tensor_parallel(seed: int = 0) -> tuple[Any, torch.optim.Optimizer]:
    """The same, first cut by tensor parallelism; of four ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(12, 36), torch.nn.Tanh(), torch.nn.Linear(36, 8))
    parallelize_module(made, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(made, mesh=mesh["dp"])
    return made, _stepped(made, seed, 12)


def _stepped(made: Any, seed: int, width: int = 13) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01)
    chance = torch.Generator().manual_seed(seed)
    made(torch.randn(6, width, generator=chance)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def state_of(made: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model": made.state_dict(), "optim": optimizer.state_dict()}


def gathered(tree: Any) -> Any:
    """The same with whole tensors; every rank must call."""
    if isinstance(tree, dict):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gathered(value) for value in tree]
    return tree.full_tensor().detach().clone() if isinstance(tree, DTensor) else tree


def agree(found: Any, expected: Any, path: str = "state") -> None:
    """Equal bit for bit, whatever of it is a DTensor or a parameter."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key in expected:
            agree(found[key], expected[key], f"{path}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            agree(one, other, f"{path}[{place}]")
    elif isinstance(expected, torch.Tensor):
        if isinstance(found, DTensor):
            assert found.shape == expected.shape, path
            found, expected = found.to_local(), local_of(expected, found.device_mesh, found.placements)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), path
        assert torch.equal(raw(found), raw(expected)), path
    else:
        assert found == expected, path


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
