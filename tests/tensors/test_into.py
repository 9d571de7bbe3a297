from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from s3dlio.engine.errors import ConfigError, ManifestError
from s3dlio.tensors import plan_into
from tests.tensors.shards import Saved, address_of, same, save


def load(saved: Saved, target: object, step: int = 7) -> Any:
    """Fill a target in pieces of ``step`` bytes."""
    into = plan_into(saved.tree, saved.table, target)
    for one in into.targets:
        begin, end = saved.table.range(one.index)
        assert end - begin == one.nbytes
        for start in range(0, one.nbytes, step):
            stop = min(start + step, one.nbytes)
            one.copy_from(address_of(saved.data) + begin + start, start, stop)
    return into.finish()


def state() -> dict[Any, Any]:
    return {
        "model": OrderedDict(weight=torch.arange(12.0).reshape(3, 4), bias=torch.ones(3, dtype=torch.bfloat16)),
        "list": [np.arange(5), (torch.zeros(2, 0), 3)],
        "step": 17,
        1: np.arange(4, dtype=">i4"),
        "note": b"n" * 5000,
        "text": "t" * 70_000,
        "nothing": None,
    }


def zeroed(value: Any) -> Any:
    made = copy.deepcopy(value)
    for array in (*made["model"].values(), made["list"][0], made[1]):
        array[...] = 0
    made["step"], made["note"], made["text"] = 0, None, ""
    return made


def test_existing_arrays_are_filled_and_the_rest_is_taken() -> None:
    target = zeroed(state())
    back = load(save(state()), target)
    same(back, state())
    assert back["model"]["weight"] is target["model"]["weight"]
    assert back["list"][0] is target["list"][0]
    assert back["list"][1][0] is target["list"][1][0]
    assert back[1] is target[1]
    assert target["step"] == 0


def test_strided_targets_and_parameters_are_filled() -> None:
    wanted: dict[str, Any] = {
        "a": torch.arange(12.0).reshape(3, 4),
        "b": np.arange(12).reshape(3, 4),
        "c": torch.ones(3),
    }
    parameter = torch.nn.Parameter(torch.zeros(3))
    target: dict[str, Any] = {"a": torch.zeros(4, 3).T, "b": np.zeros((3, 8), int)[:, ::2], "c": parameter}
    back = load(save(wanted), target)
    assert torch.equal(target["a"], wanted["a"])
    assert np.array_equal(target["b"], wanted["b"])
    assert back["c"] is parameter
    assert parameter.tolist() == [1, 1, 1]
    assert parameter.requires_grad


def test_a_numpy_array_may_take_a_tensor_and_the_reverse() -> None:
    target: dict[str, Any] = {"a": np.zeros(3, "f4"), "b": torch.zeros(3, dtype=torch.int64)}
    load(save({"a": torch.arange(3.0), "b": np.arange(3)}), target)
    assert target["a"].tolist() == [0, 1, 2]
    assert target["b"].tolist() == [0, 1, 2]


def test_a_module_is_filled_through_its_state_dict() -> None:
    source, module = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    source(torch.arange(12.0).reshape(4, 3))
    back = load(save({"model": source.state_dict(), "epoch": 4}), {"model": module.state_dict()})
    same(dict(module.state_dict()), dict(source.state_dict()))
    assert back["epoch"] == 4
    assert back["model"]._metadata == source.state_dict()._metadata  # type: ignore[attr-defined]


def test_tied_leaves_fill_every_target_once() -> None:
    weight = torch.arange(4.0)
    saved = save({"a": weight, "b": weight})
    apart = {"a": torch.zeros(4), "b": torch.zeros(4)}
    load(saved, apart)
    assert apart["a"].tolist() == apart["b"].tolist() == [0, 1, 2, 3]
    one = torch.zeros(4)
    into = plan_into(saved.tree, saved.table, {"a": one, "b": one})
    assert len(into.targets) == 1


def test_all_problems_are_listed_and_nothing_is_written() -> None:
    saved = save(
        {
            "shape": np.ones(3), "dtype": np.ones(3), "missing": np.ones(3), "scalar": 5, "array": np.ones(3),
            "kind": [np.ones(3)], "frozen": np.ones(3), "wide": torch.ones(3), "one": np.ones(2), "two": np.ones(2),
            "length": [np.ones(1), np.ones(2)], "sub": torch.ones(2), "meta": torch.ones(2), "fine": np.ones(2),
        }
    )  # fmt: skip
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    shared, fine = np.zeros(2), np.zeros(2)
    target = {
        "shape": np.zeros(4), "dtype": np.zeros(3, "f4"), "scalar": np.zeros(1), "array": 1.0, "extra": np.zeros(1),
        "kind": {"a": np.zeros(3)}, "frozen": frozen, "wide": torch.zeros(1).expand(3), "one": shared, "two": shared,
        "length": [np.zeros(1)], "sub": torch.zeros(2).to_sparse(), "meta": torch.zeros(2, device="meta"), "fine": fine,
        "late": 5,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        plan_into(saved.tree, saved.table, target)
    lines = str(caught.value).splitlines()
    assert "nothing was written" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "state['shape']: stored float64 [3], target float64 [4]",
        "state['dtype']: stored float64 [3], target float32 [3]",
        "state['missing']: missing in the target",
        "state['scalar']: the checkpoint holds no array here, the target a ndarray",
        "state['array']: the checkpoint holds an array here, the target a float",
        "state['kind']: stored a list, target a dict",
        "state['frozen']: it is read-only",
        "state['wide']: it is expanded: several of its elements share memory",
        "state['two']: shares its memory with state['one'], but they were stored apart",
        "state['length'][1]: missing in the target",
        "state['sub']: a sparse or nested tensor cannot be loaded in place",
        "state['meta']: it is a meta tensor, without memory",
        "state['extra']: not in the checkpoint",
        "state['late']: not in the checkpoint",
    ]
    assert fine.tolist() == [0, 0]


def test_a_list_of_problems_is_bounded() -> None:
    saved = save({str(index): np.zeros(1) for index in range(1500)})
    with pytest.raises(ConfigError, match="and 500 more"):
        plan_into(saved.tree, saved.table, {})


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_and_subclasses_are_refused() -> None:
    sparse = torch.eye(2).to_sparse()
    saved = save({"a": sparse})
    with pytest.raises(ConfigError, match=r"state\['a'\]: a sparse tensor cannot be loaded in place"):
        plan_into(saved.tree, saved.table, {"a": sparse})

    class Sub(torch.Tensor):
        pass

    saved = save({"a": torch.ones(2)})
    with pytest.raises(ConfigError, match="a tensor subclass"):
        plan_into(saved.tree, saved.table, {"a": torch.zeros(2).as_subclass(Sub)})
    strided = np.lib.stride_tricks.as_strided(np.zeros(1), (3,), (0,))
    with pytest.raises(ConfigError, match="expanded"):
        plan_into(0, save(np.ones(3)).table, strided)
    with pytest.raises(ConfigError, match="holds Python objects"):
        plan_into(0, save(np.ones(3)).table, np.array([None] * 3))


def test_targets_that_contain_themselves_are_refused() -> None:
    saved = save({"a": 1})
    target: dict[str, Any] = {"a": []}
    target["a"].append(target)
    with pytest.raises(ConfigError, match="contains itself"):
        plan_into(saved.tree, saved.table, target)


def test_hostile_trees_are_refused() -> None:
    saved = save([np.ones(1)])
    for tree in ([{"dict": 5}], {"items": [1]}, {"tuple": 5}, 7, {"ordered": {"a": 0}, "metadata": 0}):
        with pytest.raises(ManifestError, match="tree: "):
            plan_into(tree, saved.table, {"a": np.zeros(1)})
    node: Any = 0
    for _ in range(500):
        node = [node]
    with pytest.raises((ConfigError, ManifestError), match="more than 64 levels"):
        plan_into(node, saved.table, node)


def test_a_text_that_is_no_text_is_refused() -> None:
    saved = save(["x" * 70_000])
    into = plan_into(saved.tree, saved.table, [""])
    bad = bytearray(b"\xff" * 70_000)
    into.targets[0].copy_from(address_of(bad), 0, 70_000)
    assert into.targets[0].address() is not None
    with pytest.raises(ManifestError, match="not UTF-8"):
        into.finish()
