from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from s3dlio.engine.backends import direct_io
from s3dlio.engine.backends.direct_io import ALIGNMENT, BOUNCE

BODY = random.Random(5).randbytes(3 * BOUNCE + 777)

segments = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 512, ALIGNMENT - 1]),
        st.one_of(st.integers(0, 3 * ALIGNMENT), st.sampled_from([ALIGNMENT, BOUNCE, BOUNCE + 1, 2 * BOUNCE])),
    ),
    max_size=8,
)


@given(shapes=segments)
@example(shapes=[(0, 5000), (3192, 100_000)])
def test_steps_give_every_byte_once_and_only_what_o_direct_takes(shapes: list[tuple[int, int]]) -> None:
    placed = [(index * (4 << 20) + shift, length) for index, (shift, length) in enumerate(shapes)]
    seen: list[tuple[int, int]] = []
    given_before = 0
    for direct, pieces in direct_io.steps(placed):
        assert given_before % ALIGNMENT == 0, "only the last step may end between boundaries"
        size = sum(end - begin for _, begin, end in pieces)
        assert size > 0
        given_before += size
        if direct:
            for index, begin, end in pieces:
                assert (placed[index][0] + begin) % ALIGNMENT == 0
                assert (end - begin) % ALIGNMENT == 0
        else:
            assert size <= BOUNCE
        seen += [(index, at) for index, begin, end in pieces for at in (begin, end)]
    edges = [(index, at) for index, (_, length) in enumerate(placed) if length for at in (0, length)]
    merged = [edge for place, edge in enumerate(seen) if edge not in (*seen[:place][-1:], *seen[place + 1 :][:1])]
    assert merged == edges


@given(shapes=segments)
def test_what_lies_right_is_not_copied(shapes: list[tuple[int, int]]) -> None:
    placed = [(index * (4 << 20), length - length % ALIGNMENT) for index, (_, length) in enumerate(shapes)]
    assert all(direct for direct, _ in direct_io.steps(placed))


def test_a_copy_ends_where_the_rest_lies_right() -> None:
    whole = list(direct_io.steps([(ALIGNMENT - 100, 100), (3996, 10 * ALIGNMENT)]))
    assert [direct for direct, _ in whole] == [False]
    resumed = list(direct_io.steps([(0, 96), (96, 10 * ALIGNMENT)]))
    assert [(direct, sum(end - begin for _, begin, end in pieces)) for direct, pieces in resumed] == [
        (False, ALIGNMENT),
        (True, 9 * ALIGNMENT),
        (False, 96),
    ]


@pytest.mark.parametrize("body", [bytearray(9), b"123456789", mmap.mmap(-1, 9)])
def test_address_is_where_the_bytes_lie(body: bytes | bytearray | mmap.mmap) -> None:
    with memoryview(body) as whole:
        assert direct_io.address(whole[5:]) - direct_io.address(whole) == 5
        if isinstance(body, mmap.mmap):
            assert direct_io.address(whole) % mmap.PAGESIZE == 0
    if isinstance(body, bytearray):
        body.clear()  # BufferError if the view were still held
    elif isinstance(body, mmap.mmap):
        body.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def filled(file: int) -> int:
    assert os.pwrite(file, BODY, 0) == len(BODY)
    os.fsync(file)
    return file


class Shortened:
    """``os.pwritev`` and ``os.preadv`` that move a few bytes less than they could, as a full disk or a signal makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.step = step
        self.calls = 0
        self._write, self._read = os.pwritev, os.preadv
        monkeypatch.setattr(os, "pwritev", self.write)
        monkeypatch.setattr(os, "preadv", self.read)

    def _first(self, views: Sequence[memoryview]) -> list[memoryview]:
        self.calls += 1
        return [views[0][: self.step]]

    def write(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        return self._write(fd, self._first(views), offset)

    def read(self, fd: int, views: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        return self._read(fd, self._first(views), offset, flags)


def cut(body: bytes | memoryview, edges: Sequence[int]) -> list[memoryview]:
    bounds = [0, *edges, len(body)]
    return [memoryview(body)[begin:end] for begin, end in itertools.pairwise(bounds)]


def aligned(body: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(body))
    memory.write(body)
    return memory


@pytest.mark.parametrize(
    "edges", [[], [1], [ALIGNMENT], [ALIGNMENT + 1, 2 * ALIGNMENT], [BOUNCE, BOUNCE], [7, 2 * BOUNCE]]
)
@pytest.mark.parametrize("step", [None, ALIGNMENT * 3])
def test_written_directly_the_file_holds_the_bytes_and_a_padded_tail(
    file: int, monkeypatch: pytest.MonkeyPatch, edges: list[int], step: int | None
) -> None:
    assert direct_io.go_direct(file), "these tests need a file system with O_DIRECT"
    short = Shortened(monkeypatch, step) if step else None
    with aligned(BODY) as memory, memoryview(memory) as whole:
        direct_io.write_direct(file, ALIGNMENT, cut(whole, edges))
    if short:
        assert short.calls > len(BODY) // (ALIGNMENT * 3)
    monkeypatch.undo()
    direct_io.go_buffered(file)
    assert os.pread(file, 4 * BOUNCE, ALIGNMENT) == BODY.ljust(direct_io.up(len(BODY)), b"\0")


def test_a_step_that_ends_between_boundaries_is_written_again(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert direct_io.go_direct(file)
    told: list[int] = []
    real = os.pwritev

    def write(fd: int, views: Sequence[memoryview], offset: int) -> int:
        told.append(offset)
        return real(fd, views, offset) - (100 if len(told) == 1 else 0)

    monkeypatch.setattr(os, "pwritev", write)
    with aligned(BODY[: 4 * ALIGNMENT]) as memory, memoryview(memory) as whole:
        direct_io.write_direct(file, 0, [whole])
    assert told == [0, 3 * ALIGNMENT]


@pytest.mark.parametrize(
    ("write", "number"), [(direct_io.write_direct, errno.EINVAL), (direct_io.write_buffered, errno.EIO)]
)
def test_a_write_that_takes_nothing_does_not_go_on_forever(
    file: int, monkeypatch: pytest.MonkeyPatch, write: object, number: int
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: 0)
    with pytest.raises(OSError, match="took no bytes") as caught:
        write(file, 0, [memoryview(b"body")])  # type: ignore[operator]
    assert caught.value.errno == number


@pytest.mark.parametrize("step", [1000, ALIGNMENT, BOUNCE])
def test_short_buffered_writes_go_on(file: int, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    Shortened(monkeypatch, step)
    direct_io.write_buffered(file, 3, cut(BODY, [5, 5, ALIGNMENT]))
    assert os.pread(file, 4 * BOUNCE, 3) == BODY


@given(
    offset=st.one_of(st.integers(0, 3 * ALIGNMENT), st.integers(0, len(BODY))),
    length=st.one_of(st.integers(0, 3 * ALIGNMENT), st.integers(0, len(BODY))),
    shift=st.sampled_from([0, 1, 511, 512, ALIGNMENT - 1]),
    direct=st.booleans(),
)
@example(offset=100, length=len(BODY) - 100, shift=0, direct=True)
@example(offset=100, length=len(BODY) - 100, shift=100, direct=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_reads_fill_their_buffer_up_to_the_end(filled: int, offset: int, length: int, shift: int, direct: bool) -> None:
    assert direct_io.go_direct(filled)
    with mmap.mmap(-1, 5 << 20) as memory, memoryview(memory) as whole, whole[shift : shift + length] as into:
        if direct:
            got = direct_io.read_direct(filled, offset, into)
        else:
            direct_io.go_buffered(filled)
            got = direct_io.read_buffered(filled, offset, into)
        expected = BODY[offset : offset + length]
        assert got == len(expected)
        assert into[:got] == expected
        assert whole[shift + length : shift + length + ALIGNMENT] == bytes(ALIGNMENT)


@pytest.mark.parametrize("offset", [0, 100, ALIGNMENT])
@pytest.mark.parametrize("shift", [0, 100])
@pytest.mark.parametrize("step", [ALIGNMENT, 5 * ALIGNMENT])
def test_short_direct_reads_go_on(
    filled: int, monkeypatch: pytest.MonkeyPatch, offset: int, shift: int, step: int
) -> None:
    assert direct_io.go_direct(filled)
    short = Shortened(monkeypatch, step)
    with mmap.mmap(-1, 4 << 20) as memory, memoryview(memory) as whole, whole[shift : shift + len(BODY)] as into:
        assert direct_io.read_direct(filled, offset, into) == len(BODY) - offset
        assert into[: len(BODY) - offset] == BODY[offset:]
    assert short.calls > 10


def test_short_cached_reads_go_on(filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    direct_io.read_buffered(filled, 0, memoryview(bytearray(len(BODY))))
    Shortened(monkeypatch, 100_000)
    into = bytearray(len(BODY) + 5)
    assert direct_io.read_cached(filled, 0, memoryview(into)) == len(BODY)
    assert into[:-5] == BODY


def test_what_is_not_cached_is_not_read(filled: int) -> None:
    os.posix_fadvise(filled, 0, 0, os.POSIX_FADV_DONTNEED)
    got = direct_io.read_cached(filled, BOUNCE, memoryview(bytearray(2 * BOUNCE)))
    assert got is not None
    assert got < 2 * BOUNCE


def test_a_file_system_that_cannot_tell_what_is_cached(filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "preadv", refuse)
    assert direct_io.read_cached(filled, 0, memoryview(bytearray(10))) is None
    monkeypatch.delattr(os, "RWF_NOWAIT")
    assert direct_io.read_cached(filled, 0, memoryview(bytearray(10))) is None


def test_a_failing_cached_read_is_raised(filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output"):
        direct_io.read_cached(filled, 0, memoryview(bytearray(10)))


def test_o_direct_goes_on_and_off(filled: int) -> None:
    assert direct_io.go_direct(filled)
    assert fcntl.fcntl(filled, fcntl.F_GETFL) & os.O_DIRECT
    direct_io.go_buffered(filled)
    assert not fcntl.fcntl(filled, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.parametrize(("number", "refused"), [(errno.EINVAL, True), (errno.EOPNOTSUPP, True), (errno.EBADF, False)])
def test_a_refusal_is_told_from_a_failure(monkeypatch: pytest.MonkeyPatch, number: int, refused: bool) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    if refused:
        assert direct_io.go_direct(0) is False
    else:
        with pytest.raises(OSError, match="descriptor"):
            direct_io.go_direct(0)


def test_without_o_direct_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT")
    assert direct_io.go_direct(0) is False
    direct_io.go_buffered(-1)  # touches no descriptor
