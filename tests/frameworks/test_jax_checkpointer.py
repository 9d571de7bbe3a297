"""The verbs that users of Orbax know, over a real store."""

from __future__ import annotations

import collections
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from s3dlio import CheckpointStore
from s3dlio.engine.errors import DeadlineError, PoolClosedError, StorageError, UnsupportedError
from s3dlio.frameworks.jax import Checkpointer
from tests.store.live import MIB, SMALL, keeping_pool, workers_stopped

Moments = collections.namedtuple("Moments", "mu nu")


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Any:
    """Eight devices in two dimensions; JAX's own threads start here and not in a test."""
    return jax.make_mesh((4, 2), ("a", "b"))


@pytest.fixture(scope="module", autouse=True)
def kept_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    with keeping_pool(tmp_path_factory.mktemp("keeper")) as store:
        yield store


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(f"file://{tmp_path}/run", keep_last=3, **SMALL) as made:
        yield made


def tree(value: float) -> Any:
    return {"params": jnp.full((4, 4), value), "opt": (Moments(jnp.zeros(2), None),), "step": int(value)}


def test_steps_come_and_go(checkpointer: Checkpointer) -> None:
    assert (checkpointer.latest_step(), checkpointer.all_steps()) == (None, [])
    info = checkpointer.save(10, tree(1), user_meta={"loss": 0.5})
    assert (info.framework, info.user_meta, info.step) == ("jax", {"loss": 0.5}, 10)
    checkpointer.save_async(20, tree(2)).result()
    checkpointer.save(20, tree(3))
    checkpointer.save(15, tree(4))  # rolled back
    assert checkpointer.latest_step() == 15
    assert checkpointer.all_steps() == [20, 15]  # the three that keep_last keeps
    assert checkpointer.restore()["step"] == 4
    assert checkpointer.restore(20)["step"] == 3
    found = checkpointer.restore(target=tree(0))
    assert type(found["opt"][0]) is Moments
    assert (found["params"] == 4).all()
    assert "run" in repr(checkpointer)


def test_the_state_may_be_donated_once_save_async_returns(checkpointer: Checkpointer, mesh: Any) -> None:
    whole = np.arange(64 * 1024, dtype=np.float32).reshape(64, 1024)
    state = {
        "w": jax.device_put(whole, NamedSharding(mesh, PartitionSpec("a", "b"))),
        "r": jax.device_put(whole, NamedSharding(mesh, PartitionSpec())),
        "one": jnp.asarray(whole),
    }
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    checkpointer.save(0, {})  # what follows needs no answer of the workers
    with workers_stopped(checkpointer.store):
        handle = checkpointer.save_async(1, state)
        given = state
        state = jax.block_until_ready(step(state))
        assert all(array.is_deleted() for array in jax.tree.leaves(given))
    handle.result()
    for found in checkpointer.restore(1).values():
        assert (np.asarray(found) == whole).all()


def test_several_saves_in_flight(checkpointer: Checkpointer) -> None:
    checkpointer.save(0, {})
    with workers_stopped(checkpointer.store):
        handles = [checkpointer.save_async(step, tree(step)) for step in (1, 2, 3)]
        assert not any(handle.done() for handle in handles)
        with pytest.raises(DeadlineError, match=r"ckpt-\d-.* is not committed after 0.01 s"):
            checkpointer.wait_until_finished(timeout=0.01)
    checkpointer.wait_until_finished()
    assert [handle.result(0).step for handle in handles] == [1, 2, 3]
    assert checkpointer.all_steps() == [1, 2, 3]


def break_store(checkpointer: Checkpointer, tmp_path: Path) -> None:
    """From now on every write fails: where the shards go is a file."""
    shutil.rmtree(tmp_path / "run" / "shards")
    (tmp_path / "run" / "shards").write_bytes(b"")


def test_a_failure_is_raised_later_and_once(checkpointer: Checkpointer, tmp_path: Path) -> None:
    checkpointer.save(0, tree(0))
    break_store(checkpointer, tmp_path)
    handle = checkpointer.save_async(1, tree(1))
    with pytest.raises(StorageError, match="shards"):
        checkpointer.wait_until_finished()
    checkpointer.wait_until_finished()
    with pytest.raises(StorageError, match="shards"):
        handle.result()
    assert checkpointer.latest_step() == 0


def test_a_failure_that_nobody_asked_for_is_raised_at_the_end(tmp_path: Path) -> None:
    checkpointer = Checkpointer(f"file://{tmp_path}/run", **SMALL)
    checkpointer.save(0, tree(0))
    break_store(checkpointer, tmp_path)
    checkpointer.save_async(1, tree(1))
    with pytest.raises(StorageError, match="shards"):
        checkpointer.close()
    with pytest.raises(PoolClosedError):
        checkpointer.save_async(2, tree(2))
    with pytest.raises(StorageError), Checkpointer(f"file://{tmp_path}/run", **SMALL) as other:
        other.save_async(1, tree(1))


def test_what_cannot_be_saved_is_named_at_once(checkpointer: Checkpointer) -> None:
    given = jnp.ones(3)
    given.delete()
    with pytest.raises(UnsupportedError, match=r"state\['opt'\]\['mu'\]: .*donated"):
        checkpointer.save_async(1, {"opt": Moments(given, None)})
    with pytest.raises(UnsupportedError, match=r"state\['f'\]: functions"):
        checkpointer.save(1, {"f": jnp.sin})
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(UnsupportedError, match="64 containers"):
        checkpointer.save(1, circle)
    assert checkpointer.all_steps() == []


def test_large_sharded_arrays_cross_chunks(checkpointer: Checkpointer, mesh: Any) -> None:
    whole = np.random.default_rng(5).integers(0, 1 << 30, (512, 3 * MIB // 1024), np.int32)
    for spec in (PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))):
        array = jax.device_put(whole, NamedSharding(mesh, spec))
        checkpointer.save(1, [array])
        other = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
        (found,) = checkpointer.restore(target=[jax.ShapeDtypeStruct(whole.shape, np.int32, sharding=other)])
        assert (np.asarray(found) == whole).all()
        (found,) = checkpointer.restore(target=[array])
        assert (np.asarray(found) == whole).all()
