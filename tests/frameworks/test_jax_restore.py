"""Restoring onto devices: other meshes, targets of every kind, and everything that does not fit in one error."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from s3dlio import CheckpointStore
from s3dlio.engine.errors import CheckpointNotFoundError, ConfigError, ManifestError
from s3dlio.frameworks.jax import plain, restore
from s3dlio.frameworks.jax import restoring as restoring_module
from s3dlio.frameworks.jax.trees import stored_leaves
from s3dlio.reader import ShardReader, Wanted
from s3dlio.state_reader import StateReader, open_state
from s3dlio.tensors.box import Box
from s3dlio.tensors.leaf import make_spec
from tests.store.live import MIB, keeping_pool, open_store

Moments = collections.namedtuple("Moments", "mu nu")
Empty = collections.namedtuple("Empty", "")


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    step: Any
    params: Any
    optimizer: Any


@jax.tree_util.register_pytree_node_class
class Pair:
    """A node that does not name its children."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right

    def tree_flatten(self) -> Any:
        return (self.left, self.right), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Pair:
        return cls(*children)


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Any:
    """Eight devices in two dimensions; JAX's own threads start here and not in a test."""
    return jax.make_mesh((4, 2), ("a", "b"))


@pytest.fixture(scope="module", autouse=True)
def kept_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    with keeping_pool(tmp_path_factory.mktemp("keeper")) as store:
        yield store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with open_store(tmp_path / "run") as store:
        yield store


def sharded(mesh: Any, spec: PartitionSpec, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return jax.device_put(np.random.default_rng(1).normal(size=shape).astype(dtype), NamedSharding(mesh, spec))


def like(array: Any, sharding: Any = None) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def same(found: Any, expected: Any) -> None:
    assert isinstance(found, jax.Array)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


PLACES = [
    ((8,), PartitionSpec("x")),
    ((2, 4), PartitionSpec("y", "x")),
    ((2, 4), PartitionSpec(None, ("x", "y"))),
    ((2, 4), PartitionSpec("y")),
    ((3,), PartitionSpec()),
    ((2,), PartitionSpec(None, "x")),
]


@pytest.mark.parametrize(("sides", "spec"), PLACES, ids=str)
def test_onto_another_mesh(store: CheckpointStore, mesh: Any, sides: tuple[int, ...], spec: PartitionSpec) -> None:
    state = {
        "w": sharded(mesh, PartitionSpec("a", "b"), (16, 24)),
        "half": sharded(mesh, PartitionSpec("b"), (16, 8, 2), jnp.bfloat16),  # on two devices, four times
        "one": sharded(mesh, PartitionSpec(), (8, 8), np.int8),
    }
    store.save(1, state)
    devices = jax.devices()[: int(np.prod(sides))]
    other = NamedSharding(jax.make_mesh(sides, ("x", "y")[: len(sides)], devices=devices), spec)
    found = restore(store, {name: like(array, other) for name, array in state.items()})
    for name, array in state.items():
        same(found[name], array)
        assert found[name].sharding == other
        assert found[name].committed
    for name, array in store.load().items():
        assert type(array) is np.ndarray
        assert (array == np.asarray(state[name])).all()


def test_arrays_as_targets_give_their_sharding(store: CheckpointStore, mesh: Any) -> None:
    state = {"w": sharded(mesh, PartitionSpec("a"), (8, 8)), "free": jnp.ones(3), "third": jnp.zeros(2)}
    state["third"] = jax.device_put(state["third"], jax.devices()[3])
    store.save(1, state)
    target = jax.tree.map(lambda array: array + 1, state)
    target["w"].delete()  # as after a donation: only its form counts
    found = restore(store, target)
    same(found["w"], state["w"])
    assert found["w"].sharding == target["w"].sharding
    assert found["third"].devices() == {jax.devices()[3]}
    assert (found["third"].committed, found["free"].committed) == (True, False)
    jax.jit(lambda a, b: a + b[0])(found["w"], found["free"])  # what is free follows the others


def test_what_is_restored_may_be_donated(store: CheckpointStore, mesh: Any) -> None:
    state = {"all": sharded(mesh, PartitionSpec(), (64, 64)), "one": jnp.arange(4096.0), "np": np.arange(4096)}
    store.save(1, state)
    for target in (state, None):
        found = restore(store, target)
        again = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(
            {"all": found["all"], "one": found["one"]}
        )
        assert found["all"].is_deleted()
        for shard in again["all"].addressable_shards:  # replicas may lie in the same memory before
            assert (np.asarray(shard.data) == np.asarray(state["all"]) + 1).all()
        assert (np.asarray(again["one"]) == np.arange(4096.0) + 1).all()
        assert (found["np"] == np.arange(4096)).all()


def test_any_pytree_comes_back_in_its_structure(store: CheckpointStore) -> None:
    state = TrainState(
        jnp.asarray(3),
        {"dense": [jnp.ones((2, 2)), (jnp.zeros(2), None)], "by": {7: jnp.arange(2)}},
        (Moments(jnp.ones(3), {"a": jnp.zeros(1)}), Empty(), Pair(jnp.ones(1), 2.5), [], {}, None),
    )
    store.save(1, plain(state))
    abstract = jax.eval_shape(lambda: TrainState(*vars(state).values()))
    abstract.optimizer[2].right = 1.0  # a number of Python stays one where the target has one
    found = restore(store, abstract)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert type(one) is type(other)
        assert (np.asarray(one) == np.asarray(other)).all()
    assert type(found.optimizer[0]) is Moments


def test_without_a_target_nodes_are_dicts(store: CheckpointStore) -> None:
    state = (Moments(jnp.ones(3), None), Empty(), Pair(1, "two"), collections.OrderedDict(b=1, a=jnp.asarray(2.0)))
    store.save(1, plain({"o": state}))
    found = restore(store)["o"]
    assert type(found) is tuple
    same(found[0]["mu"], jnp.ones(3))
    assert (found[0]["nu"], found[1], found[2]) == (None, {}, [1, "two"])
    assert type(found[3]) is collections.OrderedDict
    assert list(found[3]) == ["b", "a"]
    assert found[3]["a"].weak_type


def test_without_a_target_each_array_is_of_its_kind(store: CheckpointStore, mesh: Any) -> None:
    state = {
        "w": sharded(mesh, PartitionSpec("a"), (8, 8)),
        "np": np.arange(3),
        "i4": jnp.arange(4, dtype=jnp.int4),
        "key": jax.random.key(1),
        "weak": jnp.asarray(1.5),
        "text": "x" * 100_000,
    }
    store.save(1, state)
    found = restore(store)
    same(found["w"], state["w"])
    assert found["w"].devices() == {jax.devices()[0]}
    assert type(found["np"]) is np.ndarray
    same(found["i4"], state["i4"])
    assert found["key"].dtype == state["key"].dtype
    assert (found["weak"].weak_type, found["w"].weak_type) == (True, False)
    assert found["text"] == state["text"]


def test_weak_types_are_the_targets(store: CheckpointStore, mesh: Any) -> None:
    store.save(1, {"a": jnp.asarray(0.5), "b": jnp.float32(0.5), "c": jnp.ones(8)})
    sharding = NamedSharding(mesh, PartitionSpec("a"))
    weak = jax.ShapeDtypeStruct((8,), np.float32, weak_type=True, sharding=sharding)
    found = restore(store, {"a": jnp.float32(1), "b": jnp.asarray(1.0), "c": weak})
    assert [found[name].weak_type for name in "abc"] == [False, True, True]
    assert found["c"].sharding.spec == PartitionSpec("a")
    assert not found["b"].committed
    assert (jnp.bfloat16(1) * found["b"]).dtype == jnp.bfloat16


def test_typed_keys_onto_devices(store: CheckpointStore, mesh: Any) -> None:
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 8)
    store.save(1, {"keys": keys, "one": jax.random.key(0)})
    sharding = NamedSharding(mesh, PartitionSpec("a"))
    found = restore(store, {"keys": like(keys, sharding), "one": jax.eval_shape(lambda: jax.random.key(0))})
    assert found["keys"].sharding == sharding
    assert (jax.random.key_data(found["keys"]) == jax.random.key_data(keys)).all()
    assert (jax.random.key_data(found["one"]) == jax.random.key_data(jax.random.key(0))).all()


def test_numpy_and_python_targets(store: CheckpointStore) -> None:
    state = {
        "a": jnp.arange(6).reshape(2, 3), "s": np.float32(0.5), "n": 3, "t": "adam", "long": b"x" * 10_000,
        "u": np.str_("abc"),
    }  # fmt: skip
    store.save(1, state)
    target = {"a": np.zeros((2, 3), np.int32), "s": np.float32(0), "n": 0, "t": "", "long": b"", "u": np.str_("")}
    found = restore(store, target)
    assert type(found["a"]) is np.ndarray
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (type(found["s"]), float(found["s"])) == (np.float32, 0.5)
    for name in ("n", "t", "long", "u"):
        assert (type(found[name]), found[name]) == (type(state[name]), state[name])


def test_numbers_and_arrays_without_dimensions_stand_for_each_other(store: CheckpointStore) -> None:
    arrays = {"step": jnp.asarray(7), "yes": jnp.asarray(True), "half": jnp.bfloat16(1.5)}
    store.save(1, arrays | {"n": 7, "f": 0.5, "nan": float("nan")})
    numbers = {"step": 0, "yes": False, "half": 0.0}
    found = restore(store, numbers | {"n": jnp.asarray(0), "f": np.zeros((), np.float32), "nan": np.float32(0)})
    assert {name: type(found[name]) for name in ("step", "yes", "half")} == {"step": int, "yes": bool, "half": float}
    assert (found["step"], found["yes"], found["half"], float(found["f"])) == (7, True, 1.5, 0.5)
    assert (found["n"].dtype, int(found["n"]), found["n"].weak_type) == (np.int32, 7, True)
    assert type(found["nan"]) is np.float32
    assert np.isnan(found["nan"])


def test_all_that_does_not_fit_is_listed(store: CheckpointStore, mesh: Any) -> None:
    shape = jax.ShapeDtypeStruct
    store.save(
        1,
        {
            "ok": jnp.ones(3), "shape": jnp.ones((2, 3)), "dtype": jnp.ones(3), "gone": {"a": jnp.ones(1), "b": [1, 2]},
            "key": jax.random.key(0), "other": jax.random.key(0, impl="rbg"), "n": 3, "f": 0.1, "big": 1 << 40,
            "text": "adam", "sharding": jnp.ones(6), "rank": jnp.ones(8), "flag": True, "none": None,
            "many": (1.0, 2.0), "long": "x" * 100_000, "kept": jax.random.key(0), "lost": "y" * 100_000,
            "np": np.float16(1), "keys": jax.random.split(jax.random.key(0), 6), "list": jnp.ones(1),
        },
    )  # fmt: skip
    two = NamedSharding(mesh, PartitionSpec(None, "a"))
    target = {
        "ok": shape((3,), np.float32), "shape": shape((3, 2), np.float32), "dtype": shape((3,), np.int32),
        "key": shape((2,), np.uint32), "other": jax.random.key(0), "n": 2.5, "f": shape((), np.float32),
        "big": shape((), np.int32), "text": 1, "sharding": like(jnp.ones(6), NamedSharding(mesh, PartitionSpec("a"))),
        "rank": SimpleNamespace(shape=(8,), dtype=np.dtype("f4"), sharding=two), "flag": 1, "none": jnp.ones(1),
        "many": [1.0], "new": {"x": jnp.ones(2), "y": "text"}, "long": b"", "np": np.float32(1), "list": object(),
        "keys": like(jax.random.split(jax.random.key(0), 6), NamedSharding(mesh, PartitionSpec("a"))),
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        restore(store, target)
    first, *lines = str(caught.value).splitlines()
    assert first == "the target does not fit the checkpoint; nothing was read:"
    told = dict(line.strip().split(": ", 1) for line in lines)
    assert told.pop("state['sharding']").startswith("its sharding does not fit [6]: ")
    assert told.pop("state['rank']").startswith("its sharding does not fit [8]: ")
    assert told.pop("state['keys']").startswith("its sharding does not fit [6]: ")
    assert told == {
        "state['shape']": "stored float32 [2, 3], target float32 [3, 2]",
        "state['dtype']": "stored float32 [3], target int32 [3]",
        "state['key']": "stored key<fry> [], target uint32 [2]",
        "state['other']": "stored key<rbg> [], target key<fry> []",
        "state['n']": "stored int 3, target float",
        "state['f']": "stored float 0.1, which float32 cannot hold exactly",
        "state['big']": "stored int 1099511627776, which int32 cannot hold exactly",
        "state['text']": "stored str 'adam', target int",
        "state['flag']": "stored bool True, target int",
        "state['none']": "not in the checkpoint; target float32 [1]",
        "state['new']['x']": "not in the checkpoint; target float32 [2]",
        "state['new']['y']": "not in the checkpoint; target str",
        "state['long']": "stored str of 100000 bytes, target bytes",
        "state['np']": "stored float16 [], target float32 []",
        "state['list']": "stored float32 [1], target object",
        "state['gone']['a']": "not in the target; stored float32 [1]",
        "state['gone']['b'][0]": "not in the target; stored int 1",
        "state['gone']['b'][1]": "not in the target; stored int 2",
        "state['many'][1]": "not in the target; stored float 2.0",
        "state['kept']": "not in the target; stored a key of threefry2x32 []",
        "state['lost']": "not in the target; stored str of 100000 bytes",
    }


def test_a_thousand_problems_are_enough(store: CheckpointStore) -> None:
    store.save(1, {str(number): number for number in range(1500)})
    with pytest.raises(ConfigError, match=r"\.\.\. and 500 more$"):
        restore(store, {})


def test_wide_numbers_are_never_narrowed(store: CheckpointStore) -> None:
    with jax.enable_x64(True):
        state = {"w": jnp.arange(3.0), "n": jnp.arange(3)}
        assert state["w"].dtype == np.float64
        store.save(1, state)
        same(restore(store)["w"], state["w"])
        same(restore(store, {"w": state["w"], "n": np.zeros(3, np.int64)})["w"], state["w"])
    with pytest.raises(ConfigError, match=r"w: JAX narrows float64 unless jax_enable_x64"):
        restore(store)
    with pytest.raises(ConfigError, match=r"state\['w'\]: JAX narrows float64"):
        restore(store, {"w": jax.ShapeDtypeStruct((3,), np.float64), "n": np.zeros(3, np.int64)})
    assert store.load()["w"].dtype == np.float64


def test_meshes_without_devices(store: CheckpointStore, mesh: Any) -> None:
    state = {"w": sharded(mesh, PartitionSpec("a"), (8, 8))}
    store.save(1, state)
    abstract = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x * 2, tree), state)
    assert isinstance(abstract["w"].sharding.mesh, jax.sharding.AbstractMesh)
    with pytest.raises(ConfigError, match=r"state\['w'\]: its sharding has a mesh without devices"):
        restore(store, abstract)
    with jax.set_mesh(mesh):
        found = restore(store, abstract)
    same(found["w"], state["w"])
    assert found["w"].sharding.is_equivalent_to(state["w"].sharding, 2)


def test_a_tracer_is_no_target(store: CheckpointStore) -> None:
    store.save(1, {"w": jnp.ones(3), "n": 1})
    with pytest.raises(ConfigError, match=r"state\['w'\]: the target is a tracer"):
        jax.jit(lambda tree: restore(store, tree))({"w": jnp.ones(3), "n": 1})


def test_torch_values_have_no_place(store: CheckpointStore) -> None:
    import torch

    store.save(1, {"size": torch.Size([1, 2]), "w": torch.arange(3.0)})
    with pytest.raises(ConfigError, match=r"state\['size'\]: stored a torch size, which JAX has no place for"):
        restore(store, {"size": 1, "w": jnp.ones(3)})
    with pytest.raises(ConfigError, match=r"state\['w'\]: stored float32 \[3\], target torch.float32 \[3\]"):
        restore(store, {"size": 1, "w": torch.ones(3)})


def test_batches_hold_little(store: CheckpointStore, mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"w{number}": sharded(mesh, PartitionSpec("a"), (64, 16)) + number for number in range(6)} | {"n": 1}
    store.save(1, state)
    sizes = []
    inner = StateReader.read

    def read(self: StateReader, reads: Any) -> None:
        reads = list(reads)
        sizes.append(sum(each.memory.size for each in reads))
        inner(self, reads)

    monkeypatch.setattr(StateReader, "read", read)
    monkeypatch.setattr(restoring_module, "_BATCH", 10_000)
    found = restore(store, state)
    assert sizes == [2 * 4096] * 3
    for name, array in state.items():
        assert (np.asarray(found[name]) == np.asarray(array)).all()


def test_a_box_reads_its_rows_only(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.random.default_rng(2).integers(0, 255, (6, 2 * MIB), np.uint8)
    store.save(1, {"w": jnp.asarray(whole)})
    asked: list[tuple[int, int]] = []
    inner = ShardReader.pieces

    def pieces(self: ShardReader, record: Any, index: Any, wanted: list[Wanted]) -> None:
        asked.extend((each.start, each.stop) for each in wanted)
        inner(self, record, index, wanted)

    monkeypatch.setattr(ShardReader, "pieces", pieces)
    with store._open_checkpoint(None, None) as (manifest, reader):
        state = open_state(manifest, reader)
        read = state.memory(0, Box((2, 0), (3, 2 * MIB)))
        state.read([read])
        assert sum(stop - start for start, stop in asked) == 6 * MIB
        assert (state.array(read) == whole[2:5]).all()
        read = state.memory(0, Box((4, 5), (2, 9)))
        state.read([read])
        assert [stop - start for start, stop in asked[1:]] == [9, 9]  # what lies far apart is read apart
        assert (state.array(read) == whole[4:6, 5:14]).all()


def test_other_checkpoints_are_refused(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointNotFoundError):
        restore(store, {"w": jnp.ones(3)})
    store.save(1, b"payload")
    with pytest.raises(ConfigError, match="a payload of bytes"):
        restore(store, {"w": jnp.ones(3)})
    metas = [store.writer(2, rank).save_distributed_shard(2, 0, "jax", b"x") for rank in range(2)]
    store.writer(2, 0).finalize_distributed_checkpoint(2, 0, "jax", metas)
    with pytest.raises(ConfigError, match="saved by 2 ranks"):
        restore(store, step=2)


def test_targets_with_two_leaves_of_one_path(store: CheckpointStore) -> None:
    class Twins:
        pass

    def flatten_twins(_: Twins) -> Any:
        key = jax.tree_util.GetAttrKey("twin")
        return ((key, jnp.ones(1)), (key, jnp.ones(1))), None

    jax.tree_util.register_pytree_with_keys(Twins, flatten_twins, lambda *_: Twins())
    store.save(1, {"a": 1})
    with pytest.raises(ConfigError, match="two leaves of the target have the same path"):
        restore(store, Twins())
    with pytest.raises(ConfigError, match="Twins has two children of one name"):
        plain({"x": Twins()})


SPECS = [make_spec("jax", "uint32", (2,))]


@pytest.mark.parametrize(
    "tree",
    [
        {"dict": {"a": 5}}, {"prng_key": {"impl": "rbg", "data": 3}}, {"prng_key": 1}, 1.5, {}, {"a": 1, "b": 2},
        {"unheard": 1}, {"ints": ["x"]}, {"items": [{"int": 1}, 0, {"int": 1}, 0]},
        {"dict": []}, {"tuple": {"floats": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_trees_are_refused(tree: Any) -> None:
    with pytest.raises(ManifestError):
        stored_leaves(tree, SPECS)


def test_trees_too_deep_are_refused() -> None:
    tree: Any = 0
    for _ in range(70):
        tree = [tree]
    with pytest.raises(ManifestError, match="64 levels"):
        stored_leaves(tree, SPECS)
