"""Any backend, with transient failures tried again.

Owns when and how often a call is repeated; never what a call does: it wraps the contract and is wrapped like any
backend. Waits grow by decorrelated jitter (each is drawn between ``base`` and three times the one before), so that
ranks refused together do not come back together; a store that asks for fewer requests also holds back all others of the
pool (``pace``). A download goes on from the byte it has reached. A reply lost on the way makes ``put(if_absent=True)``
fail its own repetition: whoever asked compares what is stored. Opened by ``open_backend``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..contract import Backend, Limits, ObjectInfo, PartReceipt, Segments, UploadInfo
from ..errors import BrokenReadError, StorageError, ThrottledError
from .pace import Pace, Timing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to insist: at most ``attempts`` calls, none begun later than ``deadline`` seconds after the first.

    Waits in seconds lie between ``base`` and ``cap``. Bytes that arrive begin both counts of a download anew.
    """

    attempts: int = 6
    base: float = 0.1
    cap: float = 5.0
    deadline: float = 60.0


REMOTE = RetryPolicy(attempts=1000, cap=10.0, deadline=120.0)
"""For object stores, which may refuse a burst of requests for a minute and more: only the deadline counts."""


class RetryBackend:
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

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._iterate("list", prefix, lambda: self._inner.list(prefix), lambda info: info.key)

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._inner.delete(key))

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        return self._iterate(
            "uploads", prefix, lambda: self._inner.uploads(prefix), lambda info: (info.key, info.upload)
        )

    def abort(self, key: str, upload: str) -> None:
        self._call("abort", key, lambda: self._inner.abort(key, upload))

    def begin(self, key: str, *, size: int | None = None) -> str:
        return self._call("begin", key, lambda: self._inner.begin(key, size=size))

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        name = f"put_part {number}"
        return self._call(name, key, lambda: self._inner.put_part(key, upload, number, offset, data))

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        return self._call("complete", key, lambda: self._inner.complete(key, upload, parts))

    def get_range(self, key: str, offset: int, into: memoryview) -> None:
        reached, waits = 0, self._waits("get_range", key)
        while True:
            waits.hold()
            try:
                return self._inner.get_range(key, offset + reached, into[reached:])
            except StorageError as error:
                if isinstance(error, BrokenReadError) and error.reached:
                    reached, waits = reached + error.reached, self._waits("get_range", key)
                    if reached == into.nbytes:
                        return None
                waits.after(error)

    def close(self) -> None:
        self._inner.close()

    def _call(self, operation: str, key: str, call: Callable[[], T]) -> T:
        waits = self._waits(operation, key)
        while True:
            waits.hold()
            try:
                return call()
            except StorageError as error:
                waits.after(error)

    def _iterate(
        self, operation: str, prefix: str, begin: Callable[[], Iterator[T]], name: Callable[[T], object]
    ) -> Iterator[T]:
        """Begin again after a failure and leave out what was given already; what is new begins the counts anew."""
        waits, moved = self._waits(operation, prefix), False
        given: set[object] = set()
        while True:
            waits.hold()
            try:
                for item in begin():
                    if name(item) not in given:
                        given.add(name(item))
                        moved = True
                        yield item
                return
            except StorageError as error:
                if moved:
                    waits, moved = self._waits(operation, prefix), False
                waits.after(error)

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
        if self._last is not None and self._spent() + held > self._policy.deadline:
            raise self._final(self._last) from self._last
        self._timing.sleep(held)

    def after(self, error: StorageError) -> None:
        """Wait after a failure, or raise it if there must be no further attempt."""
        self._failures += 1
        self._last = error
        if not error.transient:
            raise error
        if isinstance(error, ThrottledError):
            self._pace.slow_down()
        self._wait = min(self._policy.cap, self._timing.uniform(self._policy.base, self._wait * 3))
        if self._failures >= self._policy.attempts or self._spent() + self._wait > self._policy.deadline:
            raise self._final(error) from error
        self._timing.sleep(self._wait)

    def _spent(self) -> float:
        return self._timing.clock() - self._begun

    def _final(self, error: StorageError) -> StorageError:
        return type(error)(
            f"{self._name} failed {self._failures} times in {self._spent():.1f} s, the last time with: {error}",
            transient=True,
        )
