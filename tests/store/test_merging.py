"""The shards of several ranks as one state: from what the ranks store to where each leaf lies."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3dlio.engine.errors import ConfigError, ManifestError
from s3dlio.merging import Merged, merge, of_one
from s3dlio.tensors import plan_layout
from s3dlio.tensors.box import Box, Part
from s3dlio.tensors.leaf import make_spec
from s3dlio.tensors.table import ELSEWHERE
from tests.store.shares import Share, shares

Array = np.ndarray[Any, Any]
DTYPES = ["float64", "float32", "int16", "uint8"]


@dataclass
class World:
    """States of all ranks, and what must come of them: ``whole`` by name of what all see, ``own`` by rank and name."""

    size: int
    states: list[dict[str, Array]] = field(default_factory=list)
    parts: list[dict[str, Part]] = field(default_factory=list)
    whole: dict[str, Array] = field(default_factory=dict)
    own: list[dict[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for column in (self.states, self.parts, self.own):
            column.extend({} for _ in range(self.size))

    def share(self, name: str, value: Array) -> None:
        """The same on all ranks."""
        self.whole[name] = value
        for state in self.states:
            state[name] = value.copy()

    def differ(self, name: str, value: Array) -> None:
        """Another on each."""
        for rank, state in enumerate(self.states):
            state[name] = self.own[rank][name] = value + rank

    def cut(self, name: str, value: Array, cuts: list[int], axis: int) -> None:
        """An array in pieces along an axis; where there are fewer than ranks, some have the same."""
        self.whole[name] = value
        pieces = list(zip([0, *cuts], [*cuts, value.shape[axis]], strict=True))
        for rank, state in enumerate(self.states):
            low, high = pieces[rank % len(pieces)]
            offsets, sizes = [0] * value.ndim, list(value.shape)
            offsets[axis], sizes[axis] = low, high - low
            state[name] = np.take(value, range(low, high), axis).copy()
            self.parts[rank][name] = Part(value.shape, (Box(tuple(offsets), tuple(sizes)),))

    def shares(self) -> list[Share]:
        return shares(self.states, self.parts)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    made = World(draw(st.integers(1, 4)))
    for number in range(draw(st.integers(0, 6))):
        name, dtype = f"leaf{number}", draw(st.sampled_from(DTYPES))
        shape = (draw(st.integers(0, 5)), draw(st.integers(1, 4)))
        value = np.random.default_rng(number).integers(0, 200, shape).astype(dtype)
        kind = draw(st.sampled_from(["shared", "own", "part"]))
        if kind == "shared":
            made.share(name, value)
        elif kind == "own" and value.size:
            made.differ(name, value)
        else:
            axis = draw(st.integers(0, 1))
            pieces = draw(st.integers(1, made.size))
            cuts = sorted(draw(st.integers(0, shape[axis])) for _ in range(pieces - 1))
            made.cut(name, value, cuts, axis)
    return made


def merged(stored: list[Share], rank: int | None = None) -> Merged:
    return merge([share.tree for share in stored], [share.table for share in stored], rank)


def read(stored: list[Share], found: Merged, name: str) -> Array:
    """A leaf, put together of its places."""
    index = found.names.index(name)
    spec = found.specs[index]
    array = np.full(spec.shape, 99, spec.dtype)
    for place in found.places(index):
        raw = stored[place.shard].image(place.offset, place.box.count * array.itemsize)
        inside = tuple(slice(at, at + size) for at, size in zip(place.box.offsets, place.box.sizes, strict=True))
        array[inside] = np.frombuffer(raw, spec.dtype).reshape(place.box.sizes)
    return array


def same(found: Array, expected: Array) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@settings(max_examples=40)
@given(worlds())
def test_every_leaf_is_found_by_every_rank_and_by_none(made: World) -> None:
    stored = made.shares()
    for rank in range(made.size):
        found = merged(stored, rank)
        assert found.names == list(made.states[0])
        for name in made.states[0]:
            same(read(stored, found, name), {**made.whole, **made.own[rank]}[name])
        found.require_shared()
    found = merged(stored)
    own = {name for name in made.own[0] if made.size > 1}
    assert {found.names[index] for index in found.own} == own
    for name, value in made.whole.items():
        same(read(stored, found, name), value)
    found.require_shared(found.names.index(name) for name in made.whole)


@settings(max_examples=40)
@given(worlds())
def test_what_ranks_have_in_common_is_stored_once(made: World) -> None:
    stored = made.shares()
    heads = sum(8 + int.from_bytes(share.data[:8], "little") for share in stored)
    once = sum(value.nbytes for value in made.whole.values())
    own = sum(value.nbytes for values in made.own for value in values.values())
    assert sum(len(share.data) for share in stored) - heads == once + own
    for name in made.whole:
        index = list(made.states[0]).index(name)
        places = merged(stored).places(index)
        assert sum(place.box.count for place in places) == made.whole[name].size


def test_names_that_no_header_holds_are_in_none_of_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the whole state are too many, those of a rank's share are not: its header must not grow for them."""
    limited = functools.partial(plan_layout, header_limit=3000)
    monkeypatch.setattr("s3dlio.group_content.plan_layout", limited)
    made = World(3)
    for number in range(50):
        made.share(f"leaf{number}", np.full(7, number, np.int32))
    stored = made.shares()  # asserts that no leaf moves behind where it was
    found = merged(stored)
    for name, value in made.whole.items():
        same(read(stored, found, name), value)


class TestOwn:
    @pytest.fixture
    def stored(self) -> list[Share]:
        states = [
            {"w": np.arange(4), "rng": np.full(3, rank), "n": rank, "deep": [{"x": 1}, ("a", rank)]}
            for rank in range(3)
        ]
        return shares(states)

    def test_is_listed_in_one_error(self, stored: list[Share]) -> None:
        found = merged(stored)
        with pytest.raises(ConfigError, match=r"each rank has saved its own rng, .*: pass rank= to say") as caught:
            found.require_shared()
        assert "rng, state['n'], state['deep'][1][1]:" in str(caught.value)

    def test_is_no_matter_to_who_asks_for_other_leaves(self, stored: list[Share]) -> None:
        found = merged(stored)
        found.require_shared([found.names.index("w")])
        with pytest.raises(ConfigError, match="its own rng: pass"):
            found.require_shared([found.names.index("rng"), found.names.index("w")])

    def test_is_the_ranks_to_one_of_them(self, stored: list[Share]) -> None:
        found = merged(stored, 2)
        assert (found.own, found.values) == (frozenset(), ())
        same(read(stored, found, "rng"), np.full(3, 2))
        assert found.tree == stored[2].tree

    def test_is_not_all_named_where_it_is_much(self) -> None:
        states = [{f"k{number:02}": rank for number in range(25)} for rank in range(2)]
        with pytest.raises(ConfigError, match=r"state\['k19'\] and 5 more: pass rank=") as caught:
            merged(shares(states)).require_shared()
        assert "k20" not in str(caught.value)

    @pytest.mark.parametrize(
        ("one", "other", "path"),
        [
            ({"x": [1, 2]}, {"x": [1, 2, 3]}, "state['x']"),
            ({"x": [1]}, {"x": (1,)}, "state['x']"),
            ({"x": {"a": 1}}, {"x": OrderedDict(a=1)}, "state['x']"),
            ({"x": [{1: 2, 3: (4,)}]}, {"x": [{1: 2, 3: (5,)}]}, "state['x'][0][3][0]"),
            ({"x": None}, {"x": {"deep": None}}, "state['x']"),
            ({1: "a"}, {1: "b"}, "state[1]"),
        ],
    )
    def test_a_place_of_another_kind_is_a_value_of_its_own(self, one: Any, other: Any, path: str) -> None:
        found = merged(shares([{"w": np.ones(2), "s": one}, {"w": np.ones(2), "s": other}]))
        assert found.values == (path.replace("state", "state['s']"),)


class TestTablesThatDoNotBelongTogether:
    @pytest.fixture
    def stored(self) -> list[Share]:
        made = World(2)
        made.share("w", np.arange(6.0))
        made.share("v", np.arange(5.0))
        made.cut("rows", np.arange(12.0).reshape(4, 3), [2], 0)
        return made.shares()

    @staticmethod
    def change(stored: list[Share], rank: int, **changes: Any) -> list[Share]:
        changed = list(stored)
        changed[rank] = replace(changed[rank], table=replace(changed[rank].table, **changes))
        return changed

    def refused(self, stored: Iterable[Share], message: str) -> None:
        for rank in (None, 0, 1):
            with pytest.raises(ManifestError, match=message):
                merged(list(stored), rank)

    def test_names(self, stored: list[Share]) -> None:
        self.refused(self.change(stored, 1, names=["w", "v", "columns"]), "rank 0 and rank 1 are not of one state")

    def test_owners(self, stored: list[Share]) -> None:
        self.refused(self.change(stored, 1, owners=[0, 0, None]), "rank 0 and rank 1 are not of one state")
        self.refused(self.change(stored, 1, owners=None), "rank 0 and rank 1 are not of one state")

    def test_parts(self, stored: list[Share]) -> None:
        self.refused(self.change(stored, 1, parts={}), "rank 0 and rank 1 are not of one state")

    def test_an_owner_that_there_is_not(self, stored: list[Share]) -> None:
        changed = [replace(share, table=replace(share.table, owners=[0, 7, None])) for share in stored]
        self.refused(changed, "said to lie in the shard of rank 7 of 2")

    def test_a_leaf_that_its_owner_lacks(self, stored: list[Share]) -> None:
        index = stored[0].table.owners.index(1)  # type: ignore[union-attr]
        offsets = list(stored[1].table.offsets)
        offsets[index] = ELSEWHERE
        self.refused(self.change(stored, 1, offsets=offsets), "is not in the shard of rank 1, which is said to have it")

    @pytest.mark.parametrize(
        "spec", [("numpy", "float32", (6,)), ("numpy", "float64", (5, 1)), ("torch", "float64", (6,))]
    )
    def test_a_leaf_that_is_another_at_its_owner(self, stored: list[Share], spec: tuple[str, str, Any]) -> None:
        index = stored[0].table.owners.index(1)  # type: ignore[union-attr]
        specs = list(stored[1].table.specs)
        specs[index] = make_spec(*spec)
        with pytest.raises(ManifestError, match="is not in the shard of rank 1"):
            merged(self.change(stored, 1, specs=specs), 0)

    def test_a_part_of_another_array(self, stored: list[Share]) -> None:
        part = Part((4, 4), (Box((2, 0), (2, 3)),))
        with pytest.raises(ManifestError, match="rows is another array on rank 1 than on rank 0"):
            merged(self.change(stored, 1, parts={2: part}), 0)
        specs = [*stored[1].table.specs[:2], make_spec("numpy", "int64", (2, 3))]
        with pytest.raises(ManifestError, match="rows is another array on rank 1 than on rank 0"):
            merged(self.change(stored, 1, specs=specs), 0)

    @pytest.mark.parametrize("box", [Box((1, 0), (2, 3)), Box((2, 0), (1, 3)), Box((0, 0), (0, 0))])
    def test_parts_that_are_not_the_array(self, stored: list[Share], box: Box) -> None:
        """Else what is loaded would hold bytes of nobody."""
        changed = self.change(stored, 1, parts={2: Part((4, 3), (box,))})
        self.refused(changed, "the parts of rows in all shards do not make up the array")

    def test_an_array_that_no_memory_holds(self, stored: list[Share]) -> None:
        huge = [
            replace(share, table=replace(share.table, parts={2: Part((1 << 62, 3), share.table.parts[2].boxes)}))
            for share in stored
        ]
        self.refused(huge, "do not make up the array")

    def test_trees_of_too_many_levels(self, stored: list[Share]) -> None:
        trees = []
        for leaf in (0, 1):
            tree: Any = leaf
            for _ in range(5000):
                tree = [tree]
            trees.append(tree)
        with pytest.raises(ManifestError, match="too many levels"):
            merge(trees, [share.table for share in stored], None)

    def test_one_shard_of_several_is_no_state(self, stored: list[Share]) -> None:
        with pytest.raises(ManifestError, match="a part of a state that other ranks hold the rest of"):
            of_one(stored[0].tree, stored[0].table)
        with pytest.raises(ManifestError, match="a part of a state that other ranks hold the rest of"):
            of_one(stored[0].tree, replace(stored[0].table, parts={}))
