"""Background saves: one ``Save`` from its first copy to its commit, and the thread that finishes saves.

Owns the promises behind a ``Handle`` and the store's finishing thread; copying is the job's, storing the workers',
publishing ``commit``'s. Saves of a store are finished in the order in which they become durable, by one thread, so that
their commits do not race each other.
"""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from .engine.actions import StoredObject
from .engine.errors import CancelledError, S3dlioError
from .engine.job import Progress, SaveJob
from .engine.source import Source
from .ids import CheckpointId
from .info import CheckpointInfo
from .records import ShardRecord

_log = logging.getLogger("s3dlio")

_here = threading.local()
_PHASES = {"open": "staging", "closing": "storing", "publishing": "storing", "stored": "storing"}


@dataclass(frozen=True, slots=True)
class Meta:
    """What is recorded of a save beside its bytes."""

    id: CheckpointId
    epoch: int
    framework: str
    user_meta: Any
    label: str | None


class Save:
    """One save of a state or a payload, as its handle sees it. ``asked``: somebody has seen how it ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.staged: Future[None] = _promise()
        self.durable: Future[ShardRecord] = _promise()
        self.committed: Future[CheckpointInfo] = _promise()
        self.asked = False
        self._job: SaveJob | None = None
        self._captured = 0
        self._cancelled = False
        self._given_up = False
        self._ended = False
        self._lock = threading.Lock()

    def progress(self) -> Progress:
        """The job's progress; the phases after it are the save's."""
        job = (
            self._job.progress() if self._job is not None else Progress(self._captured, 0, 0, self._captured, "waiting")
        )
        phase = _PHASES.get(job.phase, job.phase)
        if self.committed.done():
            phase = "committed" if self.committed.exception() is None else "failed"
        elif self.durable.done():
            phase = "committing"
        elif self.staged.done() and phase in ("waiting", "staging"):  # the job hears of it a moment later
            phase = "storing"
        return Progress(job.staged, job.encoded, job.stored, job.total, phase)

    def cancel(self) -> bool:
        """Give up unless it is durable."""
        with self._lock:
            if self.durable.done():
                return False
            self.asked = True  # whoever cancels knows how it ends
            self._cancelled = True
            if self._job is not None:
                self._job.cancel(self._reason())
            return True

    def give_up(self) -> None:
        """As ``cancel``; one that is durable waits no longer for other ranks to commit it."""
        if not self.cancel():
            self._given_up = True

    def make_durable(self, record: ShardRecord) -> None:
        """Every byte is stored: too late to cancel. Raises ``CancelledError`` if it was cancelled before."""
        with self._lock:
            if self._cancelled:
                raise self._reason()
            self.durable.set_result(record)

    @property
    def is_durable(self) -> bool:
        """Whether every byte was stored before it was cancelled or failed."""
        return self.durable.done() and self.durable.exception() is None

    def wait(self, timeout: float | None) -> bool:
        """Whether it has ended within ``timeout`` seconds."""
        try:
            self.committed.exception(timeout)
        except FutureTimeoutError:
            return False
        return True

    def stage(self, job: SaveJob, source: Source, *, quiet: bool) -> None:
        """Copy everything through ``job``; raises what the source raises, and then the save has failed with it."""
        self.follow(job)
        if job.stage(source, quiet=quiet):
            self._end_staging(None)

    def follow(self, job: SaveJob) -> None:
        """``job`` stores it: its progress is the save's, and it is cancelled with it."""
        with self._lock:
            self._job = job
            if self._cancelled:
                job.cancel(self._reason())

    def end_staging(self, captured: int) -> None:
        """Everything was copied, ``captured`` bytes, before there is a job."""
        self._captured = captured
        self._end_staging(None)

    def check(self) -> None:
        """Raise ``CancelledError`` if it was cancelled."""
        if self._cancelled:
            raise self._reason()

    def check_wanted(self) -> None:
        """Raise ``CancelledError`` if it was given up."""
        if self._given_up:
            raise CancelledError(
                f"the save of {self.name} was given up while it waited for other ranks: they may commit it still"
            )

    def end(self) -> bool:
        """Whether the caller is the first to end it, and may now keep or break its promises."""
        with self._lock:
            first, self._ended = not self._ended, True
            return first

    def fail(self, error: BaseException) -> None:
        """Break every promise that is still open; after ``end``."""
        self._end_staging(error)
        if not self.durable.done():
            self.durable.set_exception(error)
        self.committed.set_exception(error)

    def _end_staging(self, error: BaseException | None) -> None:
        with self._lock:  # the finisher may fail the save just as its last byte is staged
            if self.staged.done():
                return
            if error is None:
                self.staged.set_result(None)
            else:
                self.staged.set_exception(error)

    def _reason(self) -> CancelledError:
        return CancelledError(f"the save of {self.name} was cancelled")


def _promise() -> Future[Any]:
    """A promise that only its keeper ends: an awaiting task that is cancelled must not cancel the save."""
    promise: Future[Any] = Future()
    promise.set_running_or_notify_cancel()
    return promise


class Finisher:
    """The saves of a store that have not ended, and the thread that takes stored shards to their commit."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open: set[Save] = set()

    def take(self, save: Save) -> None:
        """A save has begun: ``pending`` until it ends."""
        with self._lock:
            self._open.add(save)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="s3dlio-finisher", daemon=True)
                self._thread.start()

    def follow(
        self, save: Save, job: SaveJob, finish: Callable[[StoredObject], CheckpointInfo], discard: Callable[[], None]
    ) -> None:
        """Finish ``save`` once its shard is stored; ``discard`` what is there if it fails before it is durable.

        Both run in the finisher's thread.
        """
        once = [finish]  # a future keeps its callbacks, and a handle the future: what `finish` holds goes when it ran

        def event() -> None:
            try:
                info = once.pop()(job.future.result())
            except Exception as error:  # noqa: BLE001 - whatever it is, the handle raises it, and waiters must not hang
                traceback.clear_frames(error.__traceback__)
                if not save.is_durable:  # afterwards a manifest may name the shard, whatever the commit heard
                    discard()
                self.fail(save, error)
            else:
                self.succeed(save, info)

        job.future.add_done_callback(lambda _: self._queue.put(event))

    def succeed(self, save: Save, info: CheckpointInfo) -> None:
        """A save is committed."""
        if save.end():
            self._drop(save)
            save.committed.set_result(info)

    def fail(self, save: Save, error: BaseException) -> None:
        """A save has failed; it is logged, and its handle raises it."""
        if save.end():
            # As text: a handler that keeps its records would keep the error, and that the frames of whoever caught it.
            level = logging.INFO if isinstance(error, CancelledError) else logging.ERROR
            _log.log(level, "the save of %s failed: %s", save.name, f"{type(error).__name__}: {error}")
            self._drop(save)
            save.fail(error)

    def _drop(self, save: Save) -> None:
        """Off the list, before its promises are settled: whoever is woken may look at once."""
        with self._lock:
            self._open.discard(save)

    def pending(self) -> list[Save]:
        """Saves that have not ended."""
        with self._lock:
            return list(self._open)

    def close(self) -> None:
        """End the thread; the caller has waited for the saves that it wants."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        mark_finishing()
        while (event := self._queue.get()) is not None:
            event()
            del event  # and with it the save, while waiting for the next


def mark_finishing() -> None:
    """The calling thread is one that finishes saves, and calls their callbacks."""
    _here.finishing = True


def check_may_wait() -> None:
    """``S3dlioError`` in a finisher's thread: what it would wait for is its own work."""
    if getattr(_here, "finishing", False):
        raise S3dlioError("a done callback cannot wait for a save or close a store: do it in a thread of your own")
