"""Background saves: one ``Save`` from its first copy to its commit, and the thread that finishes saves.

Owns the promises behind a ``Handle`` and the store's finishing thread; copying is the job's, storing the workers',
publishing ``commit``'s. Saves of a store are finished in the order in which they become durable, by one thread, so that
their commits do not race each other.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from .engine.errors import CancelledError
from .engine.job import Progress, SaveJob, Source
from .engine.ledger import StoredObject
from .info import CheckpointInfo
from .records import ShardRecord

_log = logging.getLogger("s3dlio")

_PHASES = {"open": "staging", "closing": "storing", "publishing": "storing", "stored": "storing"}


class Save:
    """One save of a state or a payload, as its handle sees it. ``asked``: somebody has seen how it ended."""

    def __init__(self, name: str, job: SaveJob) -> None:
        self.name = name
        self.job = job
        self.staged: Future[None] = Future()
        self.durable: Future[ShardRecord] = Future()
        self.committed: Future[CheckpointInfo] = Future()
        self.asked = False

    def progress(self) -> Progress:
        """The job's progress; the phases after it are the save's."""
        job = self.job.progress()
        phase = _PHASES.get(job.phase, job.phase)
        if self.committed.done():
            phase = "committed" if self.committed.exception() is None else "failed"
        elif self.durable.done():
            phase = "committing"
        return Progress(job.staged, job.encoded, job.stored, job.total, phase)

    def cancel(self) -> bool:
        """Give up unless it is durable."""
        if self.durable.done():
            return False
        self.asked = True  # whoever cancels knows how it ends
        self.job.cancel(CancelledError(f"the save of {self.name} was cancelled"))
        return True

    def wait(self, timeout: float | None) -> bool:
        """Whether it has ended within ``timeout`` seconds."""
        try:
            self.committed.exception(timeout)
        except FutureTimeoutError:
            return False
        return True

    def stage(self, source: Source) -> None:
        """Copy everything; raises what the source raises, and then the save has failed with it."""
        try:
            self.job.stage(source)
        except BaseException as error:
            if not self.staged.done():
                self.staged.set_exception(error)
            raise
        self.staged.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End every promise that is still open."""
        for promise in (self.staged, self.durable, self.committed):
            if not promise.done():
                promise.set_exception(error)


class Finisher:
    """The thread of a store that takes durable shards to their commit.

    ``finish(save, stored)`` does the work and returns the committed checkpoint; it runs in that thread.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._open: set[Save] = set()

    def follow(
        self, save: Save, finish: Callable[[Save, StoredObject], CheckpointInfo], discard: Callable[[], None]
    ) -> None:
        """Finish ``save`` once its shard is stored; ``discard`` what is there if it fails before it is durable."""
        with self._lock:
            self._open.add(save)
            if self._thread is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name="s3dlio-finisher", daemon=True)
                self._thread.start()
        save.job.future.add_done_callback(lambda _: self._queue.put(lambda: self._finish(save, finish, discard)))

    def pending(self) -> list[Save]:
        """Saves that have not ended."""
        with self._lock:
            return list(self._open)

    def close(self) -> None:
        """End the thread; the caller has waited for the saves that it wants."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            event()

    def _finish(
        self, save: Save, finish: Callable[[Save, StoredObject], CheckpointInfo], discard: Callable[[], None]
    ) -> None:
        try:
            info = finish(save, save.job.future.result())
        except Exception as error:  # noqa: BLE001 - whatever it is, the handle raises it, and waiters must not hang
            _log.error("the save of %s failed: %s", save.name, error)
            if not save.durable.done():  # afterwards a manifest may name the shard, whatever the commit heard
                discard()
            save.fail(error)
        else:
            save.committed.set_result(info)
        finally:
            with self._lock:
                self._open.discard(save)
