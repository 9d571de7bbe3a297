"""Ranks that save one checkpoint together: what is stored, by whom, when each goes on, and what each is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3dlio import CheckpointStore, S3dlioError
from s3dlio.catalog import find
from s3dlio.handle import Handle
from s3dlio.info import CheckpointInfo
from tests.servers.s3_server import Bucket
from tests.store.live import MIB, assert_same, contents, random_bytes, smooth_floats
from tests.store.worlds import Rank, World, world

WORLD = 3


@pytest.fixture(autouse=True)
def pool(kept_pool: CheckpointStore) -> CheckpointStore:
    return kept_pool


@pytest.fixture
def ranks(folder: Path) -> Iterator[World]:
    with world(f"file://{folder}", WORLD) as made:
        yield made


def shared() -> dict[str, Any]:
    """What all ranks hold alike: arrays of many sizes."""
    return {f"w{number}": smooth_floats(1 + number * 20_000) + np.float32(number) for number in range(12)}


def state_of(rank: int) -> dict[str, Any]:
    return {
        "model": shared(),
        "tensor": torch.arange(1000.0),
        "rng": np.random.default_rng(rank).integers(0, 1 << 40, 100),
        "rank": rank,
        "step": 7,
        "note": f"of {rank}" * 2000,
    }


def shards(folder: Path) -> dict[int, bytes]:
    """The bytes of each rank's shard of the only checkpoint."""
    return {
        int(name.rpartition("rank-")[2].removesuffix(".bin")): data
        for name, data in contents(folder).items()
        if name.endswith(".bin")
    }


def head_size(shard: bytes) -> int:
    return 8 + int.from_bytes(shard[:8], "little")


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert_same(found, expected)


class TestStored:
    def test_replicas_are_stored_once_and_by_all_alike(self, ranks: World, folder: Path) -> None:
        ranks.save(1, lambda _: shared())
        stored = {rank: len(data) - head_size(data) for rank, data in shards(folder).items()}
        sizes = [array.nbytes for array in shared().values()]
        assert sum(stored.values()) == sum(sizes)
        assert max(stored.values()) - min(stored.values()) <= max(sizes)

    def test_what_differs_is_stored_by_each(self, ranks: World, folder: Path) -> None:
        ranks.save(1, lambda rank: {"rng": np.full(1000, rank), "same": np.ones(3)})
        assert all(b"rng" in data[: head_size(data)] for data in shards(folder).values())
        assert sum(b"same" in data[: head_size(data)] for data in shards(folder).values()) == 1

    def test_every_rank_gets_its_own_back(self, ranks: World) -> None:
        ranks.save(1, state_of)
        for rank, state in enumerate(ranks.each(lambda rank: rank.load())):
            same(state, state_of(rank))

    def test_payloads_are_of_each_rank(self, ranks: World) -> None:
        payloads = [random_bytes(1000 + 3 * MIB * rank, rank) for rank in range(WORLD)]
        ranks.save(1, lambda rank: payloads[rank])
        assert [bytes(found) for found in ranks.each(lambda rank: rank.load())] == payloads

    @pytest.mark.parametrize(
        "states",
        [[b""] * 3, [b"", b"x", b""], [{}] * 3, [{"n": 0}, {"n": 1}, {"n": 2}], [[None], [None], [None]]],
        ids=["empty", "one-empty", "nothing", "numbers", "none"],
    )
    def test_states_without_arrays(self, ranks: World, states: list[Any]) -> None:
        ranks.save(1, lambda rank: states[rank])
        assert ranks.each(lambda rank: rank.load()) == states

    @pytest.mark.parametrize("codec", ["zstd", "zstd-grouped", "auto"])
    def test_encoded(self, folder: Path, codec: str) -> None:
        with world(f"file://{folder}", WORLD, compression=codec) as ranks:
            (info, *_) = ranks.save(1, lambda rank: {"a": smooth_floats(900_000), "b": smooth_floats(400_000) + rank})
            assert info.raw_size is not None
            assert codec == "auto" or info.total_size < info.raw_size
            assert info.raw_size < 4 * (900_000 + 3 * 400_000) + 3000
            for rank, state in enumerate(ranks.each(lambda rank: rank.load())):
                assert_same(state, {"a": smooth_floats(900_000), "b": smooth_floats(400_000) + rank})

    def test_ties_hold_over_ranks(self, ranks: World) -> None:
        def tied(_: int) -> Any:
            weight = torch.arange(500.0)
            return {"embed": weight, "head": weight, "other": torch.arange(500.0)}

        ranks.save(1, tied)
        for found in ranks.each(lambda rank: rank.load()):
            assert found["embed"].data_ptr() == found["head"].data_ptr()
            same(found, tied(0))
        assert (find(ranks[0].store.control(), 1).raw_size or 0) < 3 * 2000 + 3 * 600

    def test_what_is_stored_is_verified(self, ranks: World) -> None:
        ranks.save(1, state_of)
        assert ranks[0].store.verify().shards == WORLD

    @pytest.mark.slow
    def test_a_state_larger_than_the_arena_streams(self, folder: Path) -> None:
        """It is agreed on before it is copied, then copied as it is stored."""

        def large(rank: int) -> dict[str, Any]:
            return {f"w{number}": smooth_floats(600_000) + np.float32(number) for number in range(10)} | {
                "own": np.full(700_000, float(rank))
            }

        with world(f"file://{folder}", WORLD, memory=8 * MIB) as ranks:
            for step, options in enumerate([{}, {"defer_staging": True}]):
                handles = ranks.each(lambda rank: rank.save_async(step, large(rank.rank), **options))  # noqa: B023
                assert len({handle.result(60).id for handle in handles}) == 1
            for rank, state in enumerate(ranks.each(lambda rank: rank.load())):
                assert_same(state, large(rank))
            info = ranks[0].store.latest()
            assert info is not None
            assert info.total_size < 10 * 2_400_000 + 3 * 5_600_000 + 5000

    @pytest.mark.slow
    def test_on_s3(self, s3_bucket: Bucket) -> None:
        with world(f"{s3_bucket.uri}/run", WORLD, options=s3_bucket.options) as ranks:
            ranks.save(1, state_of)
            for rank, state in enumerate(ranks.each(lambda rank: rank.load())):
                same(state, state_of(rank))
            assert ranks[0].store.verify().shards == WORLD
            ranks.save(2, lambda rank: random_bytes(6 * MIB, rank))
            assert [bytes(found) for found in ranks.each(lambda rank: rank.load())] == [
                random_bytes(6 * MIB, rank) for rank in range(WORLD)
            ]
        assert not s3_bucket.uploads()


class TestTold:
    def test_all_ranks_are_told_the_same(self, ranks: World) -> None:
        infos = ranks.each(
            lambda rank: rank.save(5, state_of(rank.rank), epoch=rank.rank, user_meta={"loss": rank.rank + 0.5})
        )
        assert infos == [ranks[0].store.latest()] * WORLD
        info = infos[0]
        assert (info.step, info.epoch, info.user_meta, info.world_size) == (5, 0, {"loss": 0.5}, WORLD)
        assert info.framework == "pytorch"
        assert {shard.epoch for shard in find(ranks[0].store.control(), 5).shards} == {0}

    def test_a_label_is_that_of_all(self, ranks: World) -> None:
        assert {info.label for info in ranks.save(5, state_of, id="attempt-2")} == {"attempt-2"}

    def test_a_handle_learns_the_name_that_rank_0_gave(self, ranks: World) -> None:
        handles = ranks.each(lambda rank: rank.save_async(1, state_of(rank.rank)))
        (name,) = {handle.result(60).id for handle in handles}
        assert all(name in repr(handle) for handle in handles)
        assert {handle.progress().phase for handle in handles} == {"committed"}

    def test_progress_counts_what_the_rank_stores(self, ranks: World, folder: Path) -> None:
        handles = ranks.each(lambda rank: rank.save_async(1, state_of(rank.rank)))
        for rank, handle in enumerate(handles):
            handle.result(60)
            size = len(shards(folder)[rank])
            progress = handle.progress()
            assert (progress.staged, progress.stored, progress.total) == (size, size, size)


class TestInTheBackground:
    def test_a_rank_goes_on_before_others_have_called(self, ranks: World) -> None:
        state = state_of(1)
        handle = ranks[1].save_async(1, state)
        handle.wait_staged(0)
        state["model"]["w5"][:] = -1
        state["rng"][:] = -1
        state["tensor"].zero_()
        assert not handle.done()
        rest = [ranks[rank].save_async(1, state_of(rank)) for rank in (2, 0)]
        (_,) = {each.result(60).id for each in (handle, *rest)}
        for rank, found in enumerate(ranks.each(lambda rank: rank.load())):
            same(found, state_of(rank))

    def test_several_saves_are_in_flight(self, ranks: World) -> None:
        handles: dict[tuple[int, int], Handle] = {}
        for rank in (2, 0, 1):
            for step in range(4):
                handles[rank, step] = ranks[rank].save_async(step, {"w": smooth_floats(300_000) + step, "r": rank})
        for step in (3, 0, 2, 1):
            (info,) = {handles[rank, step].result(60).id for rank in range(WORLD)}
            assert info.startswith(f"ckpt-{step}-")
        assert [info.step for info in ranks[0].store.list()] == [0, 1, 2, 3]
        for rank, found in enumerate(ranks.each(lambda rank: rank.load(2))):
            assert_same(found, {"w": smooth_floats(300_000) + 2, "r": rank})

    def test_more_saves_than_the_arena_holds(self, folder: Path) -> None:
        """Whichever save has to wait for memory, those before it end without it."""
        with world(f"file://{folder}", 2, memory=12 * MIB) as ranks:

            def run(rank: Rank) -> list[CheckpointInfo]:
                handles = [
                    rank.save_async(step, {"w": smooth_floats(1_000_000) + step, "r": rank.rank}) for step in range(5)
                ]
                return [handle.result(60) for handle in handles]

            (one, other) = ranks.each(run)
            assert one == other
            for step in range(5):
                for rank, found in enumerate(ranks.each(lambda rank: rank.load(step))):  # noqa: B023
                    assert_same(found, {"w": smooth_floats(1_000_000) + step, "r": rank})

    def test_staging_may_be_deferred(self, ranks: World) -> None:
        handles = ranks.each(lambda rank: rank.save_async(1, state_of(rank.rank), defer_staging=True))
        for handle in handles:
            handle.wait_staged(60)
        (_,) = {handle.result(60).id for handle in handles}
        for rank, found in enumerate(ranks.each(lambda rank: rank.load())):
            same(found, state_of(rank))

    def test_older_ones_are_pruned_by_one_rank(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pruned: list[str] = []
        plain = CheckpointStore._prune

        def prune(store: CheckpointStore, control: Any, keep_last: int) -> int:
            pruned.append(threading.current_thread().name)
            return plain(store, control, keep_last)

        monkeypatch.setattr(CheckpointStore, "_prune", prune)
        with world(f"file://{folder}", WORLD, keep_last=1) as ranks:
            for step in range(3):
                ranks.save(step, state_of)
            ranks.each(lambda rank: rank.load())
            assert [info.step for info in ranks[0].store.list()] == [2]
        assert len(pruned) == 3
        assert {Path(name).parent.name[:7] for name in contents(folder) if name.startswith("shards")} == {"ckpt-2-"}

    def test_a_callback_may_not_wait(self, ranks: World, caplog: pytest.LogCaptureFixture) -> None:
        """It is called in a thread that ends saves: closing would wait for that very thread."""
        refused: list[BaseException] = []

        def close(_: Handle) -> None:
            try:
                ranks[0].store.close()
            except S3dlioError as error:
                refused.append(error)

        first = ranks[0].save_async(1, {"w": np.ones(3)})
        first.add_done_callback(close)
        rest = [ranks[rank].save_async(1, {"w": np.ones(3)}) for rank in (1, 2)]
        for handle in (first, *rest):
            handle.result(60)
        with caplog.at_level(logging.ERROR):
            ranks[0].store.close()
        assert "cannot wait for a save or close a store" in str(refused)


class TestJobs:
    def test_two_on_one_place(self, folder: Path) -> None:
        """Neither hears the other; both commit."""
        with world(f"file://{folder}", 2, run="a") as one, world(f"file://{folder}", 2, run="b") as other:
            handles = [
                rank.save_async(step, {"w": np.full(9, step), "r": rank.rank})
                for step, job in ((1, one), (2, other))
                for rank in job
            ]
            for handle in handles:
                handle.result(60)
            assert [info.step for info in one[0].store.list()] == [1, 2]
            found = one.each(lambda rank: rank.load(2)) + other.each(lambda rank: rank.load(1))
            assert [(state["w"][0], state["r"]) for state in found] == [(2, 0), (2, 1), (1, 0), (1, 1)]

    def test_saves_alone_beside_those_of_all(self, ranks: World) -> None:
        ranks.save(1, state_of)
        ranks[1].store.save(2, {"alone": 1}, coordinator=None)
        ranks.save(3, state_of)
        assert [(info.step, info.world_size) for info in ranks[0].store.list()] == [(1, 3), (2, 1), (3, 3)]
        assert ranks.each(lambda rank: rank.load(2)) == [{"alone": 1}] * WORLD

    def test_a_store_opened_later_goes_on(self, folder: Path) -> None:
        """The words of a run are counted in its process, not in a store."""
        for step in range(2):
            with world(f"file://{folder}", 2, run="goes-on") as ranks:
                ranks.save(step, lambda rank: {"w": np.full(5, rank)})
        with world(f"file://{folder}", 2, run="goes-on") as ranks:
            assert [found["w"][0] for found in ranks.each(lambda rank: rank.load())] == [0, 1]
