from __future__ import annotations

import numpy as np
import torch

from s3dlio.tensors import flatten, restore, restore_named, select
from tests.tensors.shards import again, raw, save


def test_tied_weights_are_stored_once_and_come_back_as_one_object() -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    saved = save({"embed": {"weight": weight}, "head": {"weight": weight}, "other": weight.detach().clone()})
    assert saved.table.names == ["embed.weight", "other"]
    assert saved.table.aliases == {"head.weight": 0}
    back = restore(saved.tree, saved.table, saved.data)
    assert back["embed"]["weight"] is back["head"]["weight"]
    assert back["other"] is not back["head"]["weight"]


def test_a_state_dict_ties_what_the_module_ties() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    module["b"].weight = module["a"].weight
    back = again(module.state_dict())
    assert back["a.weight"] is back["b.weight"]
    assert back["a.bias"] is not back["b.bias"]


def test_the_same_numpy_memory_is_tied() -> None:
    array = np.arange(12).reshape(3, 4)
    back = again([array, array.view(), array[:], array[:, ::2], array[:, ::2]])
    assert back[0] is back[1]
    assert back[0] is back[2]
    assert back[3] is back[4]
    assert back[3].tolist() == array[:, ::2].tolist()


def test_views_that_only_overlap_are_stored_apart() -> None:
    base = torch.arange(10)
    views = [base, base[:5], base[5:], base.view(2, 5), base.view(torch.float64), base[::2], base[:5].view(1, 5)]
    flat = flatten(views)
    assert flat.tree == [0, 1, 2, 3, 4, 5, 6]
    for view, back in zip(views, again(views), strict=True):
        assert raw(view) == raw(back)


def test_a_parameter_and_its_plain_tensor_are_stored_apart() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    back = again([parameter, parameter.detach(), parameter])
    assert type(back[0]) is torch.nn.Parameter
    assert type(back[1]) is torch.Tensor
    assert back[2] is back[0]


def test_conjugated_views_are_not_tied_to_what_they_conjugate() -> None:
    value = torch.tensor([1 + 2j])
    back = again([value, value.conj(), value.conj()])
    assert back[0].tolist() == [1 + 2j]
    assert back[1].tolist() == [1 - 2j]
    assert back[1] is back[2]


def test_empty_arrays_are_tied_by_identity_only() -> None:
    tensor, array = torch.zeros(0), np.zeros(0)
    back = again([tensor, tensor, torch.zeros(0), array, array, np.zeros(0)])
    assert back[0] is back[1]
    assert back[0] is not back[2]
    assert back[3] is back[4]
    assert back[3] is not back[5]


def test_long_texts_that_occur_twice_are_stored_once() -> None:
    payload, text = b"x" * 10_000, "y" * 100_000
    saved = save([payload, text, payload, text])
    assert len(saved.table) == 2
    assert restore(saved.tree, saved.table, saved.data) == [payload, text, payload, text]


def test_a_tied_leaf_is_found_under_each_name() -> None:
    weight = torch.ones(2)
    saved = save({"a": weight, "b": weight, "c": torch.zeros(2)})
    selection = select(saved.table, ["a", "b"])
    assert len(selection.pieces) == 1
    (piece,) = selection.pieces
    named = restore_named(saved.table, selection, saved.data[piece.start : piece.stop] + bytes(56))
    assert set(named) == {"a", "b"}
    assert named["a"] is named["b"]
