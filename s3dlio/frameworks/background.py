"""Work behind a training loop's back: tasks one after another in a thread, their failures raised at the next call.

Owns the order, the thread and the errors that nobody has seen yet; never knows what a task does. ``lightning`` and
``hf`` hand in what has to wait for a save or an upload.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_log = logging.getLogger("s3dlio")


class Background:
    """Tasks run in the order in which they were handed in; a failure stops none of those behind it.

    The thread starts with the first task and ends with ``close``, after which it may start again. An interpreter that
    ends runs what was handed in. A forked child begins with no tasks.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._failed: list[Exception] = []

    def submit(self, task: Callable[[], None]) -> Future[None]:
        """Hand in a task; the future tells when it has run, and its error, which ``check`` raises as well."""
        if self._pid != os.getpid():  # the thread is the parent's
            self._begin()
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, self._name)
            return self._executor.submit(self._run, task)

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # a kept error keeps no state
            _log.error("%s", error)
            with self._lock:
                self._failed.append(error)
            raise

    def check(self) -> None:
        """Raise the first error that was not raised yet; each was logged when it happened."""
        with self._lock:
            failed, self._failed = self._failed, []
        if failed:
            raise failed[0]

    def wait(self) -> None:
        """Until everything that was handed in has run; then ``check``."""
        if self._executor is not None and self._pid == os.getpid():
            self.submit(_nothing).result()
        self.check()

    def close(self) -> None:
        """Run what was handed in, end the thread, then ``check``."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None and self._pid == os.getpid():
            executor.shutdown()
        self.check()


def _nothing() -> None:
    pass
