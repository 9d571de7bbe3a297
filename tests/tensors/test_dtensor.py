"""What of a distributed tensor a rank holds, for every rank of a mesh, without the ranks: on a fake process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from s3dlio.engine.errors import ConfigError, UnsupportedError
from s3dlio.tensors import flatten, plan_into
from s3dlio.tensors.box import Box, Part, tiles
from s3dlio.tensors.dtensor import is_dtensor, local_part
from s3dlio.tensors.leaf import Refusal
from tests.tensors.shards import save


@contextmanager
def rank_of(rank: int, world: int) -> Iterator[None]:
    """This process is a rank of a job whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def alone() -> Iterator[None]:
    with rank_of(0, 1):
        yield


def cut(whole: torch.Tensor, mesh: DeviceMesh, placements: list[Any]) -> torch.Tensor:
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    for axis, placement in enumerate(placements):
        if not placement.is_replicate():
            shards, _ = placement._split_tensor(whole, mesh.size(axis), with_padding=False, contiguous=True)
            whole = shards[coordinate[axis]]
    return whole.contiguous()


def distributed(whole: torch.Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    return DTensor.from_local(
        cut(whole, mesh, placements), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(int(np.prod(shape)), dtype=torch.int64).reshape(shape)


def held(shape: tuple[int, ...], mesh_shape: tuple[int, ...], placements: list[Placement]) -> list[tuple[Any, Any]]:
    """Local tensor and part of every rank of a mesh."""
    world = int(np.prod(mesh_shape))
    found = []
    for rank in range(world):
        with rank_of(rank, world):
            mesh = DeviceMesh("cpu", torch.arange(world).reshape(mesh_shape))
            found.append(local_part(distributed(numbered(shape), mesh, placements)))
    return found


def check(shape: tuple[int, ...], mesh_shape: tuple[int, ...], placements: list[Placement]) -> None:
    """Each rank's box holds the elements of its local tensor, and all boxes make up the tensor."""
    found = held(shape, mesh_shape, placements)
    boxes = set()
    for local, part in found:
        assert part.shape == shape
        (box,) = part.boxes
        assert box.lies_in(shape)
        inside = tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))
        assert torch.equal(numbered(shape)[inside], local)
        if box.count:
            boxes.add(box)
    assert tiles(shape, boxes)


@pytest.mark.parametrize(
    ("shape", "mesh", "placements"),
    [
        ((7, 3), (3,), [Shard(0)]),
        ((7, 3), (3,), [Shard(1)]),
        ((2, 5), (4,), [Shard(0)]),
        ((0, 5), (2,), [Shard(0)]),
        ((0, 5), (2,), [Shard(1)]),
        ((9, 5), (2, 2), [Shard(0), Shard(1)]),
        ((9, 5), (2, 2), [Shard(0), Shard(0)]),
        ((9, 5), (2, 2), [Replicate(), Shard(1)]),
        ((9, 5), (2, 2), [Shard(1), Replicate()]),
        ((9, 5), (2, 1), [Shard(0), Shard(1)]),
        ((5,), (2, 3), [Shard(0), Shard(0)]),
        ((3, 4, 5), (2, 2), [Shard(2), Shard(1)]),
        ((16, 3), (2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
        ((16, 8), (2, 2), [_StridedShard(1, split_factor=2), Shard(1)]),
    ],
    ids=repr,
)
def test_what_each_rank_holds(shape: tuple[int, ...], mesh: tuple[int, ...], placements: list[Placement]) -> None:
    check(shape, mesh, placements)


@settings(max_examples=25)
@given(st.data())
def test_any_layout_of_shards(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3)))
    mesh = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    placements: list[Placement] = [
        data.draw(st.sampled_from([Replicate(), *(Shard(dim) for dim in range(len(shape)))])) for _ in mesh
    ]
    if any(side > 1 and not placement.is_replicate() for side, placement in zip(mesh, placements, strict=True)):
        check(shape, mesh, placements)
    else:
        assert all(
            part is None and torch.equal(local, numbered(shape)) for local, part in held(shape, mesh, placements)
        )


def test_what_all_hold_is_no_part() -> None:
    for local, part in held((4, 2), (3,), [Replicate()]):
        assert part is None
        assert torch.equal(local, numbered((4, 2)))


@pytest.mark.usefixtures("alone")
def test_on_a_mesh_of_one_it_is_a_plain_tensor() -> None:
    mesh = DeviceMesh("cpu", [0])
    tensor = distributed(torch.ones(3, 2), mesh, [Shard(0)])
    assert local_part(tensor)[1] is None
    saved = save({"w": tensor, "p": torch.nn.Parameter(distributed(torch.ones(3, 2), mesh, [Shard(0)]))})
    assert [spec.form for spec in saved.table.specs] == ["torch", "param"]
    assert saved.table.parts == {}


def test_whoever_is_outside_of_the_mesh_holds_nothing() -> None:
    with rank_of(2, 3):
        mesh = DeviceMesh("cpu", [0, 1])
        tensor = DTensor.from_local(
            torch.ones(0), mesh, [Shard(0)], run_check=False, shape=torch.Size([4, 2]), stride=(2, 1)
        )
        assert local_part(tensor)[1] == Part((4, 2), ())
        flat = flatten({"w": tensor})
        assert flat.leaves.parts == {0: Part((4, 2), ())}
        assert flat.leaves.specs[0].shape == (0,)


def test_rows_that_do_not_lie_together_are_refused() -> None:
    with rank_of(1, 2):
        mesh = DeviceMesh("cpu", [0, 1])
        tensor = distributed(torch.arange(8), mesh, [_StridedShard(0, split_factor=2)])
        with pytest.raises(Refusal, match="its rows here do not lie next to each other"):
            local_part(tensor)
        with pytest.raises(UnsupportedError, match=r"state\['a'\]\[0\]: its rows here do not"):
            flatten({"a": [tensor]})


@pytest.mark.usefixtures("alone")
def test_terms_of_a_sum_are_refused_with_their_path() -> None:
    summed = DTensor.from_local(torch.ones(3), DeviceMesh("cpu", [0]), [Partial()], run_check=False)
    with pytest.raises(UnsupportedError, match=r"state\['a'\]\['b'\]: its shards are terms of a sum that was not made"):
        flatten({"a": {"b": summed}})
    stored = save({"a": torch.ones(3)})
    with pytest.raises(ConfigError, match=r"state\['a'\]: its shards are terms of a sum"):
        plan_into(stored.tree, stored.table, {"a": summed})


def test_a_local_tensor_of_another_size_is_refused() -> None:
    with rank_of(0, 2):
        mesh = DeviceMesh("cpu", [0, 1])
        tensor = DTensor.from_local(
            torch.ones(5, 2), mesh, [Shard(0)], run_check=False, shape=torch.Size([4, 2]), stride=(2, 1)
        )
        with pytest.raises(Refusal, match=r"its local tensor is \[5, 2\] where .* of \[4, 2\] has \[2, 2\]"):
            local_part(tensor)


def test_ties_and_forms_of_shards() -> None:
    with rank_of(1, 2):
        mesh = DeviceMesh("cpu", [0, 1])
        tensor = distributed(torch.ones(6, 4), mesh, [Shard(0)])
        half = distributed(torch.ones(6, 4), mesh, [Shard(1)])
        flat = flatten({"a": tensor, "again": tensor, "b": half, "p": torch.nn.Parameter(half.clone())})
        assert flat.leaves.names == ["a", "b", "p"]
        assert flat.aliases == {"again": 0}
        assert flat.leaves.parts == {
            0: Part((6, 4), (Box((3, 0), (3, 4)),)),
            1: Part((6, 4), (Box((0, 2), (6, 2)),)),
            2: Part((6, 4), (Box((0, 2), (6, 2)),)),
        }
        assert [spec.form for spec in flat.leaves.specs] == ["torch", "torch", "param"]


def test_targets_take_their_box() -> None:
    stored = save({"w": torch.arange(24.0).reshape(6, 4), "all": torch.ones(3), "out": torch.ones(2)})
    with rank_of(1, 3):
        mesh, pair = DeviceMesh("cpu", [0, 1, 2]), DeviceMesh("cpu", [0, 2])
        target = {
            "w": distributed(torch.zeros(6, 4), mesh, [Shard(0)]),
            "all": distributed(torch.zeros(3), mesh, [Replicate()]),
            "out": DTensor.from_local(
                torch.ones(0), pair, [Shard(0)], run_check=False, shape=torch.Size([2]), stride=(1,)
            ),
        }
        plan = plan_into(stored.tree, stored.table, target)
        assert plan.boxes == {0: Box((2, 0), (2, 4)), 2: Box((0,), (0,))}
        assert [each.nbytes for each in plan.targets] == [32, 12, 0]
        assert plan.finish()["w"] is target["w"]
        with pytest.raises(ConfigError) as caught:
            plan_into(stored.tree, stored.table, {**target, "w": distributed(torch.zeros(6, 5), mesh, [Shard(0)])})
        assert "state['w']: stored float32 [6, 4], target float32 [6, 5]" in str(caught.value)


def test_plain_tensors_are_none() -> None:
    assert not is_dtensor(torch.ones(2))
    assert not is_dtensor(np.ones(2))
