"""Whatever keeps one rank from saving fails the save on every rank, and nothing is committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import CancelledError, CheckpointStore, ConfigError, S3dlioError, StorageError
from s3dlio.engine.capture import Capture
from s3dlio.engine.errors import MemoryLimitError, UnsupportedError
from s3dlio.group_content import GroupContent
from s3dlio.group_saver import GroupSave
from s3dlio.saving import Save
from s3dlio.strategy import Strategy
from s3dlio.writer import ShardWriter
from tests.engine.live import all_free
from tests.store.group_checks import WORLD, failed, goes_on, lies_there, nothing_of, save_all, state_of
from tests.store.live import assert_same
from tests.store.worlds import Rank, World, world


@pytest.fixture
def ranks(kept_pool: CheckpointStore, folder: Path) -> Iterator[World]:
    """A world whose step 0 is committed; afterwards its pool has every slot back."""
    with world(f"file://{folder}", WORLD) as made:
        made.save(0, state_of)
        yield made
        assert all_free(kept_pool._use_pool())


def on(broken: int, plain: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """``plain``, which raises instead in the thread of a rank that saves; see ``worlds``."""

    def method(*args: Any, **options: Any) -> Any:
        if threading.current_thread().name == f"rank-{broken}":
            raise error
        return plain(*args, **options)

    return method


@pytest.mark.parametrize("broken", [0, 1, 2])
class TestARankFails:
    def test_on_what_cannot_be_stored(self, ranks: World, folder: Path, broken: int) -> None:
        def save(rank: Rank) -> Any:
            state = state_of(rank.rank)
            return rank.save(1, {**state, "bad": [object()]} if rank.rank == broken else state)

        ends = ranks.ends(save)
        failed(ends, UnsupportedError, "state['bad'][0]")
        failed([end for rank, end in enumerate(ends) if rank != broken and broken], UnsupportedError, f"rank {broken}")
        nothing_of(ranks, folder)
        goes_on(ranks)

    def test_on_its_arguments(self, ranks: World, folder: Path, broken: int) -> None:
        ends = ranks.ends(
            lambda rank: rank.save(1, state_of(rank.rank), epoch=-1 if rank.rank == broken else 0)
        )  # fmt: skip
        failed(ends, ConfigError, "epoch must be an integer of 0 or more, not -1")
        nothing_of(ranks, folder)
        goes_on(ranks)

    @pytest.mark.parametrize("deferred", [False, True])
    def test_before_staging(
        self, ranks: World, folder: Path, broken: int, deferred: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = GroupSave.stage

        def stage(group: GroupSave) -> None:
            if group._council.rank == broken:
                raise OSError("the memory is gone")
            plain(group)

        with monkeypatch.context() as patch:
            patch.setattr(GroupSave, "stage", stage)
            ends = ranks.ends(lambda rank: rank.save_async(1, state_of(rank.rank), defer_staging=deferred).result(60))
        assert isinstance(ends[broken], OSError)
        others = [end for rank, end in enumerate(ends) if rank != broken]
        failed(others, S3dlioError, "OSError: the memory is gone")
        nothing_of(ranks, folder)
        goes_on(ranks)

    def test_while_copying(self, ranks: World, folder: Path, broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            plain = Capture.fill
            patch.setattr(Capture, "fill", on(broken, plain, OSError("the array is gone")))
            ends = ranks.ends(save_all)
        assert isinstance(ends[broken], OSError)
        failed([end for rank, end in enumerate(ends) if rank != broken], S3dlioError, "the array is gone")
        nothing_of(ranks, folder)
        goes_on(ranks)

    def test_while_comparing(self, ranks: World, folder: Path, broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = GroupContent.hello

        def hello(content: GroupContent, step: int, *args: Any) -> Any:
            if step == 1 and content.flat is not None and content.flat.tree["dict"]["rank"] == {"int": broken}:
                raise OSError("a bit fell over")
            return plain(content, step, *args)

        with monkeypatch.context() as patch:
            patch.setattr(GroupContent, "hello", hello)
            ends = ranks.ends(save_all)
        assert isinstance(ends[broken], OSError)
        failed([end for rank, end in enumerate(ends) if rank != broken], S3dlioError, "a bit fell over")
        nothing_of(ranks, folder)
        goes_on(ranks)

    def test_while_storing(self, folder: Path, broken: int) -> None:
        """The folder of its shards is a file."""
        strategies = ["flat" if rank != broken else "binary" for rank in range(WORLD)]
        with world(f"file://{folder}", WORLD) as ranks:
            for rank, strategy in zip(ranks, strategies, strict=True):
                object.__setattr__(rank.store.config, "strategy", Strategy.parse(strategy))
            (folder / "shards").mkdir(parents=True)
            (folder / "shards" / "bin").write_bytes(b"in the way")
            ends = ranks.ends(save_all)
            failed(ends, StorageError, "shards/bin")
            failed([end for rank, end in enumerate(ends) if rank != broken and broken], StorageError, f"rank {broken}")
            assert lies_there(folder) == []
            assert ranks[0].store.list() == []
            (folder / "shards" / "bin").unlink()
            goes_on(ranks)

    def test_while_storing_its_index(
        self, ranks: World, folder: Path, broken: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = ShardWriter.finish

        def finish(writer: ShardWriter, shard: Any, *args: Any, **options: Any) -> Any:
            if shard.rank == broken:
                raise StorageError("the disk is full")
            return plain(writer, shard, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ShardWriter, "finish", finish)
            ends = ranks.ends(save_all)
        failed(ends, StorageError, "the disk is full")
        nothing_of(ranks, folder)
        goes_on(ranks)

    def test_before_the_commit(self, ranks: World, folder: Path, broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its shard is durable; rank 0 hears nothing of that."""
        plain = Save.make_durable

        def make_durable(save: Any, record: Any) -> None:
            plain(save, record)
            if record.rank == broken:
                raise OSError("broken between the two")

        with monkeypatch.context() as patch:
            patch.setattr(Save, "make_durable", make_durable)
            ends = ranks.ends(save_all)
        assert isinstance(ends[broken], OSError)
        failed([end for rank, end in enumerate(ends) if rank != broken], S3dlioError, "broken between the two")
        nothing_of(ranks, folder)
        goes_on(ranks)

    def test_when_it_is_cancelled(self, ranks: World, folder: Path, broken: int) -> None:
        handle = ranks[broken].save_async(1, state_of(broken))
        assert handle.cancel()
        ends = ranks.ends(lambda rank: None if rank.rank == broken else save_all(rank))
        ends[broken] = handle.exception(60)
        failed(ends, CancelledError, "was cancelled")
        nothing_of(ranks, folder)
        goes_on(ranks)


class TestRanksDisagree:
    def test_on_the_step(self, ranks: World, folder: Path) -> None:
        ends = ranks.ends(lambda rank: rank.save(1 + (rank.rank == 2), state_of(rank.rank)))
        failed(ends, ConfigError, "the ranks disagree on the step: rank 0 says 1, rank 2 2")
        nothing_of(ranks, folder)
        goes_on(ranks)

    def test_on_the_tree(self, ranks: World, folder: Path) -> None:
        ends = ranks.ends(
            lambda rank: rank.save(1, {**state_of(rank.rank), **({"more": np.ones(3)} if rank.rank == 1 else {})})
        )
        failed(ends, ConfigError, "the state of rank 1 has other arrays than that of rank 0")
        nothing_of(ranks, folder)

    def test_on_a_shape(self, ranks: World, folder: Path) -> None:
        ends = ranks.ends(lambda rank: rank.save(1, {"w": np.ones(4 - (rank.rank == 1))}))
        failed(ends, ConfigError, "the state of rank 1 has other arrays than that of rank 0")
        nothing_of(ranks, folder)

    def test_on_what_a_state_is(self, ranks: World, folder: Path) -> None:
        ends = ranks.ends(lambda rank: rank.save(1, b"bytes" if rank.rank == 1 else {"w": np.ones(3)}))
        failed(ends, ConfigError, "the state of rank 1 has other arrays than that of rank 0")
        nothing_of(ranks, folder)

    def test_on_the_label(self, ranks: World) -> None:
        ends = ranks.ends(lambda rank: rank.save(1, state_of(rank.rank), id=f"try-{rank.rank // 2}"))
        failed(ends, S3dlioError, "rank 2 belongs to the save 'try-1', not 'try-0'")
        assert [info.step for info in ranks[0].store.list()] == [0]

    def test_on_the_world_size(self, folder: Path) -> None:
        with world(f"file://{folder}", 2, run="sizes") as two, world(f"file://{folder}", 3, run="sizes") as three:
            ends: dict[int, Any] = {}

            def save(rank: Rank) -> None:
                try:
                    rank.save(1, state_of(rank.rank))
                except S3dlioError as error:
                    ends[rank.rank] = error

            threads = [threading.Thread(target=save, args=(rank,)) for rank in (two[0], three[1])]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            # A run's words are found by its name alone, so that ranks of another size are heard.
            failed([ends[0], ends[1]], ConfigError, "the ranks disagree on the world size: rank 0 says 2, rank 1 3")
            assert lies_there(folder) == []


def test_a_refused_hand_over_is_told_to_all(ranks: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a kind that nobody has thought of, in the thread that a save goes on in."""
    plain = ShardWriter.start_captured

    def start(writer: ShardWriter, shard: Any, *args: Any) -> Any:
        if shard.rank == 2:
            raise ZeroDivisionError("who has thought of this")
        return plain(writer, shard, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "start_captured", start)
        ends = ranks.ends(save_all)
    assert isinstance(ends[2], ZeroDivisionError)
    failed(ends[:2], S3dlioError, "rank 2 failed, so nothing is committed: ZeroDivisionError")
    nothing_of(ranks, folder)
    goes_on(ranks)


def test_without_memory_for_a_copy_the_state_streams(ranks: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank copies first, another agrees first: they understand each other."""
    plain = ShardWriter.capture

    def capture(writer: ShardWriter, total: int) -> Any:
        if threading.current_thread().name == "rank-1":
            raise MemoryLimitError("no room for a copy")
        return plain(writer, total)

    monkeypatch.setattr(ShardWriter, "capture", capture)
    ranks.each(save_all)
    for rank, found in enumerate(ranks.each(lambda rank: rank.load())):
        assert_same(found, state_of(rank))
