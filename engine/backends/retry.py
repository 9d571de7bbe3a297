"""Any backend, with transient failures tried again.

Owns when and how often a call is repeated; never what a call does: it wraps the contract and is wrapped like any
backend. Waits grow by decorrelated jitter (each is drawn between ``base`` and three times the one before), so that
ranks refused together do not come back together. A reply lost on the way makes ``put(if_absent=True)`` fail its own
repetition: whoever asked compares what is stored. Opened by ``open_backend``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..contract import Backend, Limits, ObjectInfo, PartReceipt, Segments, UploadInfo
from ..errors import StorageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to insist: at most ``attempts`` calls, none begun later than ``deadline`` seconds after the first.

    Waits in seconds lie between ``base`` and ``cap``.
    """

    attempts: int = 6
    base: float = 0.1
    cap: float = 5.0
    deadline: float = 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from; tests give their own.

    Chance is not the module ``random``'s: a training run's seeded generator must not advance because a store was busy.
    """

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = field(default_factory=lambda: random.Random().uniform)


class RetryBackend:
    """``inner``, with calls that fail with ``StorageError.transient`` repeated within ``policy``.

    The last failure is raised as its own class, its text extended by the operation, the key and the count.
    """

    def __init__(self, inner: Backend, policy: RetryPolicy | None = None, timing: Timing | None = None) -> None:
        self._inner = inner
        self._policy = policy or RetryPolicy()
        self._timing = timing or Timing()

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
        return self._call("put_part", key, lambda: self._inner.put_part(key, upload, number, offset, data))

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        return self._call("complete", key, lambda: self._inner.complete(key, upload, parts))

    def get_range(self, key: str, offset: int, into: memoryview) -> None:
        self._call("get_range", key, lambda: self._inner.get_range(key, offset, into))

    def close(self) -> None:
        self._inner.close()

    def _call(self, operation: str, key: str, call: Callable[[], T]) -> T:
        begun = self._timing.clock()
        waits: _Waits | None = None
        while True:
            try:
                return call()
            except StorageError as error:
                waits = waits or _Waits(operation, key, begun, self._policy, self._timing)
                waits.after(error)

    def _iterate(
        self, operation: str, prefix: str, begin: Callable[[], Iterator[T]], name: Callable[[T], object]
    ) -> Iterator[T]:
        """Begin again after a failure and leave out what was given already."""
        waits = _Waits(operation, prefix, self._timing.clock(), self._policy, self._timing)
        given: set[object] = set()
        while True:
            try:
                for item in begin():
                    if name(item) not in given:
                        given.add(name(item))
                        yield item
                return
            except StorageError as error:
                waits.after(error)


class _Waits:
    """The failures of one call so far, and the wait after each."""

    def __init__(self, operation: str, key: str, begun: float, policy: RetryPolicy, timing: Timing) -> None:
        self._name = f"{operation} of {key!r}"
        self._policy = policy
        self._timing = timing
        self._begun = begun
        self._failures = 0
        self._wait = policy.base

    def after(self, error: StorageError) -> None:
        """Wait before the next attempt, or raise ``error`` if there must be none."""
        self._failures += 1
        if not error.transient:
            raise error
        self._wait = min(self._policy.cap, self._timing.uniform(self._policy.base, self._wait * 3))
        spent = self._timing.clock() - self._begun
        if self._failures >= self._policy.attempts or spent + self._wait > self._policy.deadline:
            raise type(error)(
                f"{self._name} failed {self._failures} times in {spent:.1f} s, the last time with: {error}",
                transient=True,
            ) from error
        self._timing.sleep(self._wait)
