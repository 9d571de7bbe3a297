"""The promises of a save and the thread that keeps them, with a job that does what the test says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from s3dlio.engine.actions import StoredObject
from s3dlio.engine.contract import ObjectInfo
from s3dlio.engine.errors import CancelledError, S3dlioError, StorageError
from s3dlio.engine.job import Progress
from s3dlio.info import CheckpointInfo
from s3dlio.saving import Finisher, Save, check_may_wait

from .fake import make_id, make_record

STORED = StoredObject(ObjectInfo("k", 7, "e", 0.0), 7, 0, ())
RECORD = make_record(make_id(1))
INFO: Any = object()


class FakeJob:
    """A job whose future the test ends; ``copied``: what ``stage`` answers, or raises."""

    def __init__(self, copied: bool | BaseException = True) -> None:
        self.future: Future[StoredObject] = Future()
        self.copied = copied
        self.cancelled: list[BaseException] = []
        self.phase = "open"

    def stage(self, source: object, *, quiet: bool) -> bool:
        if isinstance(self.copied, BaseException):
            raise self.copied
        return self.copied

    def cancel(self, error: S3dlioError) -> None:
        self.cancelled.append(error)
        if not self.future.done():
            self.future.set_exception(error)

    def progress(self) -> Progress:
        return Progress(3, 2, 1, 7, self.phase)


@pytest.fixture
def finisher() -> Iterator[Finisher]:
    finisher = Finisher()
    yield finisher
    finisher.close()


def durable(save: Save) -> Callable[[StoredObject], Any]:
    def finish(stored: StoredObject) -> Any:
        assert stored is STORED
        save.make_durable(RECORD)
        return INFO

    return finish


def begin(finisher: Finisher) -> Any:
    """A save whose shard, once stored, becomes durable and committed."""
    save, job = Save("ckpt-1-x"), FakeJob()
    discarded: list[str] = []
    finisher.take(save)
    finisher.follow(save, job, durable(save), lambda: discarded.append("gone"))  # type: ignore[arg-type]
    return save, job, discarded


def test_a_stored_shard_is_committed_in_the_finishers_thread(finisher: Finisher) -> None:
    save, job, discarded = begin(finisher)
    threads: list[str] = []
    save.committed.add_done_callback(lambda _: threads.append(threading.current_thread().name))
    assert finisher.pending() == [save]
    save.stage(job, None, quiet=False)
    job.future.set_result(STORED)
    assert save.committed.result(10) is INFO
    assert save.durable.result(0) is RECORD
    assert save.staged.result(0) is None
    assert finisher.pending() == []
    assert discarded == []
    finisher.close()
    assert threads == ["s3dlio-finisher"]


def test_it_is_off_the_list_before_anybody_hears_of_it(finisher: Finisher) -> None:
    save, job, _ = begin(finisher)
    seen: list[list[Save]] = []
    save.committed.add_done_callback(lambda _: seen.append(finisher.pending()))
    job.future.set_result(STORED)
    save.committed.result(10)
    finisher.close()
    assert seen == [[]]


def test_a_failure_breaks_every_promise_that_is_open(finisher: Finisher, caplog: pytest.LogCaptureFixture) -> None:
    save, job, discarded = begin(finisher)
    error = StorageError("full")
    job.future.set_exception(error)
    assert save.committed.exception(10) is error
    assert save.durable.exception(0) is error
    assert save.staged.exception(0) is error
    assert discarded == ["gone"]
    assert finisher.pending() == []
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.ERROR, "the save of ckpt-1-x failed: StorageError: full")
    ]
    assert not any(isinstance(each, BaseException) for each in caplog.records[0].args or ())


def test_a_durable_shard_is_never_discarded(finisher: Finisher) -> None:
    save, job = Save("ckpt-1-x"), FakeJob()
    discarded: list[str] = []

    def finish(_: StoredObject) -> CheckpointInfo:
        save.make_durable(RECORD)
        raise StorageError("the reply was lost")

    finisher.take(save)
    finisher.follow(save, job, finish, lambda: discarded.append("gone"))  # type: ignore[arg-type]
    job.future.set_result(STORED)
    assert isinstance(save.committed.exception(10), StorageError)
    assert save.durable.result(0) is RECORD
    assert discarded == []


def test_an_unexpected_error_ends_the_save_and_not_the_thread(finisher: Finisher) -> None:
    def finish(_: StoredObject) -> CheckpointInfo:
        raise ZeroDivisionError

    bad, job = Save("ckpt-1-bad"), FakeJob()
    finisher.take(bad)
    finisher.follow(bad, job, finish, lambda: None)  # type: ignore[arg-type]
    job.future.set_result(STORED)
    assert isinstance(bad.committed.exception(10), ZeroDivisionError)
    good, job, _ = begin(finisher)
    job.future.set_result(STORED)
    assert good.committed.result(10) is INFO


def test_saves_are_finished_in_the_order_in_which_they_are_stored(finisher: Finisher) -> None:
    saves = [begin(finisher) for _ in range(3)]
    ended: list[Save] = []
    for save, _, _ in saves:
        save.committed.add_done_callback(lambda _, save=save: ended.append(save))
    for number in (2, 0, 1):
        saves[number][1].future.set_result(STORED)
    finisher.close()
    assert ended == [saves[number][0] for number in (2, 0, 1)]


def test_a_save_that_was_not_copied_whole_is_not_staged(finisher: Finisher) -> None:
    save, job, _ = begin(finisher)
    job.copied = False
    save.stage(job, None, quiet=True)
    assert not save.staged.done()
    error = StorageError("full")
    job.future.set_exception(error)
    assert save.staged.exception(10) is error


def test_what_staging_raises_is_raised_and_breaks_the_promises(finisher: Finisher) -> None:
    save, job, _ = begin(finisher)
    job.copied = error = OSError("the memory is gone")
    with pytest.raises(OSError, match="the memory is gone"):
        save.stage(job, None, quiet=False)
    finisher.fail(save, error)
    finisher.fail(save, StorageError("later"))  # the first counts
    job.future.set_exception(StorageError("later still"))
    finisher.close()
    assert save.staged.exception(0) is error
    assert save.committed.exception(0) is error


class TestCancel:
    def test_before_the_job_is_there(self, finisher: Finisher, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "s3dlio")
        save, job, discarded = begin(finisher)
        assert save.cancel()
        assert save.asked
        job.copied = False
        save.stage(job, None, quiet=False)
        (error,) = job.cancelled
        assert str(error) == "the save of ckpt-1-x was cancelled"
        assert save.committed.exception(10) is error
        assert discarded == ["gone"]
        assert [each.levelno for each in caplog.records] == [logging.INFO]

    def test_of_a_job_under_way(self, finisher: Finisher) -> None:
        save, job, _ = begin(finisher)
        save.stage(job, None, quiet=False)
        assert save.cancel()
        assert isinstance(save.committed.exception(10), CancelledError)

    def test_of_a_stored_shard_that_is_not_yet_durable_holds(self, finisher: Finisher) -> None:
        save, job = Save("ckpt-1-x"), FakeJob()
        discarded: list[str] = []

        def finish(_: StoredObject) -> Any:
            assert save.cancel()
            save.make_durable(RECORD)
            return INFO

        finisher.take(save)
        finisher.follow(save, job, finish, lambda: discarded.append("gone"))  # type: ignore[arg-type]
        save.stage(job, None, quiet=False)  # type: ignore[arg-type]
        job.future.set_result(STORED)
        assert isinstance(save.committed.exception(10), CancelledError)
        assert discarded == ["gone"]

    def test_of_a_durable_one_is_refused(self, finisher: Finisher) -> None:
        save, job, _ = begin(finisher)
        job.future.set_result(STORED)
        save.committed.result(10)
        assert not save.cancel()
        assert not save.asked


class TestPromises:
    @pytest.mark.parametrize("name", ["staged", "durable", "committed"])
    def test_cannot_be_cancelled_from_outside(self, name: str) -> None:
        assert not getattr(Save("x"), name).cancel()

    def test_wait_says_whether_it_ended(self, finisher: Finisher) -> None:
        save, job, _ = begin(finisher)
        assert not save.wait(0)
        assert not save.wait(0.01)
        job.future.set_exception(StorageError("x"))
        assert save.wait(None)

    def test_are_ended_once(self) -> None:
        save = Save("x")
        assert save.end()
        assert not save.end()


def test_progress_tells_the_phase_of_the_save(finisher: Finisher) -> None:
    save, job, _ = begin(finisher)
    assert save.progress() == Progress(0, 0, 0, 0, "waiting")
    job.copied = False
    save.stage(job, None, quiet=False)
    for phase, told in [("open", "staging"), ("closing", "storing"), ("publishing", "storing"), ("failed", "failed")]:
        job.phase = phase
        assert save.progress() == Progress(3, 2, 1, 7, told)
    job.phase = "open"
    save.staged.set_result(None)
    assert save.progress().phase == "storing"
    save.make_durable(RECORD)
    assert save.progress().phase == "committing"
    job.future.set_exception(StorageError("x"))
    save.committed.exception(10)
    assert save.progress().phase == "failed"


def test_the_finishers_thread_must_not_wait_for_itself(finisher: Finisher) -> None:
    check_may_wait()
    told: list[BaseException] = []

    def wait(_: object) -> None:
        try:
            check_may_wait()
        except S3dlioError as error:
            told.append(error)

    save, job, _ = begin(finisher)
    save.committed.add_done_callback(wait)
    job.future.set_result(STORED)
    finisher.close()
    assert len(told) == 1


def test_a_finisher_without_saves_has_no_thread() -> None:
    before = threading.active_count()
    finisher = Finisher()
    assert threading.active_count() == before
    finisher.close()
    finisher.close()
