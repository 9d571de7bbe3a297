"""Saves that meet: the same step twice, a run rolled back, several in flight, cancelled, failed, pruned, loaded."""

from __future__ import annotations

import errno
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import CancelledError, DeadlineError, StorageError, StorageFullError, UnsupportedError
from tests.faults import states
from tests.faults.conftest import Open, Sabotaging, Scripting
from tests.faults.folders import contents, hidden
from tests.faults.injected import HOLD, Rule
from tests.faults.states import MIB
from tests.faults.waiting import until

TWICE = """
    with open_store(compression=ARGS["compression"]) as store:
        info = store.save(7, states.make(ARGS["seed"]))
        say(info.id)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "at"),  # not a pointer that has its name: its holder has the lock, for which the other waits
    [("manifests/ckpt-7-", "io"), ("manifests/ckpt-7-", "named"), ("manifests/latest.json", "io")],
)
def test_the_same_step_from_two_processes_at_once(
    sabotage: Sabotaging, script: Scripting, open_store: Open, key: str, at: str
) -> None:
    """Both are held where they could overwrite each other; both survive under ids of their own."""
    held = sabotage(Rule("Call.put", key=key, at=at, do=HOLD, times=2), here=False)
    trainers = [script(TWICE, python=held.executable, seed=seed, compression=None) for seed in (1, 2)]
    held.wait(times=2)
    held.release()
    ids = [trainer.line() for trainer in trainers]
    for trainer in trainers:
        assert trainer.end() == 0, trainer.errors
    with open_store(workers=1) as store:
        found = store.list()
        assert {info.id for info in found} == set(ids)
        assert len(found) == 2
        for name, seed in zip(ids, (1, 2), strict=True):
            assert states.same(store.load(id=name), states.make(seed))
        newest = 1 + (found[-1].id == ids[1])
        assert states.same(store.load(), states.make(newest))
        assert states.same(store.load(7), states.make(newest))
        assert store.verify(7).ok
        assert store.cleanup(min_age=0) == 0


def test_a_run_rolled_back(open_store: Open) -> None:
    """The latest is what was saved last, not the greatest step."""
    with open_store() as store:
        for step in (900, 1000):
            store.save(step, states.make(step))
    with open_store() as store:
        assert store.save(500, states.make(500)).step == 500
        assert states.same(store.load(), states.make(500))
        store.save(900, states.make(9))
        assert states.same(store.load(900), states.make(9))
        assert [info.step for info in store.list()] == [900, 1000, 500, 900]
        assert store.prune(keep_last=1) == 3
        assert states.same(store.load(), states.make(9))


def test_several_saves_in_flight_through_little_memory(open_store: Open, folder: Path) -> None:
    """Four states of 6 MiB through 4 MiB, staged in threads: each waits for the one before, none for ever."""
    with open_store(memory=4 * MIB) as store:
        handles = [store.save_async(step, states.make(step, 6), defer_staging=True) for step in range(4)]
        assert [handle.result().step for handle in handles] == [0, 1, 2, 3]
        for step in range(4):
            assert states.same(store.load(step), states.make(step, 6))
    assert hidden(folder) == []


def test_two_stores_of_one_pool(open_store: Open, tmp_path: Path) -> None:
    """They share workers and memory; the failure of one save is not the other's."""
    file = tmp_path / "file"
    file.touch()
    options: dict[str, Any] = {"memory": 6 * MIB, "workers": 2, "chunk_size": MIB}
    with open_store(memory=6 * MIB) as store, CheckpointStore(f"file://{file}", **options) as other:
        pending = store.save_async(1, states.make(1, 8), defer_staging=True)
        with pytest.raises(StorageError, match=f"{file} is a file"):
            other.save(1, states.make(1, 8))
        assert pending.result().step == 1
        assert states.same(store.load(), states.make(1, 8))


STAGES: dict[str, tuple[Rule, dict[str, Any]]] = {
    "begin": (Rule("Begin", key="ckpt-2-", do=HOLD), {}),
    "begun": (Rule("Begin", key="ckpt-2-", at="end", do=HOLD), {}),
    "staging": (Rule("StorePart", key="ckpt-2-", do=HOLD), {"memory": 3 * MIB}),
    "encoding": (Rule("Encode", at="codec", do=HOLD, skip=5), {"compression": "zstd-grouped"}),
    "storing": (Rule("StorePart", key="ckpt-2-", at="io", do=HOLD, times=3), {}),
    "one request": (Rule("PutWhole", key="ckpt-2-", at="io", do=HOLD), {"multipart_threshold": 64 * MIB}),
    "completing": (Rule("Complete", key="ckpt-2-", do=HOLD), {}),
    "named": (Rule("Complete", key="ckpt-2-", at="named", do=HOLD), {}),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("deferred", [False, True])
def test_cancel(sabotage: Sabotaging, open_store: Open, folder: Path, stage: str, deferred: bool) -> None:
    """At every stage before all bytes are stored: nothing is committed and no file is left."""
    rule, options = STAGES[stage]
    held = sabotage(rule)
    with open_store(**options) as store:
        store.save(1, states.make(1))
        before = contents(folder)
        handle = store.save_async(2, states.make(2, 6), defer_staging=deferred or stage == "staging")
        held.wait()
        assert handle.cancel()
        held.release()
        with pytest.raises(CancelledError, match="ckpt-2-"):
            handle.result()
        until(lambda: contents(folder) == before, "the cancelled save to clean up")
        assert states.same(store.load(), states.make(1))
        store.save(3, states.make(3))
        assert states.same(store.load(), states.make(3))


def test_cancel_when_it_is_too_late(sabotage: Sabotaging, open_store: Open) -> None:
    """While the manifest is being stored nobody can say any more that there will be no checkpoint."""
    held = sabotage(Rule("Call.put", key="manifests/ckpt-1-", at="named", do=HOLD))
    with open_store() as store:
        handle = store.save_async(1, states.make(1))
        held.wait()
        assert not handle.cancel()
        held.release()
        assert handle.result().step == 1
        assert not handle.cancel()
        assert states.same(store.load(), states.make(1))


def test_a_deadline_stops_only_the_waiting(sabotage: Sabotaging, open_store: Open) -> None:
    held = sabotage(Rule("Complete", do=HOLD))
    with open_store() as store:
        handle = store.save_async(1, states.make(1))
        for wait in (handle.result, handle.wait_durable, handle.exception):
            with pytest.raises(DeadlineError, match="ckpt-1-"):
                wait(0)
        held.release()
        assert handle.result().step == 1


def test_a_close_that_runs_out_of_time(sabotage: Sabotaging, open_store: Open, folder: Path) -> None:
    """What is in flight is given up, by name; the worker that hangs goes with the pool."""
    held = sabotage(Rule("StorePart", key="ckpt-2-", at="io", do=HOLD))
    store = open_store()
    store.save(1, states.make(1))
    handle = store.save_async(2, states.make(2))
    held.wait()
    with pytest.raises(DeadlineError, match="not committed: ckpt-2-"):
        store.close(timeout=0)
    assert handle.exception(0) is not None
    with open_store() as again:
        assert states.same(again.load(), states.make(1))
        again.save(3, states.make(3))
        again.cleanup(min_age=0)
    assert not [name for name in contents(folder) if "ckpt-2-" in name]


class TestAFailureIsNeverSilent:
    """It raises where it is asked for, else when the store closes, and is logged in any case."""

    @pytest.fixture
    def failing(self, sabotage: Sabotaging, open_store: Open) -> CheckpointStore:
        sabotage(Rule("StorePart", key="ckpt-2-", at="io", do=errno.ENOSPC))
        store: CheckpointStore = open_store()
        store.save(1, states.make(1))
        return store

    def test_it_is_raised_by_result(self, failing: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
        handle = failing.save_async(2, states.make(2))
        for _ in range(2):
            with pytest.raises(StorageFullError, match="No space left"):
                handle.result()
        assert isinstance(handle.exception(), StorageFullError)
        failing.close()  # somebody has asked: it is not raised again
        assert caplog.text.count("the save of ckpt-2-") == 1

    def test_it_is_raised_by_close(self, failing: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
        failing.save_async(2, states.make(2))
        with pytest.raises(StorageFullError, match="No space left"):
            failing.close()
        assert "the save of ckpt-2-" in caplog.text
        failing.close()

    def test_it_does_not_hide_the_error_of_a_with_block(
        self, failing: CheckpointStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        def body() -> None:
            with failing:
                failing.save_async(2, states.make(2))
                raise LookupError

        with pytest.raises(LookupError):
            body()
        assert "the save of ckpt-2-" in caplog.text

    def test_it_is_told_to_callbacks(self, failing: CheckpointStore) -> None:
        told = threading.Event()
        handle = failing.save_async(2, states.make(2))
        handle.add_done_callback(lambda _: told.set())
        assert told.wait(30)
        assert isinstance(handle.exception(), StorageFullError)

    def test_later_saves_go_on(self, failing: CheckpointStore) -> None:
        handles = [failing.save_async(step, states.make(step)) for step in (2, 3, 4)]
        assert [type(handle.exception()) for handle in handles] == [StorageFullError, type(None), type(None)]
        assert states.same(failing.load(), states.make(4))


BAD_LEAVES: dict[str, tuple[Any, str]] = {
    "an object": ({"model": {"layers": [1, {"bad": object()}]}}, "state['model']['layers'][1]['bad']"),
    "an array of objects": ({"a": {"b": np.array([object()])}}, "state['a']['b']"),
    "a function": ({"a": (1, print)}, "state['a'][1]"),
    "a set": ({"a": {1, 2}}, "state['a']"),
}


@pytest.mark.parametrize("name", BAD_LEAVES)
@pytest.mark.parametrize("deferred", [False, True])
def test_a_leaf_that_cannot_be_stored(open_store: Open, folder: Path, name: str, deferred: bool) -> None:
    """Told with its path in the tree, by the call itself, before a byte is written."""
    state, path = BAD_LEAVES[name]
    with open_store() as store:
        with pytest.raises(UnsupportedError, match=re.escape(path)):
            store.save_async(1, state, defer_staging=deferred)
        assert not folder.exists()
        store.save(1, states.make(1))
        before = contents(folder)
        with pytest.raises(UnsupportedError, match=re.escape(path)):
            store.save(2, state)
        assert contents(folder) == before


class TestKeepLast:
    """Older checkpoints go once a newer one is committed; never the latest, never one that is being loaded."""

    def test_older_ones_go(self, open_store: Open, folder: Path) -> None:
        with open_store(keep_last=2) as store:
            for step in (5, 1, 4, 2):
                store.save(step, states.make(step))
            assert [info.step for info in store.list()] == [4, 2]
            assert len(list(folder.glob("shards/*"))) == 2

    def test_a_failed_save_removes_nothing(self, sabotage: Sabotaging, open_store: Open) -> None:
        sabotage(Rule("Call.put", key="manifests/ckpt-3-", at="io", do=errno.ENOSPC))
        with open_store(keep_last=1) as store:
            store.save(1, states.make(1))
            store.save(2, states.make(2))
            with pytest.raises(StorageFullError):
                store.save(3, states.make(3))
            assert states.same(store.load(), states.make(2))

    @pytest.mark.parametrize("how", ["load", "into", "names", "verify"])
    def test_one_being_loaded_stays(self, sabotage: Sabotaging, open_store: Open, how: str) -> None:
        """The load is held while two newer ones are committed; afterwards it may go."""
        held = sabotage(Rule("Fetch", key="ckpt-1-", at="io", do=HOLD))
        state = states.make(1)
        with open_store(keep_last=1) as store:
            store.save(1, state)
            results: list[Any] = []
            asks: dict[str, Callable[[], Any]] = {
                "load": lambda: store.load(1),
                "into": lambda: store.load(1, into=states.zeroed(state)),
                "names": lambda: store.load(1, names="*")["model.half"],
                "verify": lambda: store.verify(1).ok,
            }
            thread = threading.Thread(target=lambda: results.append(asks[how]()))
            thread.start()
            held.wait()
            store.save(2, states.make(2))
            store.save(3, states.make(3))
            assert [info.step for info in store.list()] == [1, 3]
            held.release()
            thread.join()
            right = {"names": state["model"]["half"], "verify": True}.get(how, state)
            assert states.same(results[0], right)
            store.save(4, states.make(4))
            assert [info.step for info in store.list()] == [4]

    def test_a_prune_that_fails_does_not_fail_the_save(
        self, sabotage: Sabotaging, open_store: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged, and the next one makes up for it."""
        sabotage(Rule("Call.delete", key="manifests/ckpt-1-", do=errno.EACCES))
        with caplog.at_level(logging.WARNING), open_store(keep_last=1) as store:
            store.save(1, states.make(1))
            assert store.save(2, states.make(2)).step == 2
            assert "older checkpoints were not pruned" in caplog.text
            store.save(3, states.make(3))
            assert [info.step for info in store.list()] == [3]


def test_nothing_stored_is_ever_written_again(open_store: Open, folder: Path) -> None:
    """Only pointers change: every other file keeps its bytes and its inode through saves, loads and failures."""
    with open_store() as store:
        store.save(1, states.make(1))
        kept = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files(folder)}
        before = contents(folder)
        store.save(1, states.make(1))
        store.save(2, states.make(2))
        store.load(1)
        store.verify(1)
        store.cleanup(min_age=0)
        with pytest.raises(UnsupportedError):
            store.save(3, {"bad": object()})
        after = contents(folder)
    assert {name: after[name] for name in before if "latest.json" not in name}.items() <= before.items()
    assert kept == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "latest.json"]
