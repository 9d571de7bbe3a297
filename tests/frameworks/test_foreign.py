"""Objects in a checkpoint that no tree holds: a few by their values, the rest by pickle if it is allowed."""

from __future__ import annotations

import enum
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3dlio.engine.errors import ConfigError, ManifestError, UnsupportedError
from s3dlio.frameworks.foreign import OBJECTS, pack, unpack
from s3dlio.tensors import flatten


class Colour(enum.Enum):
    RED = 1


def there_and_back(state: dict[str, Any], *, allow_pickle: bool) -> dict[str, Any]:
    packed = pack(state, allow_pickle=allow_pickle)
    flatten(packed)  # the tree takes it
    return unpack(packed, allow_pickle=allow_pickle)


def test_a_state_of_arrays_and_plain_values_is_left_alone() -> None:
    state: dict[Any, Any] = {
        "a": torch.ones(2),
        "b": [1, None, ("x", 2.5)],
        "c": OrderedDict(k=np.float32(1)),
        3: torch.float16,
    }
    assert pack(state, allow_pickle=False) is state


@pytest.mark.parametrize(
    "value", [Counter({3: 2}), Path("/a/b"), {1, 2}, frozenset("x"), Namespace(rate=1.5, name="n")], ids=repr
)
def test_types_of_the_standard_library_need_no_pickle(value: object) -> None:
    state: dict[Any, Any] = {"list": [1, ("x", value)], "own": {"deep": value}, (1, "k"): value}
    found = there_and_back(state, allow_pickle=False)
    assert found == state
    assert type(found["list"][1][1]) is type(value)


def test_what_is_packed_is_not_changed() -> None:
    inner = OrderedDict(milestones=Counter({2: 1}))
    inner._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    state = {"inner": inner}
    found = there_and_back(state, allow_pickle=False)
    assert type(inner["milestones"]) is Counter
    assert found["inner"]._metadata == {"": {"version": 1}}
    assert found == state


def test_objects_are_refused_with_all_their_places() -> None:
    state = {"hparams": {"colour": Colour.RED}, "list": [1, print], "set": {Colour.RED}}
    with pytest.raises(UnsupportedError) as raised:
        pack(state, allow_pickle=False)
    for part in ("checkpoint['hparams']['colour']: ", "checkpoint['list'][1]: ", "checkpoint['set']: ", "pickle=True"):
        assert part in str(raised.value)


def test_objects_are_pickled_where_that_is_allowed() -> None:
    odd = {Colour.RED: torch.ones(2)}
    found = there_and_back({"colour": Colour.RED, "odd": odd, "set": {Colour.RED}}, allow_pickle=True)
    assert found["colour"] is Colour.RED
    assert found["set"] == {Colour.RED}
    assert torch.equal(found["odd"][Colour.RED], odd[Colour.RED])


def test_what_pickle_cannot_hold_is_refused_by_its_place() -> None:
    with pytest.raises(UnsupportedError, match=r"checkpoint\['f'\]: .*cannot be pickled"):
        pack({"f": lambda: None}, allow_pickle=True)


def test_nothing_is_unpickled_unasked() -> None:
    packed = pack({"colour": [Colour.RED]}, allow_pickle=True)
    packed[OBJECTS][0]["value"] = b"\x80\x05cos\nabort\n)R."  # would end this process
    with pytest.raises(ConfigError, match=r"pickled objects.*checkpoint\['colour'\]\[0\].*pickle=True"):
        unpack(packed, allow_pickle=False)


def test_a_long_list_of_refusals_is_cut() -> None:
    with pytest.raises(UnsupportedError, match="and 2 more"):
        pack({"all": [Colour.RED] * 12}, allow_pickle=False)


def test_the_reserved_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=OBJECTS):
        pack({OBJECTS: 1}, allow_pickle=False)


@pytest.mark.parametrize(
    "objects",
    [
        7,
        [7],
        [{"at": "x"}],
        [{"at": ["gone"], "kind": "set", "value": []}],
        [{"at": ["a"], "kind": "no such", "value": []}],
        [{"at": ["a", "b"], "kind": "set", "value": []}],
        [{"at": ["a"], "kind": "namespace", "value": 3}],
    ],
    ids=repr,
)
def test_malformed_objects_are_refused(objects: object) -> None:
    with pytest.raises(ManifestError, match="malformed"):
        unpack({"a": None, OBJECTS: objects}, allow_pickle=True)


def test_a_state_that_holds_itself_is_left_for_the_tree() -> None:
    state: dict[str, Any] = {"a": []}
    state["a"].append(state["a"])
    with pytest.raises(UnsupportedError, match="contains itself"):
        flatten(pack(state, allow_pickle=True))
