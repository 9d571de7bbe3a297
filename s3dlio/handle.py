"""The handle: the user's end of a background save.

Owns nothing but the waiting: ``saving.Save`` holds the three promises (staged, durable, committed) and keeps them. A
failure is raised to whoever asks; a store that is closed raises the failures that nobody asked for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from .engine.errors import DeadlineError, PoolClosedError, S3dlioError
from .engine.job import Progress
from .info import CheckpointInfo
from .saving import Save, check_may_wait

_T = TypeVar("_T")


class Handle:
    """A save on its way: ``staged`` (the caller may change its tensors), ``durable``, ``committed``.

    Made by ``CheckpointStore.save_async``. Waiting methods take seconds (``None``: for ever) and raise
    ``DeadlineError`` when time runs out, which does not stop the save.
    """

    def __init__(self, save: Save) -> None:
        self._save = save
        self._pid = os.getpid()

    def __repr__(self) -> str:
        progress = self.progress()
        stored = f"{progress.stored / 1e6:.0f} of {progress.total / 1e6:.0f} MB stored"
        return f"<Handle of {self._save.name}: {progress.phase}, {stored}>"

    def wait_staged(self, timeout: float | None = None) -> None:
        """Wait until every byte was copied; raises what staging raised."""
        self._wait(self._save.staged, timeout, "staged")

    def wait_durable(self, timeout: float | None = None) -> None:
        """Wait until every byte is stored; raises the save's error if it failed before."""
        self._wait(self._save.durable, timeout, "durable")

    def result(self, timeout: float | None = None) -> CheckpointInfo:
        """The committed checkpoint; raises the save's error if it failed."""
        return self._wait(self._save.committed, timeout, "committed")

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The save's error, ``None`` if it committed."""
        error = None
        try:
            self.result(timeout)
        except BaseException as raised:
            if not self.done() or raised is not (error := self._save.committed.exception()):
                raise
        return error

    def done(self) -> bool:
        """Whether it was committed or failed."""
        return self._save.committed.done()

    def cancel(self) -> bool:
        """Give up, unless every byte is stored already; whether the save will end with ``CancelledError``.

        Nothing is committed by a cancelled save, and what it had uploaded is removed.
        """
        self._check_process()
        return self._save.cancel()

    def add_done_callback(self, function: Callable[[Handle], object]) -> None:
        """Call ``function(handle)`` when it is done, or now if it is.

        It may be called in the thread that commits the store's saves: it should return soon, and it cannot wait for
        other saves there. What it raises is logged.
        """
        self._save.committed.add_done_callback(lambda _: function(self))

    def progress(self) -> Progress:
        """Bytes staged, encoded, stored and in total, and the phase."""
        return self._save.progress()

    def __await__(self) -> Generator[None, None, CheckpointInfo]:
        self._check_process()
        future = asyncio.wrap_future(self._save.committed)
        try:
            return (yield from future.__await__())
        finally:
            self._save.asked = self._save.asked or (future.done() and not future.cancelled())

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise PoolClosedError(f"the save of {self._save.name} belongs to the process that this one was forked from")

    def _wait(self, future: Future[_T], timeout: float | None, what: str) -> _T:
        if not future.done():
            self._check_process()
            check_may_wait()
        try:
            result = future.result(timeout)
        except FutureTimeoutError as error:
            if isinstance(error, S3dlioError):
                self._save.asked = True
                raise
            raise DeadlineError(f"{self._save.name} is not {what} after {timeout} s: {self!r}") from None
        except BaseException:
            self._save.asked = future.done()
            raise
        return result
