"""Checkpoints of several ranks loaded elsewhere: by one process, by fewer ranks and by more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3dlio import CheckpointNotFoundError, CheckpointStore, ConfigError, CorruptError, DeadlineError, ManifestError
from s3dlio.coordination import council as councils
from s3dlio.coordination.boards import StoreCoordinator
from s3dlio.coordination.council import Council
from s3dlio.reader import ShardReader, Wanted
from tests.store.live import MIB, assert_same, in_forked_child, open_store, smooth_floats
from tests.store.worlds import world

WORLD = 3
SHARED: dict[str, Any] = {"w": smooth_floats(300_000), "deep": [smooth_floats(10), {"b": np.arange(7)}], "step": 7}


def state_of(rank: int) -> dict[str, Any]:
    return {**SHARED, "rng": np.full(10, rank), "rank": rank}


@pytest.fixture(autouse=True)
def pool(kept_pool: CheckpointStore) -> CheckpointStore:
    return kept_pool


@pytest.fixture
def saved(folder: Path) -> Iterator[CheckpointStore]:
    """A store with step 1 of ``WORLD`` ranks, of which one array and one number are each rank's own."""
    with world(f"file://{folder}", WORLD) as ranks:
        ranks.save(1, state_of)
    with open_store(folder) as store:
        yield store


@pytest.fixture
def alike(folder: Path) -> Iterator[CheckpointStore]:
    """The same of which nothing is a rank's own."""
    with world(f"file://{folder}", WORLD) as ranks:
        ranks.save(1, lambda _: SHARED)
    with open_store(folder) as store:
        yield store


def zeros(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: zeros(value) for key, value in state.items()}
    if isinstance(state, list):
        return [zeros(value) for value in state]
    return np.zeros_like(state) if isinstance(state, np.ndarray) else -1


OWN = r"each rank has saved its own rng, state\['rank'\]: pass rank= to say whose state you want, or names="


class TestByOneProcess:
    def test_what_is_shared_comes_whole(self, alike: CheckpointStore) -> None:
        assert_same(alike.load(), SHARED)

    def test_what_is_shared_fills_arrays(self, alike: CheckpointStore) -> None:
        target = zeros(SHARED)
        loaded = alike.load(into=target)
        assert_same(loaded, SHARED)
        assert loaded["w"] is target["w"]

    def test_what_is_each_ranks_is_listed_in_one_error(self, saved: CheckpointStore) -> None:
        for options in ({}, {"into": zeros(state_of(0))}):
            with pytest.raises(ConfigError, match=OWN):
                saved.load(**options)

    @pytest.mark.parametrize("rank", range(WORLD))
    def test_one_rank_may_be_chosen(self, saved: CheckpointStore, rank: int) -> None:
        assert_same(saved.load(rank=rank), state_of(rank))
        assert_same(saved.load(rank=rank, into=zeros(state_of(0))), state_of(rank))
        found = saved.load(rank=rank, names=["rng", "deep.*"])
        assert_same(found, {"rng": np.full(10, rank), "deep.0": SHARED["deep"][0], "deep.1.b": np.arange(7)})

    def test_what_is_shared_may_be_had_by_name(self, saved: CheckpointStore) -> None:
        assert_same(saved.load(names=["w", "deep.1.*"]), {"w": SHARED["w"], "deep.1.b": np.arange(7)})
        with pytest.raises(ConfigError, match="each rank has saved its own rng: pass rank="):
            saved.load(names="*")

    @pytest.mark.parametrize("options", [{}, {"names": "w"}, {"into": {}}], ids=["whole", "names", "into"])
    @pytest.mark.parametrize("rank", [WORLD, -1])
    def test_a_rank_outside_the_world_is_refused(
        self, saved: CheckpointStore, rank: int, options: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError, match=f"rank {rank} is outside the world of {WORLD} ranks of step 1"):
            saved.load(rank=rank, **options)

    def test_a_target_that_does_not_fit_is_told_all_at_once(self, saved: CheckpointStore) -> None:
        target = {**zeros(state_of(0)), "w": np.zeros(5, np.float32), "more": np.zeros(1), "deep": []}
        del target["rng"]
        with pytest.raises(ConfigError, match="nothing was written") as caught:
            saved.load(rank=0, into=target)
        for told in ("state['w']: stored float32 [300000], target float32 [5]", "state['rng']: missing in the target",
                     "state['more']: not in the checkpoint", "state['deep'][0]: missing"):  # fmt: skip
            assert told in str(caught.value)

    def test_payloads_need_a_rank(self, folder: Path) -> None:
        with world(f"file://{folder}", 2) as ranks:
            ranks.save(1, lambda rank: bytes([rank]) * 100)
        with open_store(folder) as store:
            with pytest.raises(ConfigError, match="step 1 was saved by 2 ranks: pass rank="):
                store.load()
            assert store.load(rank=1) == b"\1" * 100

    def test_only_what_is_asked_for_is_read(self, saved: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
        read: dict[int, int] = {}
        plain = ShardReader.pieces

        def pieces(self: ShardReader, record: Any, index: Any, wanted: list[Wanted]) -> None:
            read[record.rank] = sum(each.stop - each.start for each in wanted)
            plain(self, record, index, wanted)

        monkeypatch.setattr(ShardReader, "pieces", pieces)
        saved.load(names="deep.1.b")
        assert list(read.values()) == [56]
        read.clear()
        saved.load(rank=2, names="rng")
        assert read == {2: 80}

    def test_what_a_forked_child_writes_is_its_own(self, alike: CheckpointStore) -> None:
        for names in (None, "*"):
            array = alike.load(names=names)["w"]

            def clobber(array: Any = array) -> None:
                array[:] = -1

            in_forked_child(clobber)
            assert_same(array, SHARED["w"])

    def test_without_memory_for_it_nothing_is_read(
        self, alike: CheckpointStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alike.load()
        monkeypatch.setattr("s3dlio.engine.pool.headroom", lambda: MIB)
        with pytest.raises(MemoryError, match=r"the state of 3 ranks needs .* bytes of memory, .* are left"):
            alike.load()
        assert_same(alike.load(into=zeros(SHARED)), SHARED)

    @pytest.mark.parametrize("what", ["rank-1.bin", "rank-1.idx"])
    def test_damage_is_found(self, alike: CheckpointStore, folder: Path, what: str) -> None:
        (path,) = folder.rglob(what)
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        with pytest.raises((CorruptError, ManifestError), match="rank-1"):
            alike.load()

    def test_ranks_of_which_some_saved_bytes(self, saved: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """No save makes this: the index of one is that of a payload."""
        plain = ShardReader.index

        def index(self: ShardReader, record: Any) -> Any:
            found = plain(self, record)
            assert found is not None
            return replace(found, table=None) if record.rank == 1 else found

        monkeypatch.setattr(ShardReader, "index", index)
        with pytest.raises(ManifestError, match="some ranks of this checkpoint have saved a state, some a payload"):
            saved.load(rank=0)


class TestByOtherWorlds:
    @pytest.mark.parametrize("size", [2, 5])
    def test_what_is_shared_comes_to_all(self, alike: CheckpointStore, folder: Path, size: int) -> None:
        with world(f"file://{folder}", size) as ranks:
            for found in ranks.each(lambda rank: rank.load()):
                assert_same(found, SHARED)
            for found in ranks.each(lambda rank: rank.load(into=zeros(SHARED))):
                assert_same(found, SHARED)

    @pytest.mark.parametrize("size", [2, 5])
    def test_what_is_each_ranks_needs_a_rank(self, saved: CheckpointStore, folder: Path, size: int) -> None:
        with world(f"file://{folder}", size) as ranks:
            for end in ranks.ends(lambda rank: rank.load()):
                assert isinstance(end, ConfigError)
                assert re.match(OWN, str(end))
            for rank, found in enumerate(ranks.each(lambda rank: rank.load(rank=rank.rank % WORLD))):
                assert_same(found, state_of(rank % WORLD))
            for found in ranks.each(lambda rank: rank.load(names="deep*")):
                assert sorted(found) == ["deep.0", "deep.1.b"]

    def test_another_ranks_state_may_be_had(self, saved: CheckpointStore, folder: Path) -> None:
        with world(f"file://{folder}", WORLD) as ranks:
            for found in ranks.each(lambda rank: rank.load(rank=0)):
                assert_same(found, state_of(0))

    def test_a_checkpoint_of_one_process_comes_to_all(self, folder: Path) -> None:
        with world(f"file://{folder}", 2) as ranks:
            ranks[0].store.save(1, state_of(0), coordinator=None)
            for found in ranks.each(lambda rank: rank.load()):
                assert_same(found, state_of(0))


class TestTogether:
    def test_all_load_what_rank_0_finds(
        self, saved: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though another is committed before the others hear of it."""
        plain = Council.announce

        def late(council: Council, topic: str, word: bytes) -> None:
            saved.save(2, {"w": np.ones(2)})
            plain(council, topic, word)

        monkeypatch.setattr(Council, "announce", late)
        with world(f"file://{folder}", 2) as ranks:
            for found in ranks.each(lambda rank: rank.load(names="w")):
                assert_same(found, {"w": SHARED["w"]})

    def test_other_steps_are_refused_on_all(self, saved: CheckpointStore, folder: Path) -> None:
        with world(f"file://{folder}", 3) as ranks:
            for end in ranks.ends(lambda rank: rank.load([1, 2, 2][rank.rank])):
                assert isinstance(end, ConfigError)
                assert "the ranks load different steps: rank 0 1, ranks 1, 2 2" in str(end)

    def test_where_there_is_none_all_are_told(self, folder: Path) -> None:
        with world(f"file://{folder}", 3) as ranks:
            for step in (None, 4):
                for end in ranks.ends(lambda rank: rank.load(step)):  # noqa: B023
                    assert isinstance(end, CheckpointNotFoundError)

    def test_a_checkpoint_by_its_id_needs_no_talk(self, saved: CheckpointStore, folder: Path) -> None:
        info = saved.latest()
        assert info is not None
        with world(f"file://{folder}", 4) as ranks:
            assert_same(ranks[3].load(id=info.id, rank=1), state_of(1))

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_lone_rank_is_told_what_to_do(
        self, saved: CheckpointStore, folder: Path, rank: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(councils, "GRACE", 0.0)
        with world(f"file://{folder}", 2, rank_timeout=0.2) as ranks:
            with pytest.raises(
                DeadlineError, match="Pass coordinator=None where a rank saves or loads on its own"
            ) as e:
                ranks[rank].load()
            assert ("nothing was heard from rank 1 of 2" if rank == 0 else "rank 0 has announced nothing") in str(
                e.value
            )
            assert_same(ranks[rank].store.load(rank=rank, coordinator=None), state_of(rank))

    def test_a_rank_outside_its_own_world_is_refused(self, saved: CheckpointStore) -> None:
        for rank, size in ((2, 2), (-1, 2)):
            with pytest.raises(ConfigError, match="a run needs a name and a rank below"):
                saved.load(coordinator=StoreCoordinator("outside", rank, size))


def test_tensors_come_as_tensors(folder: Path) -> None:
    state = {
        "half": torch.arange(33, dtype=torch.bfloat16), "empty": torch.zeros(0, 4), "one": torch.tensor(3.5),
        "grad": torch.nn.Parameter(torch.ones(2, 2)), "same": torch.ones(5)[1:3],
    }  # fmt: skip
    with world(f"file://{folder}", 2) as ranks:
        ranks.save(1, lambda _: state)
    with open_store(folder) as store:
        found = store.load()
        for name, tensor in state.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found[name], tensor)
        assert isinstance(found["grad"], torch.nn.Parameter)
