"""A hundred background saves in flight at once, step after step: all commit, and nothing is held afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import CheckpointStore, Handle

from . import usage

MIB = 1 << 20
STORES = 4
STEPS = 3
"""Steps that are compared, after one to warm up."""
GROWTH = 12.0
"""MiB that the allocators of three processes may keep more of after the last step than after the first."""
COUNTS = [
    pytest.param(100, marks=[pytest.mark.stress, pytest.mark.timeout(300)], id="100"),
    pytest.param(16, marks=pytest.mark.slow, id="16"),
]


def state_of(step: int, number: int) -> dict[str, Any]:
    """4 MiB in three arrays and some plain values, different for each save."""
    key = step * 1000 + number
    return {
        "w": np.full(600_000, key, np.float32),
        "m": [np.arange(key, key + 400_000, dtype=np.int32), {"key": key}],
        "v": np.full(10, key, np.float64),
    }


def same(one: Any, other: Any) -> bool:
    return (
        np.array_equal(one["w"], other["w"])
        and np.array_equal(one["m"][0], other["m"][0])
        and one["m"][1] == other["m"][1]
        and np.array_equal(one["v"], other["v"])
    )


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[CheckpointStore]]:
    """Stores of several codecs and schemes on one pool, whose arena is far smaller than all states in flight."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                CheckpointStore(
                    f"{scheme}://{tmp_path}/{number}", memory=48 * MIB, workers=2, chunk_size=MIB, compression=codec
                )
            )
            for number, (scheme, codec) in enumerate(
                [("file", None), ("direct", None), ("file", "zstd-grouped"), ("file", "auto")]
            )
        ]


def run_step(stores: list[CheckpointStore], step: int, count: int) -> None:
    """Save ``count`` states at once; every second one is staged in the background. Then load them all and delete."""
    states = [state_of(step, number) for number in range(count)]
    handles: list[Handle] = []
    for number, state in enumerate(states):
        store = stores[number % STORES]
        handles.append(store.save_async(step * count + number, state, defer_staging=number % 2 == 1))
    infos = [handle.result(timeout=200) for handle in handles]
    assert len({info.id for info in infos}) == count
    assert all(handle.progress().phase == "committed" for handle in handles)
    for number, (info, state) in enumerate(zip(infos, states, strict=True)):
        assert same(stores[number % STORES].load(info.step), state)
    for store in stores:
        assert len(store.list()) == count // STORES
    for number, info in enumerate(infos):
        assert stores[number % STORES].delete(info.step)


@pytest.mark.parametrize("count", COUNTS)
def test_all_commit_and_nothing_is_held(stores: list[CheckpointStore], count: int) -> None:
    assert len({id(store._use_pool()) for store in stores}) == 1
    run_step(stores, 0, count)
    before = usage.take()
    for step in range(1, STEPS + 1):
        run_step(stores, step, count)
        after = usage.take()
        before.assert_flat(after, growth=GROWTH)
    arena = stores[0]._use_pool().arena
    assert arena.free == arena.slots


@pytest.mark.parametrize("count", COUNTS)
def test_a_hundred_saves_of_one_step_are_a_hundred_checkpoints(stores: list[CheckpointStore], count: int) -> None:
    store = stores[0]
    handles = [store.save_async(7, state_of(7, number), defer_staging=number % 2 == 1) for number in range(count)]
    ids = [handle.result(timeout=200).id for handle in handles]
    assert sorted(info.id for info in store.list()) == sorted(ids)
    newest = store.load(7)["m"][1]["key"] - 7000
    assert ids[newest] == store.info(7).id
    assert store.prune(1) == count - 1
    assert store.load()["m"][1]["key"] - 7000 == newest
