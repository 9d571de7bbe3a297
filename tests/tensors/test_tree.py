from __future__ import annotations

import collections
import enum
import math
import struct
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s3dlio.engine.errors import UnsupportedError
from s3dlio.tensors import flatten
from s3dlio.tensors.leaf import MAX_DEPTH
from tests.tensors.shards import again, filled_torch, same, save

numbers = st.one_of(
    st.booleans(), st.none(), st.integers(), st.floats(), st.complex_numbers(), st.binary(max_size=20),
    st.text(st.characters(), max_size=8), st.floats(allow_nan=False).map(np.float64), st.integers(0, 9).map(np.int8),
)  # fmt: skip
simple_keys = st.one_of(
    st.text(st.characters(), max_size=5), st.integers(), st.none(), st.floats(allow_nan=False), st.binary(max_size=5)
)
keys = st.recursive(simple_keys, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
arrays = hnp.arrays(
    st.sampled_from(["f4", ">i8", "?", "c16", "U2", "M8[ms]"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
)
tensors = st.builds(
    filled_torch,
    st.sampled_from([torch.bfloat16, torch.int64, torch.float8_e5m2, torch.complex128, torch.bool]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.integers(0, 9),
)
states = st.recursive(
    st.one_of(numbers, arrays, tensors),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=20,
)


@given(states)
def test_any_state_comes_back(state: Any) -> None:
    same(state, again(state))


@given(st.lists(st.integers(), min_size=2) | st.lists(st.floats(), min_size=2))
def test_runs_of_numbers_come_back(values: list[Any]) -> None:
    same(values, again(values))
    same(tuple(values), again(tuple(values)))


SCALARS: list[Any] = [
    None, True, False, 0, -1, 1 << 63, -(1 << 63) - 1, 7**4000, 0.0, -0.0, math.inf, -math.inf, 5e-324,
    complex(-0.0, math.inf), "", "a", "\ud800", "\ud800\udc00", "\0", "😀", b"", b"\xff", bytearray(b"abc"),
    np.float32(1.5), np.float64("nan"), np.int8(-3), np.bool_(True), np.str_("a\0"), np.bytes_(b"a\0"),
    np.datetime64("2020-01-01T00:00:01"), np.timedelta64(5, "ms"), np.longdouble(1) / 3, np.complex64(1j),
    torch.Size([2, 3]), torch.Size([]), torch.float8_e4m3fn, torch.device("cuda:1"), torch.device("cpu"), (), [], {},
    (1, 2), [1.5, 2.5], [True, 1, 1.0], "x" * 70_000, "\ud800" * 70_000, b"x" * 5000, bytearray(b"y" * 5000),
    {"dict": {"tuple": []}}, {"int": 5},
]  # fmt: skip


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: repr(value)[:30])
def test_scalars_come_back_with_type_and_bits(value: Any) -> None:
    same(value, again(value))
    same({"a": [value]}, again({"a": [value]}))


def test_the_bits_of_nan_are_kept() -> None:
    odd = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_DEAD_BEEF))[0]
    assert struct.pack("<d", again(odd)) == struct.pack("<d", odd)


def test_structured_scalars_come_back() -> None:
    scalar = np.array((3, b"ab"), [("a", "i4"), ("b", "S2")])[()]
    back = again(scalar)
    assert type(back) is np.void
    assert (back.dtype, back.tobytes()) == (scalar.dtype, scalar.tobytes())


def test_key_types_and_order_come_back() -> None:
    state = {2: "b", "2": "a", None: 0, 1.5: 1, b"k": 2, (1, ("x", None)): 3, True: 4, "\udcff": 5, np.int64(7): 6}
    back = again(state)
    same(state, back)
    assert list(back) == list(state)


def test_names_are_paths_made_unique() -> None:
    zero = [np.array(number) for number in range(9)]
    state = {
        "model": {"layers": [{"weight": zero[0]}]},
        "a.b": zero[1],
        "a": {"b": zero[2], "": zero[3]},
        1: zero[4],
        "1": zero[5],
        "": zero[6],
        "__metadata__": zero[7],
        ("t", 1): zero[8],
    }
    assert [leaf.name for leaf in flatten(state).leaves] == [
        "model.layers.0.weight", "a.b", "a.b~1", "a.", "1", "1~1", "tensor", "__metadata__~1", "('t', 1)",
    ]  # fmt: skip
    assert [leaf.name for leaf in flatten(np.zeros(2)).leaves] == ["tensor"]
    assert [leaf.name for leaf in flatten({"\ud800": np.zeros(2)}).leaves] == ["\\ud800"]


def test_leaves_describe_themselves() -> None:
    one, other = flatten({"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": np.zeros(4, ">f4")}).leaves
    assert (one.name, one.dtype, one.shape, one.nbytes, one.framework) == ("a", "bfloat16", (2, 3), 12, "torch")
    assert (other.name, other.dtype, other.shape, other.nbytes, other.framework) == ("b", ">f4", (4,), 16, "numpy")


def test_defaultdicts_come_back_as_dicts() -> None:
    back = again(defaultdict(list, {"a": [1]}))
    assert type(back) is dict
    assert back == {"a": [1]}


def test_the_metadata_of_a_state_dict_is_kept() -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    assert state._metadata[""] == {"version": 2}  # type: ignore[attr-defined]
    same(state, again(state))
    same(OrderedDict({1: 2}), again(OrderedDict({1: 2})))


@pytest.mark.slow  # torch imports its compiler when the first optimizer is made
def test_an_optimizer_resumes_from_what_came_back() -> None:
    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.99))
    step(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    back = again(state)
    same(state, back)
    assert list(back["optimizer"]["state"]) == [0, 1]
    resumed = torch.nn.Linear(3, 2)
    resumed_optimizer = torch.optim.AdamW(resumed.parameters())
    resumed.load_state_dict(back["model"])
    resumed_optimizer.load_state_dict(back["optimizer"])
    step(model, optimizer)
    step(resumed, resumed_optimizer)
    same(model.state_dict(), resumed.state_dict())
    same(optimizer.state_dict(), resumed_optimizer.state_dict())


class Point(NamedTuple):
    x: int


class Colour(enum.IntEnum):
    RED = 1


class Custom:
    pass


class Foreign:
    def __array__(self) -> None:
        raise AssertionError


class Sub(torch.Tensor):
    pass


def deep(levels: int) -> Any:
    state: Any = 1
    for _ in range(levels):
        state = {"a": state}
    return state


def cycle() -> Any:
    state: dict[str, Any] = {"a": [1]}
    state["a"].append({"b": state})
    return state


def attributed() -> Any:
    state = OrderedDict(a=1)
    state.note = 5  # type: ignore[attr-defined]
    return state


def nested_tensor() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


UINT4: torch.dtype = vars(torch)["uint4"]
META = torch.sparse_coo_tensor((2, 3), device="meta", check_invariants=False)  # type: ignore[call-arg,arg-type]

REFUSED: list[tuple[Any, str]] = [
    ({"a": {1, 2}}, r"state\['a'\]: a set has no order"),
    ({"model": [0, 0, 0, {"x": Custom()}]}, r"state\['model'\]\[3\]\['x'\]: tests.*Custom objects need pickle"),
    ([len], r"state\[0\]: functions"),
    ([Custom], r"state\[0\]: functions, classes"),
    ((Point(1),), r"state\[0\]: named tuple .*Point.*_asdict"),
    ({"c": Colour.RED}, r"state\['c'\]: .*Colour, a subclass of int"),
    (collections.Counter("ab"), "state: .*Counter, a subclass of dict"),
    ({Custom(): 1}, r"a dict key of .*Custom"),
    ({(1, Custom()): 1}, r"a dict key of .*Custom"),
    ({b"x" * 9999: 1}, "a dict key of bytes cannot be stored"),
    (np.array([None, 1]), "state: dtype object holds Python objects"),
    (np.zeros(2, [("a", "O")]), "holds Python objects"),
    (np.zeros(2, np.dtypes.StringDType()), "state: dtype StringDType"),
    (np.zeros(2, "V0"), "has no bytes"),
    (np.zeros(2, np.dtype((np.record, [("a", "i4")]))), "makes record objects"),
    (np.ma.masked_array([1, 2], [True, False]), "state: array subclass numpy.ma.*MaskedArray"),
    ({"t": [torch.zeros(2, device="meta")]}, r"state\['t'\]\[0\]: a meta tensor"),
    (torch.zeros(2).as_subclass(Sub), "state: tensor subclass .*Sub"),
    (torch.zeros(2, dtype=torch.uint8).view(UINT4), "torch dtype uint4"),
    (META, "meta"),
    (memoryview(b"a"), "memoryview"),
    ([Foreign()], r"state\[0\]: arrays of type .*Foreign are not known here; store numpy.asarray"),
    (deep(MAX_DEPTH + 1), "containers within each other"),
    (deep(100_000), "containers within each other"),
    (cycle(), r"state\['a'\]\[1\]\['b'\]: the state contains itself"),
    (attributed(), "attributes of its own .note."),
]


@pytest.mark.parametrize(("state", "message"), REFUSED, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_what_cannot_be_stored_is_refused_with_its_path(state: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        flatten(state)


@pytest.mark.filterwarnings("ignore")
def test_quantized_and_nested_tensors_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"state\['q'\]: quantized tensors"):
        flatten({"q": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)})
    with pytest.raises(UnsupportedError, match=r"state\['n'\]: nested tensors"):
        flatten({"n": nested_tensor()})


def test_the_deepest_allowed_state_comes_back() -> None:
    same(deep(MAX_DEPTH), again(deep(MAX_DEPTH)))


def test_a_container_that_occurs_twice_is_no_cycle() -> None:
    shared = {"a": np.zeros(2)}
    saved = save([shared, shared])
    assert saved.tree == [{"dict": {"a": 0}}, {"dict": {"a": 0}}]
