"""Ranks of which nothing is heard any more: every wait ends, and tells for whom it was."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from s3dlio import CancelledError, CheckpointStore, ConfigError, DeadlineError, S3dlioError, StorageError
from s3dlio import group_saver as group_saving
from s3dlio.coordination import council as councils
from s3dlio.coordination.council import Council
from s3dlio.coordination.store_board import COORDINATION
from s3dlio.saving import Save
from tests.engine.live import all_free
from tests.store.group_checks import WORLD, failed, goes_on, lies_there, nothing_of, save_all, silence, state_of
from tests.store.live import MIB, contents
from tests.store.worlds import World, world


@pytest.fixture
def ranks(kept_pool: CheckpointStore, folder: Path) -> Iterator[World]:
    """A world whose step 0 is committed; afterwards its pool has every slot back."""
    with world(f"file://{folder}", WORLD) as made:
        made.save(0, state_of)
        yield made
        assert all_free(kept_pool._use_pool())


class TestTheCommit:
    def test_fails(self, ranks: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def commit(*_: Any, **__: Any) -> Any:
            raise StorageError("503 for ever")

        with monkeypatch.context() as patch:
            patch.setattr(group_saving, "commit", commit)
            ends = ranks.ends(save_all)
        failed(ends, StorageError, "503 for ever")
        assert [info.step for info in ranks[0].store.list()] == [0]
        # Who has failed in a commit does not know whether there is a manifest, and then no shard may go.
        assert len(lies_there(folder)) == 2 * WORLD
        goes_on(ranks)

    def test_finds_a_shard_missing(self, ranks: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = Save.make_durable

        def make_durable(save: Any, record: Any) -> None:
            if record.rank == 1 and record.step == 1:
                (folder / record.key).unlink()
            plain(save, record)

        monkeypatch.setattr(Save, "make_durable", make_durable)
        failed(ranks.ends(save_all), StorageError, "rank 1 listed shards/", "which is not in the store")
        assert [info.step for info in ranks[0].store.list()] == [0]

    def test_is_found_by_the_others_if_rank_0_dies_behind_it(
        self, ranks: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            silence(patch, {0}, "/stored")
            infos = ranks.each(save_all)
        assert infos == [ranks[0].store.latest()] * WORLD
        assert infos[0].step == 1
        goes_on(ranks)

    def test_is_not_found_if_rank_0_dies_before_it(
        self, ranks: World, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others cannot know that it will not come back to commit: their shards stay."""

        def commit(*_: Any, **__: Any) -> Any:
            raise StorageError("no more of rank 0")

        with monkeypatch.context() as patch:
            silence(patch, {0}, "/stored")
            patch.setattr(group_saving, "commit", commit)
            ends = ranks.ends(save_all)
        failed(ends[1:], DeadlineError, "rank 0 has announced nothing within", "coordinator=None")
        assert isinstance(ends[0], StorageError)
        assert [info.step for info in ranks[0].store.list()] == [0]
        assert len(lies_there(folder)) == 2 * WORLD
        goes_on(ranks)


class TestARankDoesNotCome:
    @pytest.mark.parametrize(
        ("missing", "named"), [({1}, "rank 1 of"), ({2}, "rank 2 of"), ({1, 2}, "ranks 1, 2 of")], ids=repr
    )
    def test_all_others_name_it(
        self, ranks: World, folder: Path, missing: set[int], named: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        silence(monkeypatch, missing, "/hello", called=False)
        ends = ranks.ends(lambda rank: None if rank.rank in missing else save_all(rank))
        heard = [end for rank, end in enumerate(ends) if rank not in missing]
        failed(heard, DeadlineError, f"nothing was heard from {named} 3 ranks within", "coordinator=None")
        nothing_of(ranks, folder)

    def test_not_even_rank_0(self, ranks: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        silence(monkeypatch, {0}, "/hello", called=False)
        ends = ranks.ends(lambda rank: save_all(rank) if rank.rank else None)
        failed(ends[1:], DeadlineError, "rank 0 has announced nothing within", "coordinator=None")
        nothing_of(ranks, folder)

    def test_with_its_record(self, ranks: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It dies while it stores: it has said what it has, and says no more."""
        with monkeypatch.context() as patch:
            silence(patch, {2}, "/stored")
            ends = ranks.ends(save_all)
        failed(ends, DeadlineError, "/stored: nothing was heard from rank 2 of 3 ranks")
        nothing_of(ranks, folder)
        goes_on(ranks)


@pytest.mark.usefixtures("kept_pool")
class TestClosing:
    @pytest.fixture(autouse=True)
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who waits looks twenty times a second whether it still should."""
        monkeypatch.setattr(councils, "_LOOK", 0.05)

    def test_gives_up_the_wait_for_ranks_that_do_not_come(self, folder: Path) -> None:
        with world(f"file://{folder}", 2) as ranks:
            ranks.save(0, state_of)
            handle = ranks[1].save_async(1, state_of(1))
            with pytest.raises(DeadlineError, match=r"given up after 0.1 s, not committed: ckpt-1-"):
                ranks[1].store.close(timeout=0.1)
            assert isinstance(handle.exception(0), CancelledError)

    @pytest.mark.parametrize("waiting", [0, 1])
    def test_gives_up_the_wait_for_a_commit(self, folder: Path, waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other rank has died when all was stored; what is durable cannot be cancelled."""
        plain = Council.say, Council.announce

        def silent(one: Callable[..., None]) -> Callable[..., None]:
            def method(council: Council, topic: str, word: bytes) -> None:
                if not topic.endswith("/stored") or council.rank == waiting:
                    one(council, topic, word)

            return method

        monkeypatch.setattr(Council, "say", silent(plain[0]))
        monkeypatch.setattr(Council, "announce", silent(plain[1]))
        held = threading.Event()

        def commit(*_: Any, **__: Any) -> Any:
            held.wait(60)
            raise StorageError("of a rank that has died")

        monkeypatch.setattr(group_saving, "commit", commit)
        with world(f"file://{folder}", 2) as ranks:
            handles = [rank.save_async(1, state_of(rank.rank)) for rank in ranks]
            handles[waiting].wait_durable(60)
            assert not handles[waiting].cancel()
            with pytest.raises(DeadlineError, match=r"given up after 0.1 s, not committed: ckpt-1-"):
                ranks[waiting].store.close(timeout=0.1)
            with pytest.raises(CancelledError, match="was given up while it waited for other ranks"):
                handles[waiting].result(0)
            held.set()
            with suppress(S3dlioError):
                ranks[1 - waiting].store.close(timeout=0)
            assert isinstance(handles[1 - waiting].exception(0), S3dlioError)
        assert not list(folder.rglob("manifests/ckpt*"))

    def test_with_the_pool_ends_what_waits(self, folder: Path) -> None:
        """The words of these ranks go through the pool: they cannot even say that they give up."""
        with world(f"file://{folder}", 2, memory=20 * MIB) as ranks:
            handle = ranks[1].save_async(1, state_of(1))
            ranks[0].store.close()
            with pytest.raises(DeadlineError, match="given up"):
                ranks[1].store.close(timeout=0)
            assert isinstance(handle.exception(0), S3dlioError)

    def test_waits_for_what_is_under_way(self, folder: Path) -> None:
        with world(f"file://{folder}", WORLD) as ranks:
            handles = [rank.save_async(1, state_of(rank.rank)) for rank in ranks]
        assert len({handle.result(0).id for handle in handles}) == 1

    def test_tells_of_failures_that_nobody_asked_for(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        with world(f"file://{folder}", 2) as ranks:
            handles = [rank.save_async(1 + rank.rank, state_of(rank.rank)) for rank in ranks]
            for rank in ranks:
                with pytest.raises(ConfigError, match="disagree on the step"), caplog.at_level(logging.CRITICAL):
                    rank.store.close()
        assert all(isinstance(handle.exception(0), ConfigError) for handle in handles)


def test_words_of_a_job_are_cleaned_up_in_time(ranks: World, folder: Path) -> None:
    """Not while ranks may still wait for them."""
    ranks.save(1, state_of)
    words = [name for name in contents(folder) if name.startswith(COORDINATION)]
    assert words
    assert ranks[0].store.cleanup(min_age=0) == 0
    assert [name for name in contents(folder) if name.startswith(COORDINATION)] == words
