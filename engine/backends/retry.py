"""Any backend, with transient failures tried again.

Owns when and how often a call is repeated; never what a call does: it wraps the contract and is wrapped like any
backend. Waits grow by decorrelated jitter (each is drawn between ``base`` and three times the one before), so that
ranks refused together do not come back together; a store that asks for fewer requests also holds back all others of the
pool (``pace``). A download goes on from the byte it has reached, with the rest of the same version. A reply lost on the
way makes ``put(if_absent=True)`` fail its own repetition: whoever asked compares what is stored. A request that has
failed for some seconds is told in the log, once for its store and stretch of trouble. Opened by ``open_backend``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..contract import Backend, Limits, ObjectInfo, Page, PartReceipt, Segments, UploadInfo
from ..errors import BrokenReadError, StorageError, ThrottledError
from .pace import Pace, Timing

T = TypeVar("T")
_log = logging.getLogger("s3dlio.engine")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to insist: at most ``attempts`` calls, none begun later than ``deadline`` seconds after the first.

    Waits in seconds lie between ``base`` and ``cap``. Bytes that arrive begin both counts of a download anew.
    ``first_deadline`` is the deadline until the store has answered once, where that is less. A request that will have
    failed for ``warn_after`` seconds before its next attempt is told in the log.
    """

    attempts: int = 6
    base: float = 0.1
    cap: float = 5.0
    deadline: float = 60.0
    first_deadline: float | None = None
    warn_after: float = 5.0


REMOTE = RetryPolicy(attempts=1_000_000, cap=10.0, deadline=120.0)
"""For object stores, which may refuse a burst of requests for a minute and more: only the deadline counts."""


class RetryBackend(Backend):
    """``inner``, with calls that fail with ``StorageError.transient`` repeated within ``policy``.

    The last failure is raised as its own class, its text extended by the operation, the key and the count.
    """

    def __init__(
        self,
        inner: Backend,
        policy: RetryPolicy | None = None,
        timing: Timing | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._inner = inner
        self._policy = policy or RetryPolicy()
        self._timing = timing or Timing()
        self._pace = pace or Pace(timing=self._timing)

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        return self._call("put", key, lambda: self._inner.put(key, data, if_absent=if_absent, if_match=if_match))

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        return self._call("read", key, lambda: self._inner.read(key, limit=limit))

    def head(self, key: str) -> ObjectInfo:
        return self._call("head", key, lambda: self._inner.head(key))

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        call = partial(self._inner.list_page, prefix, shallow=shallow, after=after, limit=limit)
        return self._call("list", prefix, call)

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._inner.delete(key))

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        """Begin again after a failure and leave out what was given already; what is new begins the counts anew."""
        waits, moved = self._waits("uploads", prefix), False
        given: set[tuple[str, str]] = set()
        while True:
            waits.hold()
            try:
                for info in self._inner.uploads(prefix):
                    if (info.key, info.upload) not in given:
                        given.add((info.key, info.upload))
                        moved = True
                        self._pace.answer()
                        yield info
                self._pace.answer()
                return
            except StorageError as error:
                if moved:
                    waits, moved = self._waits("uploads", prefix), False
                waits.after(error)

    def written(self, key: str, upload: str) -> float:
        return self._call("written", key, lambda: self._inner.written(key, upload))

    def abort(self, key: str, upload: str) -> None:
        self._call("abort", key, lambda: self._inner.abort(key, upload))

    def begin(self, key: str, *, size: int | None = None) -> str:
        return self._call("begin", key, lambda: self._inner.begin(key, size=size))

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        name = f"put_part {number}"
        return self._call(name, key, lambda: self._inner.put_part(key, upload, number, offset, data))

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        return self._call("complete", key, lambda: self._inner.complete(key, upload, parts))

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        reached, waits = 0, self._waits("get_range", key)
        while True:
            waits.hold()
            try:
                self._inner.get_range(key, offset + reached, into[reached:], if_match=if_match)
                self._pace.answer()
                return
            except StorageError as error:
                if isinstance(error, BrokenReadError) and error.reached:
                    reached += error.reached
                    waits, if_match = self._anew(key, error, if_match)
                    if reached == into.nbytes:
                        return
                waits.after(error)

    def stream_range(
        self, key: str, offset: int, length: int, block: memoryview, *, if_match: str | None = None
    ) -> Iterator[memoryview]:
        given, waits = 0, self._waits("get_range", key)
        while True:
            waits.hold()
            before = given
            try:
                for piece in self._inner.stream_range(key, offset + given, length - given, block, if_match=if_match):
                    given += piece.nbytes
                    yield piece
                self._pace.answer()
                return
            except StorageError as error:
                if given > before:
                    waits, if_match = self._anew(key, error, if_match)
                    if given == length:
                        return
                waits.after(error)

    def close(self) -> None:
        self._inner.close()

    def _call(self, operation: str, key: str, call: Callable[[], T]) -> T:
        waits = self._waits(operation, key)
        while True:
            waits.hold()
            try:
                result = call()
                self._pace.answer()
                return result
            except StorageError as error:
                waits.after(error)

    def _anew(self, key: str, error: StorageError, if_match: str | None) -> tuple[Waits, str | None]:
        """The counts of a download of which bytes came before it failed, and the version that the rest must be of."""
        self._pace.answer()
        etag = error.etag if isinstance(error, BrokenReadError) else ""
        return self._waits("get_range", key), if_match or etag or None

    def _waits(self, operation: str, key: str) -> Waits:
        return Waits(f"{operation} of {key!r}", self._policy, self._timing, self._pace)


class Waits:
    """The failures of one call so far, and the waits before each attempt; ``name`` tells the call in the last error."""

    def __init__(self, name: str, policy: RetryPolicy, timing: Timing, pace: Pace) -> None:
        self._name = name
        self._policy = policy
        self._timing = timing
        self._pace = pace
        self._begun = timing.clock()
        self._failures = 0
        self._wait = policy.base
        self._last: StorageError | None = None

    def hold(self) -> None:
        """Wait until the pace of all requests allows another; raise the last failure if that is past the deadline."""
        held = self._pace.remaining()
        if not held:
            return
        if self._last is not None and self._spent() + held > self._deadline:
            raise self._final(self._last) from self._last
        self._timing.sleep(held)

    def after(self, error: StorageError) -> None:
        """Wait after a failure, or raise it if there must be no further attempt."""
        self._failures += 1
        self._last = error
        if not error.transient:
            self._pace.answer()
            raise error
        if isinstance(error, ThrottledError):
            self._pace.answer()
            self._pace.slow_down()
        self._wait = min(self._policy.cap, self._timing.uniform(self._policy.base, self._wait * 3))
        if self._failures >= self._policy.attempts or self._spent() + self._wait > self._deadline:
            raise self._final(error) from error
        if self._spent() + self._wait >= self._policy.warn_after and self._pace.trouble():
            _log.warning(
                "%s; it is tried again for up to %.0f s (a store's trouble is told once)",
                self._told(error), self._deadline - self._spent(),
            )  # fmt: skip
        self._timing.sleep(self._wait)

    @property
    def _deadline(self) -> float:
        first = self._policy.first_deadline
        return self._policy.deadline if first is None or self._pace.answered else min(first, self._policy.deadline)

    def _spent(self) -> float:
        return self._timing.clock() - self._begun

    def _final(self, error: StorageError) -> StorageError:
        return type(error)(self._told(error), transient=True)

    def _told(self, error: StorageError) -> str:
        return f"{self._name} failed {self._failures} times in {self._spent():.1f} s, the last time with: {error}"
