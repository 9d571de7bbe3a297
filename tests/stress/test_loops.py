"""Everything that a run does, over and over: what is held after the last round is what was held after the first."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3dlio import CancelledError, CheckpointStore, CorruptError

from . import usage

MIB = 1 << 20
WARM = 5
"""Rounds before the first measurement: caches fill, allocators settle."""
GROWTH = 12.0
"""MiB over three processes."""
OPTIONS: dict[str, Any] = {"memory": 32 * MIB, "workers": 2, "chunk_size": MIB, "keep_last": 2}
ROUNDS = [
    pytest.param(150, marks=[pytest.mark.stress, pytest.mark.timeout(300)], id="150"),
    pytest.param(10, marks=pytest.mark.slow, id="10"),
]


def one_round(store: CheckpointStore, folder: Path, step: int) -> None:
    """Save in every way, load in every way, fail in some."""
    state: dict[str, Any] = {
        "w": torch.full((500, 1000), float(step)),
        "b": np.full(100_000, step, np.int64),
        "more": [torch.full((3,), step, dtype=torch.bfloat16), "text" * 1000, step],
    }
    store.save(step, state, user_meta={"step": step})
    handle = store.save_async(step, state)
    given_up = store.save_async(step + 1, state, defer_staging=True)
    cancelled = given_up.cancel()
    handle.result(60)
    assert isinstance(given_up.exception(60), CancelledError) == cancelled
    if not cancelled:
        store.delete(step + 1)

    loaded = store.load()
    assert torch.equal(loaded["w"], state["w"])
    target: dict[str, Any] = {**state, "w": torch.zeros(500, 1000), "b": np.zeros(100_000, np.int64)}
    assert store.load(into=target)["w"] is target["w"]
    assert np.array_equal(target["b"], state["b"])
    assert store.load(names="b")["b"][5] == step
    assert store.verify().ok

    with store.writer(1, 0).get_distributed_shard_stream(step, 0, "bytes") as stream:
        stream.write_chunk(b"x" * 3 * MIB)
        if step % 2:
            record = stream.finalize()
            store.writer(1, 0).finalize_distributed_checkpoint(step, 0, "bytes", [record])
            assert len(store.load()) == 3 * MIB
    damage(store, folder, step)


def damage(store: CheckpointStore, folder: Path, step: int) -> None:
    """A load that fails keeps nothing either."""
    info = store.save(step + 2, b"y" * 2 * MIB)
    (shard,) = folder.glob(f"shards/{info.id}/rank-0.bin*")
    with shard.open("r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2")
    with pytest.raises(CorruptError):
        store.load(step + 2)
    store.delete(step + 2)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("codec", ["none", "zstd", "auto"])
def test_rounds_in_one_store_leave_nothing(tmp_path: Path, rounds: int, codec: str) -> None:
    folder = tmp_path / "run"
    with CheckpointStore(f"file://{folder}", compression=codec, **OPTIONS) as store:
        for step in range(WARM):
            one_round(store, folder, step * 10)
        before = usage.take()
        for step in range(WARM, WARM + rounds):
            one_round(store, folder, step * 10)
        before.assert_flat(usage.take(), growth=GROWTH)
        assert 1 <= len(store.list()) <= 2  # keep_last, less what the last round deleted
        assert len(list(folder.rglob("*"))) < 40
        arena = store._use_pool().arena
        assert arena.free == arena.slots


@pytest.mark.parametrize("rounds", ROUNDS)
def test_stores_opened_and_closed_leave_nothing(tmp_path: Path, rounds: int) -> None:
    folder = tmp_path / "run"
    none = before = usage.take()
    for step in range(max(WARM + 3, rounds // 5)):
        with CheckpointStore(f"file://{folder}", **OPTIONS) as store:
            one_round(store, folder, step * 10)
        del store
        gc.collect()
        if step == WARM - 1:
            before = usage.take()
            assert before.processes == none.processes
    before.assert_flat(usage.take(), growth=GROWTH)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_kept_arrays_are_all_that_is_kept(tmp_path: Path, rounds: int) -> None:
    """A kept array pins its shard and no more; let go, all of it is freed."""
    with CheckpointStore(f"file://{tmp_path}/run", **OPTIONS) as store:
        store.save(1, {"w": np.zeros(MIB, np.uint8), "b": np.ones(10)})
        store.load()
        before = usage.take()
        kept = [store.load()["b"] for _ in range(rounds)]
        during = usage.take()
        assert during.fds <= before.fds + rounds
        assert all((array == 1).all() for array in kept)
        del kept
        before.assert_flat(usage.take(), growth=GROWTH)
