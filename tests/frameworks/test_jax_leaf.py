"""Arrays of JAX as leaves: every dtype, shards, keys, what is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import define_prng_impl
from jax.sharding import NamedSharding, PartitionSpec

from s3dlio.engine.errors import ConfigError, ManifestError, UnsupportedError
from s3dlio.tensors import dtypes, flatten, parse_table, plan_into, restore, restore_named, select
from s3dlio.tensors.jax_leaf import HostShards, addressable_pieces
from tests.tensors.shards import address_of, again, filled_numpy, image_of, save

ROOT = Path(__file__).parents[2]
DTYPES = (
    "bool int2 int4 int8 int16 int32 uint2 uint4 uint8 uint16 uint32 float16 bfloat16 float32 complex64 "
    "float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
    "float8_e8m0fnu float4_e2m1fn"
).split()
WIDE = "int64 uint64 float64 complex128".split()
NARROW = ("int2", "int4", "uint2", "uint4", "float4_e2m1fn")
SHAPES: list[tuple[int, ...]] = [(), (1,), (0,), (5,), (3, 4), (2, 0, 3), (2, 3, 4)]


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Any:
    """Eight devices in two dimensions; JAX's own threads start here and not in a test."""
    return jax.make_mesh((4, 2), ("a", "b"))


def filled(dtype: str, shape: tuple[int, ...], seed: int) -> Any:
    """Random bits as a NumPy array; of elements smaller than a byte, random values."""
    if dtype in NARROW:
        return filled_numpy(np.uint8, shape, seed).astype(np.int8).astype(np.float32).astype(jnp.dtype(dtype))
    return filled_numpy(jnp.dtype(dtype), shape, seed)


def check(dtype: str) -> None:
    arrays = [jnp.asarray(filled(dtype, shape, seed)) for seed, shape in enumerate(SHAPES)]
    for array, back in zip(arrays, again(arrays), strict=True):
        assert type(back) is np.ndarray
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.dtype == jnp.dtype(dtype)
        assert back.tobytes() == np.asarray(array).tobytes()
        assert back.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_come_back_to_the_bit(dtype: str) -> None:
    check(dtype)


@pytest.mark.parametrize("dtype", WIDE)
def test_wide_dtypes_come_back_to_the_bit(dtype: str) -> None:
    with jax.enable_x64(True):
        check(dtype)


SPECS = [
    PartitionSpec("a"),
    PartitionSpec(None, "b"),
    PartitionSpec("b", "a"),
    PartitionSpec(("a", "b")),
    PartitionSpec(None, None, "a"),
    PartitionSpec(),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "complex64"])
def test_shards_lie_at_their_place_of_the_whole(mesh: Any, spec: PartitionSpec, dtype: str) -> None:
    whole = filled(dtype, (8, 8, 4), 3)
    array = jax.device_put(whole, NamedSharding(mesh, spec))
    assert len(array.addressable_shards) == 8
    leaf = flatten(array).leaves[0]
    assert image_of(leaf) == whole.tobytes()
    for step in (1, 7, 100):  # ranges of any size, that cut elements, in any order
        memory = bytearray(leaf.nbytes)
        for start in reversed(range(0, leaf.nbytes, step)):
            leaf.copy_to(address_of(memory) + start, start, min(leaf.nbytes, start + step))
        assert memory == whole.tobytes()


def test_first_replicas_cover_the_array_once(mesh: Any) -> None:
    whole = np.arange(64, dtype=np.float32).reshape(8, 8)
    for spec, count in ((PartitionSpec("a"), 4), (PartitionSpec(), 1), (PartitionSpec("b", "a"), 8)):
        pieces = addressable_pieces(jax.device_put(whole, NamedSharding(mesh, spec)))
        assert len(pieces) == count
        seen = np.zeros((8, 8), int)
        for piece in pieces:
            assert (piece.shape, piece.dtype) == ((8, 8), "float32")
            place = tuple(slice(at, at + size) for at, size in zip(piece.box.offsets, piece.box.sizes, strict=True))
            assert (np.asarray(piece.data) == whole[place]).all()
            seen[place] += 1
        assert (seen == 1).all()
    with pytest.raises(TypeError, match="key<fry>"):
        addressable_pieces(jax.random.key(0))


def test_no_copy_on_the_host_is_kept(mesh: Any) -> None:
    array = jax.device_put(filled("int4", (8, 8), 1), NamedSharding(mesh, PartitionSpec("a")))  # a copy, even on a CPU
    source = flatten(array).leaves[0].source
    assert isinstance(source, HostShards)
    memory = bytearray(64)
    source.copy_to("x", address_of(memory), 0, 40)  # two shards and a half
    assert list(source._held) == [2]
    source.copy_to("x", address_of(memory) + 40, 40, 64)
    assert not source._held
    assert all(shard.data._npy_value is None for shard in array.addressable_shards)


def test_only_shards_of_the_range_are_brought_over(mesh: Any) -> None:
    array = jax.device_put(np.arange(64, dtype=np.uint8), NamedSharding(mesh, PartitionSpec("a")))
    source = flatten(array).leaves[0].source
    source.copy_to("x", address_of(memory := bytearray(8)), 20, 28)
    assert list(source._held) == [1]
    assert memory == bytes(range(20, 28))


def test_one_array_twice_is_one_leaf() -> None:
    array, key = jnp.arange(3), jax.random.key(1)
    saved = save({"a": array, "b": [array], "k": key, "l": key, "other": jnp.arange(3)})
    assert saved.table.names == ["a", "k", "other"]
    assert saved.table.aliases == {"b.0": 0, "l": 1}


def test_weak_types_are_recorded() -> None:
    saved = save([jnp.asarray(1.0), jnp.float32(1.0)])
    assert [spec.form for spec in saved.table.specs] == ["jax-weak", "jax"]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_come_back_typed(mesh: Any, impl: str) -> None:
    key = jax.random.key(7, impl=impl)
    many = jax.device_put(jax.random.split(key, 8), NamedSharding(mesh, PartitionSpec("a")))
    back = again({"one": key, "many": many})
    for name, made in (("one", key), ("many", many)):
        assert back[name].dtype == made.dtype
        assert (jax.random.key_data(back[name]) == np.asarray(jax.random.key_data(made))).all()


def test_key_data_can_be_had_by_name() -> None:
    key = jax.random.key(7)
    saved = save({"rng": key})
    selection = select(saved.table, "rng")
    piece = selection.pieces[0]
    memory = saved.data[piece.start : piece.stop].ljust(selection.size, b"\0")
    found = restore_named(saved.table, selection, memory)
    assert (found["rng"] == np.asarray(jax.random.key_data(key))).all()


def test_keys_need_jax_and_say_so() -> None:
    script = """
        import sys
        sys.modules["jax"] = None
        from s3dlio.engine.errors import DependencyError
        from s3dlio.tensors import parse_table, restore
        raw = {"names": ["a"], "specs": [["jax", "uint32", [2]]], "spec": [0], "offsets": [0], "aliases": {}}
        table = parse_table(raw, 8)
        assert restore(0, table, bytearray(8)).tolist() == [0, 0]
        try:
            restore({"prng_key": {"impl": "rbg", "data": 0}}, table, bytearray(8))
        except DependencyError as error:
            assert "s3dlio[jax]" in str(error), error
        else:
            raise AssertionError
        try:
            import s3dlio.frameworks.jax
        except DependencyError as error:
            assert "s3dlio[jax]" in str(error), error
        else:
            raise AssertionError
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def damaged(change: dict[str, Any]) -> None:
    saved = save(jax.random.key(0))
    restore({"prng_key": saved.tree["prng_key"] | change}, saved.table, saved.data)


@pytest.mark.parametrize(
    "change",
    [{"impl": 3}, {"data": "x"}, {"data": None}, {"data": 5}, {"impl": "unheard of"}, {"impl": "rbg"}],
    ids=str,
)
def test_malformed_keys_are_refused(change: dict[str, Any]) -> None:
    damaged({})
    with pytest.raises(ManifestError):
        damaged(change)


def test_deleted_and_donated_arrays_are_named() -> None:
    given = jnp.ones(4)
    jax.jit(lambda x: x + 1, donate_argnums=0)(given)
    with pytest.raises(UnsupportedError, match=r"state\['model'\]\[1\]: .* donated to a jitted function"):
        flatten({"model": [jnp.ones(1), given]})
    key = jax.random.key(0)
    key.delete()
    with pytest.raises(UnsupportedError, match=r"state\['k'\]: .*deleted"):
        flatten({"k": key})


def test_donated_before_it_is_copied() -> None:
    array = jnp.ones(4)
    leaf = flatten({"w": array}).leaves[0]
    array.delete()
    with pytest.raises(UnsupportedError, match=r"w: .* after wait_staged"):
        image_of(leaf)


def test_deleted_while_it_is_copied(mesh: Any) -> None:
    array = jax.device_put(np.arange(64, dtype=np.uint8), NamedSharding(mesh, PartitionSpec("a")))
    leaf = flatten({"w": array}).leaves[0]
    memory = bytearray(64)
    leaf.copy_to(address_of(memory), 0, 8)
    array.delete()
    with pytest.raises(UnsupportedError, match=r"w: .* donated"):
        leaf.copy_to(address_of(memory) + 32, 32, 64)


def test_tracers_are_named() -> None:
    def step(x: Any, key: Any) -> Any:
        flatten({"loss": x})
        return x

    with pytest.raises(UnsupportedError, match=r"state\['loss'\]: a tracer"):
        jax.jit(step)(jnp.ones(2), None)
    with pytest.raises(UnsupportedError, match=r"state: a tracer"):
        jax.vmap(flatten)(jax.random.split(jax.random.key(0)))


def test_sums_that_were_not_made_are_refused() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        left = jax.device_put(np.ones((4, 8), np.float32), NamedSharding(mesh, PartitionSpec(None, "x")))
        right = jax.device_put(np.ones((8, 4), np.float32), NamedSharding(mesh, PartitionSpec("x", None)))
        out = PartitionSpec(None, None, unreduced={"x"})
        total = jax.jit(lambda a, b: jnp.einsum("ij,jk->ik", a, b, out_sharding=out))(left, right)
    with pytest.raises(UnsupportedError, match=r"state\['grads'\]: .*unreduced"):
        flatten({"grads": total})


def test_a_computation_that_failed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = flatten({"w": jnp.ones(3)}).leaves[0]

    def fail(*_: object) -> Any:  # on a CPU what fails does so when it is called; on others, when it is asked for
        raise RuntimeError("INTERNAL: no such luck")

    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", fail)
    with pytest.raises(UnsupportedError, match=r"w: its value cannot be had: INTERNAL: no such luck"):
        image_of(leaf)


def test_generators_without_a_name_are_refused() -> None:
    own = define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jnp.zeros(2, np.uint32),
        split=lambda key, shape: jnp.zeros((*shape, 2), np.uint32),
        random_bits=lambda key, width, shape: jnp.zeros(shape, np.uint32),
        fold_in=lambda key, data: key,
        name="own",
        tag="own",
    )
    with pytest.raises(UnsupportedError, match=r"state\['k'\]: keys of .* store jax.random.key_data"):
        flatten({"k": jax.random.key(0, impl=own)})


def test_dtypes_of_a_newer_jax_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(dtypes.PLAIN, "int4")
    with pytest.raises(UnsupportedError, match=r"state\['w'\]: dtype int4 cannot be stored"):
        flatten({"w": jnp.zeros(3, jnp.int4)})


def test_dimensions_have_an_end() -> None:
    with pytest.raises(UnsupportedError, match=r"state\['w'\]: 65 dimensions"):
        flatten({"w": jnp.ones(1).reshape((1,) * 65)})


def test_arrays_of_jax_are_no_targets_in_place() -> None:
    saved = save({"w": jnp.ones(3), "k": jax.random.key(0), "n": 1})
    with pytest.raises(ConfigError) as caught:
        plan_into(saved.tree, saved.table, {"w": jnp.ones(3), "k": jax.random.key(0), "n": jnp.ones(())})
    assert str(caught.value).count("s3dlio.frameworks.jax.restore") == 2
    plain = save({"w": jnp.ones(3)})
    target = {"w": np.zeros(3, np.float32)}
    plan = plan_into(plain.tree, plain.table, target)
    for each in plan.targets:
        start, stop = plain.table.range(each.index)
        each.copy_from(address_of(plain.data) + start, 0, stop - start)
    assert plan.finish()["w"] is target["w"]
    assert target["w"].tolist() == [1, 1, 1]


def test_a_table_may_hold_what_jax_cannot_be() -> None:
    raw = {"names": ["a"], "specs": [["jax-weak", "nonsense", [1]]], "spec": [0], "offsets": [0], "aliases": {}}
    with pytest.raises(ManifestError, match="nonsense"):
        parse_table(raw, 8)
