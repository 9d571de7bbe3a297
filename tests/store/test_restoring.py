"""The three ways of ``load``: whole and zero-copy, into what exists, and by name."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3dlio import CheckpointStore, ConfigError, CorruptError, MemoryLimitError, NotFoundError
from s3dlio.engine.messages import Fetch

from .live import MIB, assert_same, in_forked_child, index_of, open_store, random_bytes, smooth_floats

_NAMES_AND_INTO: list[dict[str, Any]] = [{"names": "*"}, {"into": {}}]
CODECS = ["none", "zstd", "zstd-grouped"]


def make_state(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "model": {
            "a": rng.integers(0, 9, (500, 700), np.int32),
            "b": smooth_floats(400_000),
            "empty": np.zeros((0, 3), np.float64),
            "scalar": np.float32(seed + 0.5),
        },
        "opt": [rng.standard_normal(3), {"step": seed}],
        "text": "é" * (seed + 3),
    }


def zeros_like(state: Any) -> Any:
    """The same structure with arrays of zeros and other scalars."""
    if isinstance(state, dict):
        return {key: zeros_like(value) for key, value in state.items()}
    if isinstance(state, list):
        return [zeros_like(value) for value in state]
    return np.zeros_like(state) if isinstance(state, np.ndarray) else state


@pytest.fixture(params=CODECS)
def saved(request: pytest.FixtureRequest, kept_pool: CheckpointStore, folder: Path) -> Any:
    """A store with ``make_state(1)`` at step 1."""
    with open_store(folder, compression=request.param) as store:
        store.save(1, make_state(1))
        yield store


class TestWhole:
    def test_is_what_was_saved(self, saved: CheckpointStore) -> None:
        assert_same(saved.load(), make_state(1))
        assert_same(saved.load(1), make_state(1))
        assert_same(saved.load(rank=0), make_state(1))

    def test_gives_writable_arrays_of_its_own(self, saved: CheckpointStore) -> None:
        one, two = saved.load(), saved.load()
        one["model"]["a"][:] = 77
        assert_same(two, make_state(1))
        assert_same(saved.load(), make_state(1))

    def test_outlives_the_store(self, kept_pool: CheckpointStore, folder: Path) -> None:
        with open_store(folder, workers=1) as store:
            store.save(1, make_state(1))
            array = store.load()["model"]["a"]
            tensor = torch.from_numpy(store.load()["model"]["b"])
        del store
        gc.collect()
        np.testing.assert_array_equal(array, make_state(1)["model"]["a"])
        assert torch.equal(tensor, torch.from_numpy(smooth_floats(400_000)))
        array += 1

    def test_arrays_are_views_of_one_memory(self, saved: CheckpointStore) -> None:
        model = saved.load()["model"]

        def owner(array: Any) -> Any:
            while isinstance(array.base, np.ndarray):
                array = array.base
            return array.base.obj if isinstance(array.base, memoryview) else array.base

        assert owner(model["a"]) is owner(model["b"])
        assert not model["a"].flags.owndata

    def test_a_forked_child_writes_to_its_own_copy(self, saved: CheckpointStore) -> None:
        array = saved.load()["model"]["a"]

        def child() -> None:
            array[:] = 5
            assert (array == 5).all()

        in_forked_child(child)
        np.testing.assert_array_equal(array, make_state(1)["model"]["a"])

    def test_a_forked_child_loads_with_workers_of_its_own(self, saved: CheckpointStore) -> None:
        def child() -> None:
            assert_same(saved.load(), make_state(1))
            saved.save(2, {"child": True})
            saved.close()

        in_forked_child(child)
        assert saved.load() == {"child": True}

    def test_torch_tensors_keep_the_memory_alive(self, kept_pool: CheckpointStore, folder: Path) -> None:
        state = {"w": torch.arange(300_000, dtype=torch.bfloat16), "p": torch.nn.Parameter(torch.ones(5))}
        with open_store(folder) as store:
            store.save(1, state)
            loaded = store.load()
        gc.collect()
        assert torch.equal(loaded["w"], state["w"])
        assert type(loaded["p"]) is torch.nn.Parameter
        loaded["w"].zero_()

    def test_needs_memory_for_all_of_it(self, saved: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("s3dlio.engine.pool.headroom", lambda: 3_000_000)  # twice the array, less than the state
        message = r"needs \d+ bytes of memory, 3000000 are left: free memory, or load with"
        with pytest.raises(MemoryLimitError, match=message):
            saved.load()
        assert saved.load(names="model.a")["model.a"].shape == (500, 700)
        monkeypatch.setattr("s3dlio.engine.pool.headroom", lambda: 1000)
        with pytest.raises(MemoryLimitError, match="bytes of memory, 1000 are left"):
            saved.load(names="model.a")

    def test_a_step_that_is_not_there_is_named(self, saved: CheckpointStore) -> None:
        with pytest.raises(NotFoundError, match="no committed checkpoint of step 7; the newest steps there: 1"):
            saved.load(7)
        with pytest.raises(ConfigError, match="step must be 0 or more"):
            saved.load(-1)
        with pytest.raises(ConfigError, match="rank 3 is outside the world of 1 ranks of step 1"):
            saved.load(rank=3)

    def test_an_empty_store_says_so(self, store: CheckpointStore) -> None:
        with pytest.raises(NotFoundError, match=f"{re.escape(store.uri)} holds no committed checkpoint"):
            store.load()


class TestPayload:
    @pytest.mark.parametrize("codec", [*CODECS, "auto"])
    def test_comes_back_bytes_like(self, kept_pool: CheckpointStore, folder: Path, codec: str) -> None:
        data = random_bytes(MIB) + b"text" * MIB
        with open_store(folder, compression=codec) as store:
            store.save(1, data)
            loaded = store.load()
            assert store.read_shard() == data
        assert loaded == data
        assert loaded[5:9] == data[5:9]
        assert loaded.to_bytes() == data
        assert np.frombuffer(loaded, np.uint8).nbytes == len(data)

    def test_has_no_names_and_fills_nothing(self, store: CheckpointStore) -> None:
        store.save(1, b"payload")
        for options in _NAMES_AND_INTO:
            with pytest.raises(
                ConfigError, match=r"is a payload of bytes, not a state with names: load it without (na|in)"
            ):
                store.load(**options)


class TestInto:
    def test_fills_the_arrays_that_are_there(self, saved: CheckpointStore) -> None:
        target = zeros_like(make_state(1))
        array = target["model"]["a"]
        loaded = saved.load(into=target)
        assert_same(loaded, make_state(1))
        assert loaded["model"]["a"] is array
        np.testing.assert_array_equal(array, make_state(1)["model"]["a"])

    def test_fills_what_is_not_contiguous(self, saved: CheckpointStore) -> None:
        target = zeros_like(make_state(1))
        target["model"]["a"] = np.zeros((700, 500), np.int32).T
        target["model"]["b"] = np.zeros(800_000, np.float32)[::2]
        assert_same(saved.load(into=target), make_state(1))

    def test_fills_torch_tensors(self, store: CheckpointStore) -> None:
        module = torch.nn.Linear(300, 400)
        store.save(1, module.state_dict())
        other = torch.nn.Linear(300, 400)
        store.load(into=other.state_dict())
        assert torch.equal(other.weight, module.weight)
        assert torch.equal(other.bias, module.bias)

    def test_names_everything_that_does_not_fit_and_writes_nothing(self, saved: CheckpointStore) -> None:
        target = zeros_like(make_state(1))
        target["model"]["a"] = np.zeros((500, 701), np.int32)
        target["model"]["b"] = np.zeros(400_000, np.float64)
        target["more"] = np.zeros(1)
        del target["opt"]
        with pytest.raises(ConfigError) as caught:
            saved.load(into=target)
        told = str(caught.value)
        assert "stored int32 [500, 700], target int32 [500, 701]" in told
        assert "stored float32 [400000], target float64 [400000]" in told
        assert "state['more']: not in the checkpoint" in told
        assert "state['opt']: missing in the target" in told
        assert not target["model"]["b"].any()

    def test_reads_large_chunks_with_a_pool_of_smaller_ones(self, tmp_path: Path) -> None:
        with open_store(tmp_path, workers=1, chunk_size=4 * MIB, compression="zstd") as store:
            store.save(1, make_state(1))
            assert max(chunk.raw_size for chunk in index_of(store, 1).chunks) > MIB
        with open_store(tmp_path) as store:
            assert_same(store.load(into=zeros_like(make_state(1))), make_state(1))
            assert_same(store.load(names="model.b")["model.b"], make_state(1)["model"]["b"])
            assert_same(store.load(), make_state(1))
            assert store.verify().ok

    def test_reads_small_chunks_with_a_pool_of_larger_ones(self, saved: CheckpointStore, folder: Path) -> None:
        with open_store(folder, workers=1, chunk_size=4 * MIB) as store:
            assert_same(store.load(into=zeros_like(make_state(1))), make_state(1))
            assert_same(store.load(), make_state(1))


class TestNames:
    def test_gives_the_matching_arrays_by_name(self, saved: CheckpointStore) -> None:
        state = make_state(1)
        assert_same(saved.load(names="model.a"), {"model.a": state["model"]["a"]})
        found = saved.load(names=["model.*", "opt.0"])
        assert set(found) == {"model.a", "model.b", "model.empty", "opt.0"}
        assert_same(found["model.b"], state["model"]["b"])
        assert_same(found["model.empty"], state["model"]["empty"])
        assert_same(found["opt.0"], state["opt"][0])

    def test_are_writable_and_outlive_the_store(self, kept_pool: CheckpointStore, folder: Path) -> None:
        with open_store(folder) as store:
            store.save(1, make_state(1))
            found = store.load(names="model.a")
        gc.collect()
        found["model.a"] += 1
        np.testing.assert_array_equal(found["model.a"], make_state(1)["model"]["a"] + 1)

    @pytest.mark.parametrize("names", ["modell.a", ["model.a", "nothing*"]])
    def test_that_match_nothing_are_refused(self, saved: CheckpointStore, names: Any) -> None:
        with pytest.raises(ConfigError, match=r"no array is named '(modell\.a|nothing\*)'"):
            saved.load(names=names)

    def test_that_are_no_strings_are_refused(self, saved: CheckpointStore) -> None:
        with pytest.raises(ConfigError, match="names= takes a glob or a list of globs"):
            saved.load(names=[1])  # type: ignore[list-item]

    def test_none_at_all_give_nothing(self, saved: CheckpointStore) -> None:
        assert saved.load(names=[]) == {}

    def test_read_only_the_chunks_that_hold_them(
        self, kept_pool: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_store(folder) as store:
            store.save(
                1, {"a": np.zeros(4 * MIB, np.uint8), "b": np.ones(3, np.uint8), "c": np.zeros(4 * MIB, np.uint8)}
            )
            pool = store._use_pool()
            ranges: list[tuple[int, int]] = []
            run = pool.run

            def watch(task: Any) -> Any:
                if isinstance(task, Fetch):
                    ranges.append((task.offset, task.stored))
                return run(task)

            monkeypatch.setattr(pool, "run", watch)
            assert_same(store.load(names="b"), {"b": np.ones(3, np.uint8)})
            assert len(ranges) == 1
            assert ranges[0][1] <= MIB

    def test_tied_weights_answer_to_each_name(self, store: CheckpointStore) -> None:
        weight = torch.arange(6.0)
        store.save(1, {"emb": weight, "head": weight})
        found = store.load(names=["emb", "head"])
        assert found["emb"] is found["head"]
        assert store.load(names="head")["head"].tolist() == weight.tolist()


class TestDamage:
    @pytest.mark.parametrize("how", ["whole", "into", "names", "verify", "read_shard"])
    def test_a_flipped_bit_is_never_loaded(self, saved: CheckpointStore, folder: Path, how: str) -> None:
        (shard,) = folder.glob("shards/*/rank-0.bin*")
        flip(shard, shard.stat().st_size - 1000)
        calls: dict[str, Any] = {
            "whole": saved.load,
            "into": lambda: saved.load(into=zeros_like(make_state(1))),
            "names": lambda: saved.load(names="*"),
            "verify": saved.verify,
            "read_shard": saved.read_shard,
        }
        with pytest.raises(CorruptError, match=r"rank-0\.bin"):
            calls[how]()

    @pytest.mark.parametrize("how", ["load", "verify"])
    def test_a_truncated_shard_is_never_loaded(self, saved: CheckpointStore, folder: Path, how: str) -> None:
        (shard,) = folder.glob("shards/*/rank-0.bin*")
        os.truncate(shard, shard.stat().st_size - 1)
        with pytest.raises(CorruptError, match=r"rank-0\.bin"):
            getattr(saved, how)()

    @pytest.mark.parametrize("name", ["rank-0.idx", "rank-0.bin*"])
    def test_a_missing_object_is_named(self, saved: CheckpointStore, folder: Path, name: str) -> None:
        (path,) = folder.glob(f"shards/*/{name}")
        path.unlink()
        with pytest.raises(NotFoundError, match=path.name.replace(".", r"\.")):
            saved.load()

    def test_a_damaged_index_is_told(self, saved: CheckpointStore, folder: Path) -> None:
        (path,) = folder.glob("shards/*/rank-0.idx")
        flip(path, 40)
        with pytest.raises(CorruptError, match=r"rank-0\.idx is damaged"):
            saved.load()

    def test_an_older_checkpoint_is_loaded_by_its_step(self, saved: CheckpointStore, folder: Path) -> None:
        info = saved.save(2, make_state(2))
        (shard,) = folder.glob(f"shards/{info.id}/rank-0.bin*")
        flip(shard, 5000)
        with pytest.raises(CorruptError):
            saved.load()
        assert_same(saved.load(1), make_state(1))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


DTYPES = ["u1", "<i2", "<i8", "<f4", "<f8", "<c8", "?", "<f2", ">i4", "<M8[s]"]
arrays = st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 255)).map(
    lambda parts: (
        np.full(int(np.prod(parts[1])) * np.dtype(parts[0]).itemsize, parts[2] % 2, np.uint8)
        .view(parts[0])
        .reshape(parts[1])
    )
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.binary(max_size=8)
)
trees = st.recursive(
    arrays | scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=5), trees, max_size=4), st.sampled_from([*CODECS, "auto"]))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_comes_back(kept_pool: CheckpointStore, folder: Path, state: dict[str, Any], codec: str) -> None:
    with open_store(folder, compression=codec, keep_last=1) as store:
        store.save(1, state)
        assert_same(store.load(), state)
        assert store.verify().ok
