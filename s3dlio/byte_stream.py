"""A write whose bytes come bit by bit: open, then finished once, cancelled or failed.

Owns that life: buffers are taken in turn, the first error ends it, and whoever loses it cancels it. Never knows what is
written: ``object_stream`` (one object) and ``shards`` (a checkpoint's shard) say so.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from .content import buffer_of
from .engine.actions import StoredObject
from .engine.errors import CancelledError, S3dlioError
from .engine.stream import StreamJob

Result = TypeVar("Result")


class ByteStream(ABC, Generic[Result]):
    """A write in bounded memory: parts leave while writing goes on. It holds memory from the first byte on.

    ``written`` counts bytes taken; ``state`` is ``open``, then ``FINISHED``, ``CANCELLED`` or ``failed``; ``result`` is
    what ``finish`` gave. Methods may be called by several threads.
    """

    FINISHED: ClassVar[str]
    CANCELLED: ClassVar[str]

    def __init__(self) -> None:
        self.written = 0
        self.state = "open"
        self.result: Result | None = None
        self._job: StreamJob | None = None
        self._collected: weakref.finalize[[], ByteStream[Result]] | None = None
        self._error: BaseException | None = None
        self._turn = threading.Lock()

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abstractmethod
    def _start(self) -> StreamJob:
        """The job that takes the bytes."""

    @abstractmethod
    def _result_of(self, stored: StoredObject) -> Result:
        """The object is durable: do what is left to do."""

    @abstractmethod
    def _store_nothing(self) -> Result:
        """Finish a write without a byte, which has no job."""

    @abstractmethod
    def _discard(self) -> None:
        """Remove what may have been published of a failed write; its job has ended."""

    def write(self, data: Any) -> int:
        """Copy the bytes of a buffer, waiting while memory is full; their number.

        ``UnsupportedError`` (a ``TypeError``) for what is no buffer leaves the write as it was. Any other error, also
        that of bytes written before, ends it.
        """
        view = buffer_of(data)
        with self._turn:
            self.check_open()
            if len(view):
                try:
                    self._open_job().feed(view)
                except BaseException as error:
                    self._fail(error)
                    raise
            self.written += len(view)
        return len(view)

    def finish(self) -> Result:
        """No more bytes: wait until all is durable; ``result``. On an error nothing of it stays."""
        with self._turn:
            self.check_open()
            try:
                self.result = self._finish()
            except BaseException as error:
                self._fail(error)
                raise
            self.state = self.FINISHED
            return self.result

    def cancel(self) -> None:
        """Give up and remove what was stored; nothing happens if it has ended."""
        job = self._job
        if job is not None:
            job.cancel()  # wakes a thread that waits in `write` with the turn
        with self._turn:
            if self.state == "open":
                self._fail(CancelledError(f"{self.name} was {self.CANCELLED}"))

    def check_open(self) -> None:
        """``S3dlioError`` once it has ended."""
        if self.state == "open":
            return
        message = f"{self.name} is {self.state}: start another"
        if isinstance(self._error, CancelledError):
            raise CancelledError(message)
        raise S3dlioError(message) from self._error

    def _open_job(self) -> StreamJob:
        if self._job is None:
            self._job = self._start()
            self._collected = weakref.finalize(self, self._job.drop)
            self._collected.atexit = False  # an ending process ends its stores and pools, and they what is open
        return self._job

    def _finish(self) -> Result:
        if self._job is None:
            return self._store_nothing()
        self._job.end()
        result = self._result_of(self._job.future.result())
        self._forget()
        return result

    def _fail(self, error: BaseException) -> None:
        self.state, self._error = self.CANCELLED if isinstance(error, CancelledError) else "failed", error
        job = self._job
        if job is not None:
            self._forget()
            job.drop()
            job.future.exception()  # once it has ended nobody publishes any more
            self._discard()

    def _forget(self) -> None:
        """The job has ended, or is about to: nothing is left to do at collection."""
        self._job = None
        if self._collected is not None:
            self._collected.detach()
