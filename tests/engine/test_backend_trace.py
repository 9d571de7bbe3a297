from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.backends.trace import TraceBackend, line
from s3dlio.engine.errors import NotFoundError


@pytest.fixture
def backend() -> Iterator[TraceBackend]:
    ticks = iter(range(1000))
    yield TraceBackend(MemoryBackend("test_backend_trace"), clock=lambda: next(ticks) / 100)
    forget("test_backend_trace")


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "s3dlio.engine.backend")
    return caplog


def test_every_call_is_one_line(backend: TraceBackend, debug: pytest.LogCaptureFixture) -> None:
    body = memoryview(bytes(1 << 20))
    backend.put("a", [body, body])
    upload = backend.begin("b", size=1 << 20)
    receipt = backend.put_part("b", upload, 1, 0, [body])
    backend.complete("b", upload, [receipt])
    backend.get_range("b", 0, memoryview(bytearray(1000)))
    for _ in backend.stream_range("b", 5, 3000, memoryview(bytearray(1000))):
        pass
    backend.read("a", limit=1 << 30)
    backend.head("a")
    assert [info.key for info in backend.list()] == ["a", "b"]
    assert list(backend.uploads("x")) == []
    backend.abort("b", upload)
    backend.delete("a")
    backend.close()
    assert debug.messages == [
        "put 'a' 10.0 ms 2097152 B, 210 MB/s: ok",
        "begin 'b' 10.0 ms: ok",
        "put_part 1 'b' 10.0 ms 1048576 B, 105 MB/s: ok",
        "complete 'b' 10.0 ms: ok",
        "get_range 0 'b' 10.0 ms 1000 B, 0 MB/s: ok",
        "stream_range 5 'b' 10.0 ms 3000 B, 0 MB/s: ok",
        "read 'a' 10.0 ms: ok",
        "head 'a' 10.0 ms: ok",
        "list '' 10.0 ms: ok",
        "uploads (0) 'x' 10.0 ms: ok",
        "abort 'b' 10.0 ms: ok",
        "delete 'a' 10.0 ms: ok",
    ]
    assert {record.name for record in debug.records} == {"s3dlio.engine.backend"}


def test_a_failure_is_told_and_raised(backend: TraceBackend, debug: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NotFoundError):
        backend.head("none")
    assert debug.messages == ["head 'none' 10.0 ms: NotFoundError: none does not exist"]


def test_a_listing_left_early_is_told(backend: TraceBackend, debug: pytest.LogCaptureFixture) -> None:
    backend.begin("a")
    backend.begin("b")
    listing = backend.uploads()
    next(listing)
    del listing
    assert debug.messages[-1] == "uploads (1) '' 10.0 ms: not read to the end"


def test_nothing_is_told_above_debug(backend: TraceBackend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "s3dlio.engine.backend")
    backend.put("a", [])
    assert list(backend.list())
    assert caplog.messages == []


def test_a_call_too_short_to_measure_has_no_rate() -> None:
    assert line("put", "k", 5, 0.0, "ok") == "put 'k' 0.0 ms 5 B: ok"
