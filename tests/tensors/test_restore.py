from __future__ import annotations

import gc
import mmap
import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.errors import ConfigError, CorruptError, ManifestError, S3dlioError
from s3dlio.tensors import parse_table, plan_into, restore, restore_named, select
from tests.tensors.shards import same, save

STATE = {
    "np": np.arange(1000),
    "bf16": torch.arange(1000).to(torch.bfloat16),
    "f4": torch.arange(1000.0),
    "param": torch.nn.Parameter(torch.ones(10)),
}


class Mapping(mmap.mmap):
    """As the reader makes it; can be referred to weakly."""


@pytest.fixture
def shard() -> Iterator[tuple[Any, int]]:
    """A saved shard in a memfd."""
    saved = save(STATE)
    fd = os.memfd_create("shard")
    os.write(fd, saved.data)
    yield saved, fd
    os.close(fd)


def mapped(fd: int) -> Mapping:
    size = os.fstat(fd).st_size
    return Mapping(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("name", list(STATE))
def test_any_one_array_keeps_the_mapping_alive(shard: tuple[Any, int], name: str) -> None:
    saved, fd = shard
    memory = mapped(fd)
    alive = weakref.ref(memory)
    back = restore(saved.tree, saved.table, memory)
    array = back[name]
    with pytest.raises(BufferError):
        memory.close()
    del back, memory
    gc.collect()
    assert alive() is not None
    same(array, STATE[name])
    array.data[:] = 5 if name != "np" else array.data[:]  # the pages are there to be written
    del array
    gc.collect()
    assert alive() is None


def test_arrays_are_views_and_writing_them_changes_no_file(shard: tuple[Any, int]) -> None:
    saved, fd = shard
    memory = mapped(fd)
    back = restore(saved.tree, saved.table, memory)
    offset = saved.table.range(0)[0]
    back["np"][0] = 77
    assert memory[offset] == 77
    assert os.pread(fd, 1, offset) == b"\0"
    back["bf16"][0] = 3
    assert torch.equal(restore(saved.tree, saved.table, memory)["bf16"][:1], torch.tensor([3.0], dtype=torch.bfloat16))


def test_each_tensor_has_a_storage_of_its_own_size(shard: tuple[Any, int]) -> None:
    """Else torch.save of one would write the shard, and libraries would take all for tied."""
    saved, fd = shard
    back = restore(saved.tree, saved.table, mapped(fd))
    assert back["f4"].untyped_storage().nbytes() == 4000
    assert back["bf16"].untyped_storage().nbytes() == 2000
    assert back["bf16"].untyped_storage().data_ptr() != back["f4"].untyped_storage().data_ptr()


def test_memory_that_does_not_fit_is_refused() -> None:
    saved = save(STATE)
    with pytest.raises(CorruptError, match=r"the memory has \d+ bytes, the shard"):
        restore(saved.tree, saved.table, saved.data[:-1])
    with pytest.raises(ConfigError, match="read-only"):
        restore(saved.tree, saved.table, bytes(saved.data))
    with pytest.raises(CorruptError, match="the memory has"):
        restore_named(saved.table, select(saved.table, "np"), bytearray(8))


def test_memory_may_be_longer_than_the_shard() -> None:
    saved = save(STATE)
    same(STATE, restore(saved.tree, saved.table, saved.data + bytes(4096)))


def deep(tag: str) -> Any:
    node: Any = None
    for _ in range(200):
        node = [node] if tag == "list" else {"tuple": [node]} if tag == "tuple" else {"dict": {"a": node}}
    return node


SPARSE = {"layout": "sparse_coo", "shape": [3], "coalesced": False, "form": "torch", "grad": False, "parts": [0, 1]}
HOSTILE: list[tuple[Any, str]] = [
    (4, "leaf 4 of 4"), (-1, "leaf -1 of 4"), (1 << 80, "leaf .* of 4"), (1.5, "a node of float"), ({}, "of dict"),
    ({"dict": {}, "x": 1}, "more than one tag"), ({"ordered": {}, "x": 1}, "more than one tag"),
    ({"what": 1}, "unknown node 'what'"), ({"dict": []}, "malformed dict"), ({"dict": 5}, "malformed dict"),
    ({"items": {}}, "malformed items"), ({"items": [1]}, "malformed items"), ({"items": [1, None]}, "malformed key"),
    ({"items": [{"dict": {}}, None]}, "malformed key"), ({"items": [{"ints": [1, 2]}, None]}, "malformed key"),
    ({"items": ["a", None, "a", None]}, "a key occurs twice"), ({"items": [{"int": 1}, None, True, 1.5]}, "of float"),
    ({"items": [{"int": 1}, None, True, None]}, "a key occurs twice"),
    ({"tuple": 5}, "malformed tuple"), ({"tuple": {"int": 5}}, "malformed tuple"), ({"tuple": None}, "malformed tuple"),
    ({"ordered": {}, "metadata": 9}, "leaf 9"),
    ({"int": "5"}, "malformed int"), ({"int": 1.0}, "malformed int"), ({"int": True}, "malformed int"),
    ({"int": "0xzz"}, "malformed int"), ({"float": "nan"}, "malformed float"), ({"float": None}, "malformed float"),
    ({"float": 10**400}, "malformed float"), ({"complex": [1]}, "malformed complex"), ({"complex": 1}, "malformed"),
    ({"str": "zz"}, "malformed str"), ({"str": "ff"}, "malformed str"), ({"str": 5}, "malformed str"),
    ({"bytes": "a"}, "malformed bytes"), ({"bytearray": 5}, "malformed bytearray"),
    ({"numpy": ["O", "00"]}, "dtype"), ({"numpy": ["float32", "00"]}, "malformed numpy"), ({"numpy": 1}, "malformed"),
    ({"numpy": [5, "00"]}, "malformed numpy|dtype"), ({"numpy": [["a"], "00"]}, "malformed numpy"),
    ({"ints": [1, "a"]}, "malformed ints"), ({"ints": 5}, "malformed ints"), ({"floats": ["a"]}, "malformed floats"),
    ({"size": ["a"]}, "malformed size"), ({"dtype": "nn"}, "malformed dtype"), ({"dtype": 5}, "malformed dtype"),
    ({"device": "abc"}, "malformed device"), ({"device": {}}, "malformed device"),
    ({"sparse": 5}, "malformed sparse"), ({"sparse": {"parts": [[]]}}, "parts are no leaves"),
    ({"sparse": {**SPARSE, "layout": "strided"}}, "malformed sparse"), ({"sparse": {**SPARSE, "shape": 5}}, "malf"),
    ({"sparse": {**SPARSE, "shape": ["a"]}}, "malformed"), ({"sparse": {**SPARSE, "form": "x"}}, "malformed"),
    ({"sparse": {**SPARSE, "parts": [1]}}, "malformed sparse"), ({"sparse": {**SPARSE, "parts": [3, 1]}}, "malformed"),
    ({"sparse": {**SPARSE, "layout": []}}, "malformed sparse"),
    ({"sparse": SPARSE}, "contradicts itself"), ({"sparse": {**SPARSE, "parts": [2, 1]}}, "contradicts itself"),
    ({"sparse": {**SPARSE, "shape": [-1]}}, "contradicts itself"),
    ({"sparse": {**SPARSE, "shape": [1 << 70]}}, "contradicts itself"),
    (deep("list"), "more than 64 levels"), (deep("tuple"), "more than 64 levels"), (deep("dict"), "than 64 levels"),
]  # fmt: skip
PARTS = [torch.tensor([[0, 5]]), torch.ones(2), torch.zeros(2), np.arange(2)]


@pytest.mark.parametrize(("tree", "message"), HOSTILE, ids=[repr(tree)[:50] for tree, _ in HOSTILE])
def test_hostile_trees_are_refused(tree: Any, message: str) -> None:
    saved = save(PARTS)
    with pytest.raises(ManifestError, match=message):
        restore(tree, saved.table, saved.data)


def test_a_text_that_is_no_text_is_refused() -> None:
    raw = {"names": ["a"], "specs": [["str", "uint8", [2]]], "spec": [0], "offsets": [0], "aliases": {}}
    with pytest.raises(ManifestError, match="leaf 0: no array can be"):
        restore(0, parse_table(raw, 2), bytearray(b"\xff\xff"))


def test_a_shape_that_no_array_can_have_is_refused() -> None:
    for form in ("numpy", "torch"):
        raw = {"names": ["a"], "specs": [[form, "float32", [0, 1 << 62, 1 << 62]]], "spec": [0], "offsets": [0]}
        with pytest.raises(ManifestError, match="leaf 0: no array can be"):
            restore(0, parse_table({**raw, "aliases": {}}, 0), bytearray())


tags = st.sampled_from(
    "dict items ordered ordered_items tuple int float complex str bytes bytearray numpy ints floats size dtype device "
    "sparse metadata parts shape layout form a".split()
)
nodes = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.sampled_from(["", "00", "float32", "cpu", "U"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tags, inner, max_size=2),
)


@given(nodes)
def test_any_tree_is_refused_or_restored(tree: Any) -> None:
    """Nothing but our errors leaves, neither from restore nor from into."""
    saved = save(PARTS)
    for act in (lambda: restore(tree, saved.table, saved.data), lambda: plan_into(tree, saved.table, PARTS)):
        try:
            act()
        except S3dlioError:
            pass
