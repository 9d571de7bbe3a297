"""Any backend, with each call told at debug level.

Owns one log line a call: operation, key, bytes, milliseconds, MB/s and outcome, on the logger
``s3dlio.engine.backend``; changes nothing of a call. Workers relay the records to the parent. Opened by
``open_backend`` inside the retry wrapper, so that every attempt is seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from ..contract import Backend, Limits, ObjectInfo, Page, PartReceipt, Segments, UploadInfo

T = TypeVar("T")

log = logging.getLogger("s3dlio.engine.backend")


class TraceBackend(Backend):
    """``inner``, with a log record for each call; ``clock`` gives seconds."""

    def __init__(self, inner: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner = inner
        self._clock = clock

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        size = sum(view.nbytes for view in data)
        return self._call("put", key, size, lambda: self._inner.put(key, data, if_absent=if_absent, if_match=if_match))

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        return self._call("read", key, None, lambda: self._inner.read(key, limit=limit))

    def head(self, key: str) -> ObjectInfo:
        return self._call("head", key, None, lambda: self._inner.head(key))

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        call = partial(self._inner.list_page, prefix, shallow=shallow, after=after, limit=limit)
        return self._call("list", prefix, None, call)

    def delete(self, key: str) -> None:
        self._call("delete", key, None, lambda: self._inner.delete(key))

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        def told(count: int, seconds: float, outcome: str) -> str:
            return line(f"uploads ({count})", prefix, None, seconds, outcome)

        return self._iterate(self._inner.uploads(prefix), lambda _: 1, told)

    def written(self, key: str, upload: str) -> float:
        return self._call("written", key, None, lambda: self._inner.written(key, upload))

    def abort(self, key: str, upload: str) -> None:
        self._call("abort", key, None, lambda: self._inner.abort(key, upload))

    def begin(self, key: str, *, size: int | None = None) -> str:
        return self._call("begin", key, None, lambda: self._inner.begin(key, size=size))

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        size = sum(view.nbytes for view in data)
        name = f"put_part {number}"
        return self._call(name, key, size, lambda: self._inner.put_part(key, upload, number, offset, data))

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        return self._call("complete", key, None, lambda: self._inner.complete(key, upload, parts))

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        name = f"get_range {offset}"
        self._call(name, key, into.nbytes, lambda: self._inner.get_range(key, offset, into, if_match=if_match))

    def stream_range(
        self, key: str, offset: int, length: int, block: memoryview, *, if_match: str | None = None
    ) -> Iterator[memoryview]:
        def told(size: int, seconds: float, outcome: str) -> str:
            return line(f"stream_range {offset}", key, size, seconds, outcome)  # what is done with the pieces included

        pieces = self._inner.stream_range(key, offset, length, block, if_match=if_match)
        return self._iterate(pieces, lambda piece: piece.nbytes, told)

    def close(self) -> None:
        self._inner.close()

    def _call(self, operation: str, key: str, size: int | None, call: Callable[[], T]) -> T:
        if not log.isEnabledFor(logging.DEBUG):
            return call()
        begun, outcome = self._clock(), "ok"
        try:
            return call()
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
            raise
        finally:
            log.debug("%s", line(operation, key, size, self._clock() - begun, outcome))

    def _iterate(
        self, items: Iterator[T], weight: Callable[[T], int], told: Callable[[int, float, str], str]
    ) -> Iterator[T]:
        """One line when the iteration ends; its time includes what the consumer did between items."""
        begun, outcome, total = self._clock(), "not read to the end", 0
        try:
            for item in items:
                total += weight(item)
                yield item
            outcome = "ok"
        except GeneratorExit:
            raise
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
            raise
        finally:
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s", told(total, self._clock() - begun, outcome))


def line(operation: str, key: str, size: int | None, seconds: float, outcome: str) -> str:
    """The text of one record; ``size`` in bytes where the call moves any."""
    text = f"{operation} {key!r} {seconds * 1e3:.1f} ms"
    if size is not None:
        rate = f", {size / seconds / 1e6:.0f} MB/s" if seconds > 0 else ""
        text += f" {size} B{rate}"
    return f"{text}: {outcome}"
