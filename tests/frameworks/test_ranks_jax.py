"""Arrays of JAX over several processes through ``store.save``: each stores what is its own, anybody loads all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from s3dlio import CheckpointStore, ConfigError
from s3dlio.frameworks.jax import restore
from s3dlio.state_reader import open_state
from tests.frameworks.test_jax_processes import run
from tests.store.live import SMALL

pytestmark = pytest.mark.slow

PROGRAM = """
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from s3dlio import CheckpointStore, ConfigError
    from s3dlio.frameworks.jax import Checkpointer, restore

    address, rank, uri = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    mesh = jax.make_mesh((2, 2), ("host", "device"))

    def put(value, spec, over=mesh):
        sharding = NamedSharding(over, spec)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    random = np.random.default_rng(0)
    whole = {
        "rows": random.normal(size=(8, 6)).astype(np.float32),
        "half": random.normal(size=(16, 3)).astype(jnp.bfloat16),
        "float8": random.normal(size=(4, 10)).astype(jnp.float8_e4m3fn),
        "here": random.integers(0, 99, (6, 5), np.int32),
        "all": random.normal(size=(40, 5)).astype(np.float32),
        "once": np.float32(2.5),
        "corners": random.integers(0, 99, (4, 4), np.int16),
        "none": np.zeros((0, 4), np.float32),
    }
    specs = {
        "rows": P("host", "device"), "half": P("host"), "float8": P(("host", "device")), "here": P("device"),
        "all": P(), "once": P(), "corners": P("device", "host"), "none": P(None, "device"),
    }
    def made(zeros=False):
        return {name: put(np.zeros_like(value) if zeros else value, specs[name]) for name, value in whole.items()}

    told = {}
    with CheckpointStore(uri, memory=64 << 20, workers=1, chunk_size=1 << 20) as store:
        arrays = made()
        told["addressable"] = {name: array.is_fully_addressable for name, array in arrays.items()}
        keys = jax.random.split(jax.random.key(3), 4)
        spread = jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(keys)), P("device")))
        state = {"arrays": arrays, "own": np.full(7, rank), "rank": rank, "step": 5}
        handle = store.save_async(1, state)
        for array in arrays.values():
            array.delete()
        told["id"] = handle.result(60).id
        store.save(2, {"arrays": made(), "keys": spread})

        # what each had comes back to it, as NumPy
        found = store.load(1)
        assert found["rank"] == rank and (found["own"] == rank).all()
        for name, value in whole.items():
            assert found["arrays"][name].dtype == value.dtype and found["arrays"][name].shape == value.shape
            assert found["arrays"][name].tobytes() == value.tobytes(), name

        # onto other meshes
        row = jax.make_mesh((4,), ("x",))
        column = jax.make_mesh((2, 2), ("a", "b"))
        for over, spec in ((row, P("x")), (row, P(None, "x")), (column, P("b")), (column, P(("b", "a")))):
            target = {
                name: jax.ShapeDtypeStruct(
                    value.shape, value.dtype, sharding=NamedSharding(over, spec if name == "corners" else P())
                )
                for name, value in whole.items()
            }
            kind = jax.ShapeDtypeStruct((4,), keys.dtype, sharding=NamedSharding(row, P("x")))
            target = {"arrays": target, "keys": kind}
            again = restore(store, target, 2)
            for name, value in whole.items():
                array = again["arrays"][name]
                assert array.sharding == target["arrays"][name].sharding
                for shard in array.addressable_shards:
                    assert np.asarray(shard.data).tobytes() == value[shard.index].tobytes(), name
            for shard in jax.random.key_data(again["keys"]).addressable_shards:
                assert (np.asarray(shard.data) == np.asarray(jax.random.key_data(keys))[shard.index]).all()
        like = made(zeros=True)
        again = restore(store, {"arrays": like, "keys": spread}, 2)
        assert all(again["arrays"][name].sharding == like[name].sharding for name in whole)

        # a target that does not fit, on all
        try:
            restore(store, {"arrays": {**like, "rows": like["here"]}, "keys": spread, "more": like["all"]}, 2)
        except ConfigError as error:
            told["refused"] = str(error)
        try:
            store.save(3, {"w": like["rows"] if rank else like["here"]})
        except ConfigError as error:
            told["disagree"] = str(error)
        told["steps"] = [info.step for info in store.list()]
    with Checkpointer(uri + "/orbax", memory=64 << 20, workers=1, chunk_size=1 << 20) as checkpointer:
        checkpointer.save(1, {"arrays": made()})
        checkpointer.wait_until_finished()
        again = checkpointer.restore(target={"arrays": like})
        assert all((np.asarray(shard.data) == whole["rows"][shard.index]).all()
                   for shard in again["arrays"]["rows"].addressable_shards)
    print("TOLD" + json.dumps(told))
"""


def whole() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "rows": random.normal(size=(8, 6)).astype(np.float32),
        "half": random.normal(size=(16, 3)).astype(ml_dtypes.bfloat16),
        "float8": random.normal(size=(4, 10)).astype(ml_dtypes.float8_e4m3fn),
        "here": random.integers(0, 99, (6, 5), np.int32),
        "all": random.normal(size=(40, 5)).astype(np.float32),
        "once": np.array(2.5, np.float32),
        "corners": random.integers(0, 99, (4, 4), np.int16),
        "none": np.zeros((0, 4), np.float32),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have saved."""
    place = tmp_path_factory.mktemp("ranks")
    one, other = run(PROGRAM, f"file://{place}/run")
    assert one["id"] == other["id"]
    assert one["addressable"] == dict.fromkeys(whole(), False), "every array lies on both processes"
    for told in (one, other):
        assert told["steps"] == [1, 2]
        for text in ("rows", "more"):
            assert text in told["refused"]
        assert "the state of rank 1 has other arrays than that of rank 0" in told["disagree"]
    return place


@pytest.fixture
def store(place: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(f"file://{place}/run", **SMALL) as store:
        yield store


def test_one_process_loads_numpy(store: CheckpointStore) -> None:
    found = store.load(1, rank=1)
    assert (found["rank"], found["step"]) == (1, 5)
    assert (found["own"] == 1).all()
    for name, value in whole().items():
        assert (found["arrays"][name].dtype, found["arrays"][name].shape) == (value.dtype, value.shape)
        assert found["arrays"][name].tobytes() == value.tobytes()
    with pytest.raises(ConfigError, match=r"each rank has saved its own own, state\['rank'\]"):
        store.load(1)
    target = {name: np.zeros_like(value) for name, value in whole().items()}
    loaded = store.load(1, rank=0, into={"arrays": target, "own": np.zeros(7, np.int64)})
    assert loaded["arrays"]["half"] is target["half"]
    for name, value in whole().items():
        assert target[name].tobytes() == value.tobytes()


def test_one_process_restores_onto_its_devices(store: CheckpointStore) -> None:
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    plain = NamedSharding(mesh, PartitionSpec())
    target = {
        "arrays": {
            name: jax.ShapeDtypeStruct(
                value.shape, value.dtype, sharding=sharding if name in ("rows", "half") else plain
            )
            for name, value in whole().items()
        },
        "keys": jax.ShapeDtypeStruct((4,), jax.random.key(0).dtype, sharding=plain),
    }
    found = restore(store, target, 2)
    for name, value in whole().items():
        assert found["arrays"][name].sharding == target["arrays"][name].sharding
        assert np.asarray(found["arrays"][name]).tobytes() == value.tobytes()
    assert (found["keys"] == jax.random.split(jax.random.key(3), 4)).all()
    assert jnp.issubdtype(found["keys"].dtype, jax.dtypes.prng_key)


def test_each_process_has_stored_its_own_once(place: Path, store: CheckpointStore) -> None:
    info = store.info(2)
    data = {
        path.name: path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
        for path in place.rglob(f"{info.id}/rank-*.bin")
    }
    keys = 4 * 2 * 4
    assert sum(data.values()) == sum(value.nbytes for value in whole().values()) + keys
    with store._open_checkpoint(2, None) as (manifest, reader):
        state = open_state(manifest, reader)
        places = {name: state._merged.places(index) for index, name in enumerate(state.names)}
    for name, shards in {"rows": {0, 1}, "half": {0, 1}, "float8": {0, 1}, "here": {0}, "corners": {0, 1}}.items():
        assert {each.shard for each in places[f"arrays.{name}"]} == shards, name
    assert len(places["arrays.all"]) == len(places["arrays.once"]) == 1
