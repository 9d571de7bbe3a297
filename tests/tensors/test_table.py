from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.errors import ConfigError, ManifestError, S3dlioError
from s3dlio.tensors import flatten, parse_table, plan_layout, restore, restore_named, select
from s3dlio.tensors.box import Box, Part
from s3dlio.tensors.table import ELSEWHERE
from tests.tensors.shards import same, save

STATE = {
    "model": {"layers": [{"weight": torch.ones(2, 3), "bias": torch.zeros(3)} for _ in range(3)]},
    "odd[0]": np.arange(5),
    "note": b"n" * 5000,
}
SAVED = save(STATE)
RAW = json.loads(json.dumps(SAVED.layout.table))
TOTAL = SAVED.layout.total
HUGE = 1 << 70


def altered(**changes: Any) -> Any:
    return {**copy.deepcopy(RAW), **changes}


def specs(spec: Any) -> Any:
    return altered(specs=[spec, *RAW["specs"][1:]])


HOSTILE: list[tuple[Any, str]] = [
    (None, "not an object"),
    ([], "not an object"),
    (altered(names=None), "names is not a list"),
    (altered(names=[1] * 8), "names is not a list of str"),
    (altered(names=RAW["names"][1:]), "7 names, 8 specs"),
    (altered(names=["a"] * 8), "a name occurs twice"),
    (altered(aliases={RAW["names"][0]: 1}), "a name occurs twice"),
    (altered(aliases={"x": 8}), "malformed aliases"),
    (altered(aliases={"x": True}), "malformed aliases"),
    (altered(aliases=[]), "malformed aliases"),
    (altered(spec=[99] * 8), "a spec that does not exist"),
    (altered(spec=[-1] * 8), "a spec that does not exist"),
    (altered(spec=[True] * 8), "not a list of int"),
    (altered(offsets=[1.0] * 8), "not a list of int"),
    (altered(offsets=[0] * 8), "overlap"),
    (altered(offsets=[-64, *RAW["offsets"][1:]]), "outside its shard"),
    (altered(offsets=[HUGE, *RAW["offsets"][1:]]), "outside its shard"),
    (altered(offsets=[TOTAL, *RAW["offsets"][1:]]), "outside its shard"),
    (altered(offsets=[RAW["offsets"][0] + 1, *RAW["offsets"][1:]]), "no multiple of its width"),
    (specs(5), "specs is not a list of list"),
    (specs(["torch", "float32"]), "malformed spec"),
    (specs(["tensor", "float32", [3]]), "unknown form 'tensor'; the checkpoint may be of a newer version"),
    (specs([["torch"], "float32", [3]]), "unknown form"),
    (specs(["torch", "float33", [3]]), "unknown dtype 'float33'"),
    (specs(["torch", ["float32"], [3]]), "malformed spec"),
    (specs(["torch", "float32", [-1]]), "malformed shape"),
    (specs(["torch", "float32", [True]]), "malformed shape"),
    (specs(["torch", "float32", [2.0]]), "malformed shape"),
    (specs(["torch", "float32", [HUGE]]), "malformed shape"),
    (specs(["torch", "float32", [1] * 65]), "malformed shape"),
    (specs(["torch", "float32", [1 << 40, 1 << 40]]), "a leaf of .* bytes in a shard"),
    (specs(["torch", "float32", [1 << 62] * 60]), "a leaf of .* bytes in a shard"),
    (specs(["torch", "float32", [TOTAL]]), "a leaf of .* bytes in a shard"),
    (specs(["param", "int64", [1]]), "a int64 that requires grad"),
    (specs(["str", "float32", [3]]), "str of float32"),
    (specs(["bytes", "uint8", [3, 3]]), "bytes of uint8 and 2 dimensions"),
    (specs(["numpy", "O", [1]]), "unknown dtype 'O'"),
    (specs(["numpy", "U99999999999", [1]]), "unknown dtype"),
    (specs(["numpy", "U9999999999", [0]]), "dtype 'U9999999999'"),
    (specs(["numpy", "datetime64[zz]", [1]]), "datetime64.zz."),
    (specs(["torch", "U3", [1]]), "torch of U3"),
    (specs(["numpy", "struct", [1]]), "struct"),
    (specs(["numpy", "struct" + "[" * 100_000, [1]]), "struct"),
    (specs(["numpy", "struct{}", [1]]), "struct"),
]


@pytest.mark.parametrize(("raw", "message"), HOSTILE, ids=[message[:40] for _, message in HOSTILE])
def test_hostile_tables_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_table(raw, TOTAL)


SHARE = json.loads(json.dumps(plan_layout(
    flatten({"mine": np.arange(4), "theirs": np.arange(3), "own": np.arange(2), "rows": np.ones((2, 3))}),
    owners=[0, 1, None, None], left_out={1},
).table))  # fmt: skip
SHARE["parts"] = [[3, [4, 3], [[[2, 0], [2, 3]]]]]
SHARE_TOTAL = max(SHARE["offsets"]) + 4096


def shared(**changes: Any) -> Any:
    return {**copy.deepcopy(SHARE), **changes}


def boxed(*boxes: Any, shape: Any = (4, 3), leaf: Any = 3) -> Any:
    return shared(parts=[[leaf, list(shape), [list(map(list, box)) for box in boxes]]])


def test_a_share_says_who_has_what() -> None:
    table = parse_table(SHARE, SHARE_TOTAL)
    assert table.owners == [0, 1, None, None]
    assert table.offsets[1] == ELSEWHERE
    assert table.parts == {3: Part((4, 3), (Box((2, 0), (2, 3)),))}
    assert (parse_table(RAW, TOTAL).owners, parse_table(RAW, TOTAL).parts) == (None, {})


def test_a_part_may_lie_in_boxes_end_to_end_and_elsewhere() -> None:
    specs = [["numpy", "int64", [4]], ["numpy", "int64", [3]], ["numpy", "int64", [2]], ["numpy", "float64", [6]]]
    two = shared(specs=specs, parts=[[3, [4, 3], [[[0, 0], [1, 3]], [[3, 0], [1, 3]]]]])
    assert parse_table(two, SHARE_TOTAL).parts[3].stored_shape == (6,)
    replica = shared(offsets=[*SHARE["offsets"][:3], ELSEWHERE])
    assert parse_table(replica, SHARE_TOTAL).offsets[3] == ELSEWHERE
    nothing = shared(specs=[*specs[:3], ["numpy", "float64", [0]]], parts=[[3, [4, 3], []]])
    assert parse_table(nothing, SHARE_TOTAL).parts[3] == Part((4, 3), ())


def test_a_leaf_elsewhere_may_be_larger_than_the_shard() -> None:
    specs = [
        ["numpy", "int64", [4]],
        ["numpy", "int64", [1 << 50]],
        ["numpy", "int64", [2]],
        ["numpy", "float64", [2, 3]],
    ]
    assert parse_table(shared(specs=specs), SHARE_TOTAL).specs[1].nbytes == 8 << 50
    with pytest.raises(ManifestError, match=r"a leaf of .* bytes in a shard"):
        parse_table(shared(specs=specs, offsets=[*SHARE["offsets"][:1], 64, *SHARE["offsets"][2:]]), SHARE_TOTAL)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (shared(owners=5), "owners is not a list of a rank or null"),
        (shared(owners=[0, 1, None]), "owners is not a list of a rank or null"),
        (shared(owners=[0, 1, None, -1]), "owners is not a list of a rank or null"),
        (shared(owners=[0, 1, None, True]), "owners is not a list of a rank or null"),
        (shared(owners=[0, 1, None, "0"]), "owners is not a list of a rank or null"),
        (shared(owners=[0, None, None, None]), "no shard has the leaf theirs"),
        ({key: value for key, value in SHARE.items() if key != "owners"}, "a leaf outside its shard"),
        (shared(offsets=[-2, *SHARE["offsets"][1:]]), "a leaf outside its shard"),
        (shared(parts=5), "parts is not a list of list"),
        (shared(parts=[5]), "parts is not a list of list"),
        (shared(parts=[[3, [4, 3]]]), "a part of a leaf that does not exist, or two of one"),
        (shared(parts=[*SHARE["parts"], *SHARE["parts"]]), "a part of a leaf that does not exist, or two of one"),
        (boxed(((2, 0), (2, 3)), leaf=4), "a part of a leaf that does not exist, or two of one"),
        (boxed(((2, 0), (2, 3)), leaf=-1), "a part of a leaf that does not exist, or two of one"),
        (boxed(((2, 0), (2, 3)), leaf=True), "a part of a leaf that does not exist, or two of one"),
        (shared(parts=[[3, [4, 3], 5]]), "a malformed part"),
        (shared(parts=[[3, [4, 3], [5]]]), "a malformed part"),
        (shared(parts=[[3, [4, 3], [[[0, 0]]]]]), "a malformed part"),
        (shared(parts=[[3, [4, 3], [[[0, 0], 5]]]]), "a malformed part"),
        (boxed(((2, 0), (2, 3)), shape=(4, -3)), "a malformed part"),
        (boxed(((2, 0), (2, 3)), shape=(4, HUGE)), "a malformed part"),
        (boxed(((2, 0), (2, 3)), shape=(4, 3.0)), "a malformed part"),
        (boxed(((-1, 0), (2, 3))), "a malformed part"),
        (boxed(((2, 0), (2, True))), "a malformed part"),
        (boxed(((3, 0), (2, 3))), "a part that does not fit its array or its leaf"),
        (boxed(((2,), (2,))), "a part that does not fit its array or its leaf"),
        (boxed(((2, 0), (2, 2))), "a part that does not fit its array or its leaf"),
        (boxed(((0, 0), (2, 3)), ((2, 0), (2, 3))), "a part that does not fit its array or its leaf"),
        (boxed(), "a part that does not fit its array or its leaf"),
    ],
)  # fmt: skip
def test_hostile_shares_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_table(raw, SHARE_TOTAL)


STRUCT: dict[str, Any] = {
    "names": ["a"], "formats": ["int32"], "offsets": [0], "itemsize": 4, "aligned": False, "titles": [None],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a", "b"]}, {"names": [1]}, {"names": 5}, {"formats": ["O"]}, {"formats": [["int32", [-1]]]},
        {"formats": [["int32", 5]]}, {"formats": [5]}, {"formats": None}, {"offsets": [-1]}, {"offsets": [1]},
        {"offsets": [HUGE]}, {"offsets": ["0"]}, {"itemsize": 2}, {"itemsize": -1}, {"itemsize": HUGE},
        {"itemsize": "4"}, {"aligned": 1}, {"titles": 5}, {"titles": [["x"]]}, {"formats": [["O", [2]]]},
    ],
    ids=repr,
)  # fmt: skip
def test_hostile_structures_are_refused(change: dict[str, Any]) -> None:
    name = "struct" + json.dumps({**STRUCT, **change})
    with pytest.raises(ManifestError, match="table: "):
        parse_table({"names": ["a"], "specs": [["numpy", name, [1]]], "spec": [0], "offsets": [0], "aliases": {}}, 64)


def test_structures_nested_too_deep_are_refused() -> None:
    node: Any = "int32"
    for _ in range(40):
        node = {**STRUCT, "formats": [node]}
    raw = {"names": ["a"], "specs": [["numpy", "struct" + json.dumps(node), [1]]], "spec": [0], "offsets": [0]}
    with pytest.raises(ManifestError, match="nested too deep"):
        parse_table({**raw, "aliases": {}}, 64)


def test_a_long_double_of_another_machine_is_named() -> None:
    raw = {"names": ["a"], "specs": [["numpy", "longdouble112", [1]]], "spec": [0], "offsets": [0], "aliases": {}}
    with pytest.raises(ConfigError, match="of another machine"):
        parse_table(raw, 64)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(st.sampled_from(sorted(RAW)), st.integers(0, 8), values)
def test_any_alteration_is_refused_or_harmless(column: str, place: int, value: Any) -> None:
    """Nothing but our errors leaves, and what is accepted can be restored."""
    raw = copy.deepcopy(RAW)
    if isinstance(raw[column], list) and place < len(raw[column]):
        raw[column][place] = value
    else:
        raw[column] = value
    try:
        restore(SAVED.tree, parse_table(raw, TOTAL), SAVED.data)
    except S3dlioError:
        pass


def landed(selection: Any) -> bytearray:
    memory = bytearray(selection.size)
    for piece in selection.pieces:
        memory[piece.landing : piece.landing + piece.stop - piece.start] = SAVED.data[piece.start : piece.stop]
    return memory


def test_globs_choose_leaves_and_their_ranges() -> None:
    selection = select(SAVED.table, ["model.layers.*.weight", "odd[0]"])
    assert sorted(selection.names) == [
        "model.layers.0.weight", "model.layers.1.weight", "model.layers.2.weight", "odd[0]",
    ]  # fmt: skip
    assert [piece.stop - piece.start for piece in selection.pieces] == [40, 24, 24, 24]
    assert [piece.landing for piece in selection.pieces] == [0, 64, 128, 192]
    assert selection.size == 256
    named = restore_named(SAVED.table, selection, landed(selection))
    same(named["model.layers.1.weight"], torch.ones(2, 3))
    same(named["odd[0]"], np.arange(5))


def test_one_glob_and_texts_may_be_chosen() -> None:
    selection = select(SAVED.table, "no?e")
    assert restore_named(SAVED.table, selection, landed(selection)) == {"note": b"n" * 5000}


def test_a_leaf_chosen_twice_is_read_once() -> None:
    selection = select(SAVED.table, ["*bias", "model.layers.0.*"])
    assert len(selection.pieces) == len(selection.names) == 4


def test_a_glob_that_matches_nothing_names_what_is_near() -> None:
    with pytest.raises(ConfigError, match=r"no array is named 'model.layer.0.weight'; near: model.layers.0.weight"):
        select(SAVED.table, ["model.layer.0.weight"])
    with pytest.raises(ConfigError, match=r"'zzzz\*'; there are model.layers.0.weight"):
        select(SAVED.table, ["zzzz*"])
    with pytest.raises(ConfigError, match="there is none"):
        select(save({}).table, ["a"])
    with pytest.raises(ConfigError, match="a glob or a list of globs"):
        select(SAVED.table, [1])  # type: ignore[list-item]
    assert select(SAVED.table, []).size == 0
