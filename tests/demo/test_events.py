from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from s3dlio.demo.events import emit, parse, read_events
from s3dlio.engine.errors import DeadlineError


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0, closefd=False):
        yield reading, writing


def test_what_is_emitted_is_read(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    emit(writing, "step", step=3, loss=0.1)
    emit(writing, "final", digests={"model": "ab"})
    os.close(writing)
    assert list(read_events(reading, silence=5)) == [
        {"event": "step", "step": 3, "loss": 0.1},
        {"event": "final", "digests": {"model": "ab"}},
    ]


def test_a_line_in_two_pieces_and_foreign_lines(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b'hello\n[1]\n{"event": "st')
    events = read_events(reading, silence=5)
    os.write(writing, b'art"}\n{"event": "torn')
    os.close(writing)
    assert list(events) == [{"event": "start"}]


def test_silence_is_a_deadline(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    with pytest.raises(DeadlineError, match="said nothing for 0 s"):
        next(read_events(reading, silence=0.0))
    os.close(writing)


@pytest.mark.parametrize("line", [b"", b"null", b"3", b'"event"', b'{"step": 1}', b"\xff"])
def test_other_lines_are_no_events(line: bytes) -> None:
    assert parse(line) is None
