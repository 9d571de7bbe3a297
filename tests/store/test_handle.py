from __future__ import annotations

import asyncio
import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import (
    CancelledError,
    CheckpointInfo,
    CheckpointStore,
    DeadlineError,
    Handle,
    MemoryLimitError,
    PoolClosedError,
    S3dlioError,
    StorageError,
)
from s3dlio.commit import commit
from s3dlio.saving import Save
from s3dlio.writer import ShardWriter

from .live import MIB, contents, in_forked_child, open_store, random_bytes, workers_stopped

STATE = {"w": np.arange(700_000, dtype=np.float32)}  # three chunks
SIZE = STATE["w"].nbytes


@contextmanager
def commits_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Commits wait until the block ends; the event says that one has begun."""
    begun, go = threading.Event(), threading.Event()

    def held(*args: Any, **options: Any) -> Any:
        begun.set()
        go.wait()
        return commit(*args, **options)

    monkeypatch.setattr("s3dlio.state_saver.commit", held)
    try:
        yield begun
    finally:
        go.set()


def refuse_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StorageError("the store is on fire")

    monkeypatch.setattr("s3dlio.state_saver.commit", refuse)


def test_the_promises_are_kept_in_order(warm: CheckpointStore) -> None:
    with workers_stopped(warm):
        handle = warm.save_async(5, STATE, epoch=2)
        assert isinstance(handle, Handle)
        handle.wait_staged(timeout=0)  # save_async returned: it is staged
        assert not handle.done()
        with pytest.raises(DeadlineError, match=r"^ckpt-5-\S+ is not durable after 0 s: <Handle of ckpt-5-"):
            handle.wait_durable(timeout=0)
        with pytest.raises(DeadlineError, match=r"^ckpt-5-\S+ is not committed after 0\.01 s"):
            handle.result(timeout=0.01)
        with pytest.raises(TimeoutError):  # the built-in that DeadlineError also is
            handle.exception(timeout=0)
        progress = handle.progress()
        assert (progress.staged, progress.stored, progress.total) == (progress.total, 0, progress.total)
        assert progress.total >= SIZE
        assert progress.phase == "storing"
    handle.wait_durable(timeout=60)
    info = handle.result(timeout=60)
    assert isinstance(info, CheckpointInfo)
    assert (info.step, info.epoch) == (5, 2)
    assert handle.done()
    assert handle.exception() is None
    assert handle.result() is info
    progress = handle.progress()
    assert (progress.phase, progress.stored) == ("committed", progress.total)


def test_repr_says_how_far_it_is(warm: CheckpointStore) -> None:
    with workers_stopped(warm):
        handle = warm.save_async(5, random_bytes(2 * MIB))
        assert re.fullmatch(r"<Handle of ckpt-5-\S+: storing, 0 of 2 MB stored>", repr(handle))
    handle.result(60)
    assert re.fullmatch(r"<Handle of ckpt-5-\S+: committed, 2 of 2 MB stored>", repr(handle))


def test_durable_comes_before_committed(warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with commits_held(monkeypatch) as begun:
        handle = warm.save_async(5, STATE)
        handle.wait_durable(60)
        assert begun.wait(60)
        assert not handle.done()
        assert handle.progress().phase == "committing"
        assert [info.step for info in warm.list()] == [0]
        assert not handle.cancel()  # every byte is stored: too late
    assert handle.result(60).step == 5


def test_a_cancelled_save_commits_nothing_and_leaves_nothing(warm: CheckpointStore, folder: Path) -> None:
    before = contents(folder)
    with workers_stopped(warm):
        handle = warm.save_async(5, random_bytes(8 * MIB))
        assert handle.cancel()
        assert handle.cancel()  # again is the same
        assert not handle.done()  # tasks of it are with the workers
    with pytest.raises(CancelledError, match=r"^the save of ckpt-5-\S+ was cancelled$"):
        handle.result(60)
    assert isinstance(handle.exception(), CancelledError)
    with pytest.raises(CancelledError):
        handle.wait_durable()
    assert handle.progress().phase == "failed"
    assert "failed" in repr(handle)
    assert not handle.cancel() or handle.done()
    assert contents(folder) == before
    assert warm.control().uploads("") is not None
    assert list(warm.control().uploads("")) == []


def test_a_save_cancelled_before_it_is_durable_is_not_committed(
    warm: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    begun, go = threading.Event(), threading.Event()
    finish = ShardWriter.finish

    def held(*args: Any, **options: Any) -> Any:
        begun.set()
        go.wait()
        return finish(*args, **options)

    monkeypatch.setattr(ShardWriter, "finish", held)
    handle = warm.save_async(5, STATE)
    assert begun.wait(60)  # the shard is stored, its index is not
    assert handle.cancel()
    go.set()
    assert isinstance(handle.exception(60), CancelledError)
    assert contents(folder) == before


@pytest.mark.parametrize("at", ["follow", "_end_staging"])
def test_ctrl_c_as_the_last_byte_is_staged_leaves_nothing(
    warm: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """There is no handle yet that could cancel it, and its job might go on."""
    original = getattr(Save, at)

    def interrupted(self: Save, *args: Any) -> None:
        original(self, *args)
        raise KeyboardInterrupt

    with workers_stopped(warm), monkeypatch.context() as patch:
        patch.setattr(Save, at, interrupted)
        with pytest.raises(KeyboardInterrupt):
            warm.save(5, STATE)
    warm.save(6, STATE)
    warm.close()
    assert not [name for name in contents(folder) if "ckpt-5-" in name]


def test_a_save_that_ctrl_c_broke_off_is_not_told_again_at_close(
    kept_pool: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every byte was stored by then, and it is too late to cancel."""
    original = Save.stage

    def interrupted(self: Save, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.durable.result(60)
        raise KeyboardInterrupt

    with commits_held(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(Save, "stage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept_pool.save(5, STATE)
    kept_pool.close()


def test_cancel_after_the_commit_does_nothing(warm: CheckpointStore) -> None:
    handle = warm.save_async(5, STATE)
    handle.result(60)
    assert not handle.cancel()
    assert handle.exception() is None


def test_a_cancelled_save_is_not_told_again_at_close(kept_pool: CheckpointStore, folder: Path) -> None:
    with open_store(folder) as store:
        store.save(0, b"")
        with workers_stopped(store):
            store.save_async(1, STATE).cancel()


def test_a_deferred_save_can_be_cancelled_before_it_is_staged(warm: CheckpointStore, folder: Path) -> None:
    before = contents(folder)
    pool = warm._use_pool()
    with pool.turn:  # another save is staging
        handle = warm.save_async(5, STATE, defer_staging=True)
        assert handle.cancel()
    for ask in (handle.wait_durable, handle.result):
        with pytest.raises(CancelledError):
            ask(60)
    with suppress(CancelledError):  # whether the copy had ended by then is left open
        handle.wait_staged(60)
    assert contents(folder) == before
    assert pool.arena.free == pool.arena.slots


def test_a_deferred_save_reads_the_state_after_it_returned(warm: CheckpointStore) -> None:
    pool = warm._use_pool()
    data = np.zeros(700_000, np.float32)
    with pool.turn:
        handle = warm.save_async(5, {"w": data}, defer_staging=True)
        with pytest.raises(DeadlineError, match="is not staged after 0 s"):
            handle.wait_staged(timeout=0)
        assert handle.progress().staged == 0
        data[:] = 7
    handle.wait_staged(60)
    data[:] = 8  # from now on it is ours again
    handle.result(60)
    assert (warm.load(5)["w"] == 7).all()


def test_a_staged_state_may_change(warm: CheckpointStore) -> None:
    data = np.zeros(700_000, np.float32)
    with workers_stopped(warm):
        handle = warm.save_async(5, {"w": data})
        data[:] = 7
    handle.result(60)
    assert (warm.load(5)["w"] == 0).all()


class TestCallbacks:
    def test_are_called_with_the_handle_once_it_is_done(self, warm: CheckpointStore) -> None:
        heard: list[tuple[Handle, bool]] = []
        event = threading.Event()

        def hear(handle: Handle) -> None:
            heard.append((handle, handle.done()))
            event.set()

        with workers_stopped(warm):
            handle = warm.save_async(5, STATE)
            handle.add_done_callback(hear)
            assert not heard
        assert event.wait(60)
        assert heard == [(handle, True)]

    def test_are_called_at_once_when_it_is_done(self, warm: CheckpointStore) -> None:
        heard: list[Handle] = []
        handle = warm.save_async(5, STATE)
        handle.result(60)
        handle.add_done_callback(heard.append)
        assert heard == [handle]

    def test_are_called_for_a_failure_too(self, warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse_commits(monkeypatch)
        heard: list[Handle] = []
        handle = warm.save_async(5, STATE)
        handle.add_done_callback(heard.append)
        assert isinstance(handle.exception(60), StorageError)
        handle.add_done_callback(heard.append)
        assert heard[-1] is handle

    def test_that_raise_harm_neither_save_nor_store(self, warm: CheckpointStore, caplog: Any) -> None:
        def bad(_: Handle) -> None:
            raise ZeroDivisionError("of the user")

        with workers_stopped(warm):
            handle = warm.save_async(5, STATE)
            handle.add_done_callback(bad)
        handle.result(60)
        assert warm.save(6, STATE).step == 6
        assert "of the user" in caplog.text

    def test_may_use_the_store(self, warm: CheckpointStore) -> None:
        seen: list[list[int]] = []
        event = threading.Event()

        def look(_: Handle) -> None:
            seen.append([info.step for info in warm.list()])
            event.set()

        with workers_stopped(warm):
            warm.save_async(5, STATE).add_done_callback(look)
        assert event.wait(60)
        assert seen == [[0, 5]]

    def test_may_start_the_next_save(self, warm: CheckpointStore) -> None:
        handles: list[Handle] = []
        event = threading.Event()

        def go_on(_: Handle) -> None:
            handles.append(warm.save_async(6, STATE))
            event.set()

        with workers_stopped(warm):
            warm.save_async(5, STATE).add_done_callback(go_on)
        assert event.wait(60)
        assert handles[0].result(60).step == 6

    @pytest.mark.parametrize("wait", ["result", "save", "close"])
    def test_are_told_that_they_cannot_wait(self, kept_pool: CheckpointStore, folder: Path, wait: str) -> None:
        store = open_store(folder)
        store.save(0, b"")
        errors: list[BaseException] = []
        event = threading.Event()

        def go_on(_: Handle) -> None:
            try:
                match wait:
                    case "result":
                        store.save_async(2, STATE).result()
                    case "save":
                        store.save(3, b"")
                    case "close":
                        store.close()
            except S3dlioError as error:
                errors.append(error)
            event.set()

        with workers_stopped(store):
            store.save_async(1, STATE).add_done_callback(go_on)
        assert event.wait(60)
        (error,) = errors
        assert str(error).startswith("a done callback cannot wait for a save or close a store")
        store.close()


class TestAwait:
    def test_gives_the_committed_checkpoint(self, warm: CheckpointStore) -> None:
        async def save() -> CheckpointInfo:
            return await warm.save_async(5, STATE)

        assert asyncio.run(save()).step == 5

    def test_of_several_at_once(self, warm: CheckpointStore) -> None:
        async def save() -> list[CheckpointInfo]:
            async def wait(handle: Handle) -> CheckpointInfo:
                return await handle

            return list(await asyncio.gather(*[wait(warm.save_async(step, STATE)) for step in (5, 6, 7)]))

        assert [info.step for info in asyncio.run(save())] == [5, 6, 7]

    def test_raises_what_the_save_raised(self, warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse_commits(monkeypatch)

        async def save() -> None:
            await warm.save_async(5, STATE)

        with pytest.raises(StorageError, match="on fire"):
            asyncio.run(save())

    def test_that_runs_out_of_time_does_not_stop_the_save(self, warm: CheckpointStore) -> None:
        async def wait(handle: Handle) -> CheckpointInfo:
            return await handle

        async def save() -> Handle:
            handle = warm.save_async(5, STATE)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait(handle), timeout=0.01)
            return handle

        with workers_stopped(warm):
            handle = asyncio.run(save())
        assert handle.result(60).step == 5
        assert warm.save(6, STATE).step == 6  # the store goes on

    def test_that_gave_up_does_not_silence_the_failure(
        self, kept_pool: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def wait(handle: Handle) -> CheckpointInfo:
            return await handle

        store = open_store(folder)
        store.save(0, b"")
        with commits_held(monkeypatch):
            handle = store.save_async(5, STATE)
            with pytest.raises(asyncio.TimeoutError):
                asyncio.run(asyncio.wait_for(wait(handle), timeout=0.01))
            monkeypatch.setattr(CheckpointInfo, "of", _raise(StorageError("too late")))
        with pytest.raises(StorageError, match="too late"):
            store.close()


class TestFailure:
    def test_is_raised_by_whoever_asks(self, warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse_commits(monkeypatch)
        handle = warm.save_async(5, STATE)
        for _ in range(2):
            with pytest.raises(StorageError, match="the store is on fire"):
                handle.result(60)
        handle.wait_durable()  # its bytes are stored; only the commit failed
        error = handle.exception()
        assert isinstance(error, StorageError)
        assert handle.done()
        assert handle.progress().phase == "failed"

    def test_of_the_storage_reaches_every_promise(self, kept_pool: CheckpointStore, tmp_path: Path) -> None:
        place = tmp_path / "run"
        with open_store(place) as store:
            store.save(0, b"")
            for path in sorted((place / "shards").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (place / "shards").rmdir()
            (place / "shards").write_bytes(b"in the way")
            handle = store.save_async(5, STATE)
            for ask in (handle.wait_durable, handle.result):
                with pytest.raises(StorageError, match="shards"):
                    ask(60)
            assert isinstance(handle.exception(), StorageError)
            assert [info.step for info in store.list()] == [0]

    @pytest.mark.parametrize("ask", ["result", "exception", "wait_durable"])
    def test_that_was_asked_for_is_not_told_again_at_close(
        self, kept_pool: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch, ask: str
    ) -> None:
        with open_store(folder) as store:
            store.save(0, b"")
            monkeypatch.setattr(ShardWriter, "finish", _raise(StorageError("no index")))
            handle = store.save_async(5, STATE)
            try:
                getattr(handle, ask)(60)
            except StorageError:
                pass

    def test_that_nobody_asked_for_is_raised_at_close_once(
        self, kept_pool: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store(folder)
        refuse_commits(monkeypatch)
        store.save_async(5, STATE)
        with pytest.raises(StorageError, match="on fire"):
            store.close()
        store.close()

    def test_of_an_unfinished_wait_is_still_told_at_close(
        self, kept_pool: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store(folder)
        store.save(0, b"")
        with commits_held(monkeypatch):
            handle = store.save_async(5, STATE)
            with pytest.raises(DeadlineError):
                handle.result(0)
            monkeypatch.setattr(CheckpointInfo, "of", _raise(StorageError("too late")))
        with pytest.raises(StorageError, match="too late"):
            store.close()


def _raise(error: BaseException) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_a_deadline_of_the_save_itself_is_told_from_that_of_a_wait(
    warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3dlio.state_saver.commit", _raise(DeadlineError("the storage hangs")))
    handle = warm.save_async(5, STATE)
    with pytest.raises(DeadlineError, match="the storage hangs"):
        handle.result(60)
    assert str(handle.exception()) == "the storage hangs"


def test_a_kept_handle_does_not_keep_the_state(warm: CheckpointStore) -> None:
    data = np.zeros(700_000, np.float32)
    gone = weakref.ref(data)
    handle = warm.save_async(5, {"w": data})
    del data
    handle.result(60)
    gc.collect()
    assert gone() is None
    assert handle.done()


def test_a_staged_state_is_let_go(warm: CheckpointStore) -> None:
    data = np.zeros(700_000, np.float32)
    gone = weakref.ref(data)
    with workers_stopped(warm):
        handle = warm.save_async(5, {"w": data})
        del data
        gc.collect()
        assert gone() is None
    handle.result(60)


def test_a_state_that_could_not_be_staged_is_let_go(warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardWriter, "start", _raise(MemoryLimitError("no room")))
    data = np.zeros(700_000, np.float32)
    gone = weakref.ref(data)
    with pytest.raises(MemoryLimitError):
        warm.save_async(5, {"w": data})
    handle = warm.save_async(6, {"w": data}, defer_staging=True)
    del data
    assert isinstance(handle.exception(60), MemoryLimitError)
    gc.collect()
    assert gone() is None


def test_a_failed_handle_does_not_keep_the_state(warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_commits(monkeypatch)
    data = np.zeros(700_000, np.float32)
    gone = weakref.ref(data)
    handle = warm.save_async(5, {"w": data})
    del data
    assert handle.exception(60) is not None
    gc.collect()
    assert gone() is None


def test_a_forked_child_is_told_that_the_handle_is_not_its_own(warm: CheckpointStore) -> None:
    with workers_stopped(warm):
        handle = warm.save_async(5, STATE)

        def child() -> None:
            for ask in (handle.result, handle.wait_durable, handle.cancel):
                with pytest.raises(PoolClosedError, match="belongs to the process that this one was forked from"):
                    ask()

        in_forked_child(child)
    handle.result(60)
    in_forked_child(lambda: None if handle.result().step == 5 else pytest.fail("another step"))
