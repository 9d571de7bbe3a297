"""Bytes between memory and a file past the page cache.

Owns the rules of O_DIRECT (file offset, length and memory address at multiples of ``ALIGNMENT``), the bounce buffer
for what does not fit them, and the loops around short reads and writes. Knows no keys and no folders, and raises
``OSError`` only. Called by ``posix``.

Bytes that lie right go from the caller's memory to the device without a copy. The rest (an unaligned segment, the tail)
passes through 1 MiB a thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence

ALIGNMENT = 4096
"""Logical blocks are 512 or 4096 bytes; a file system that wants more refuses, and its cache is used."""
BOUNCE = 1 << 20
PROBE = 4096
"""Bytes asked for to learn whether a range is cached: a miss starts read-ahead, the shorter the less of it."""
SMALL = 256 << 10
"""Below this a read through the cache is as fast as past it, and a second one finds its read-ahead."""
IOV_MAX = 1024

_local = threading.local()


class _PyBuffer(ctypes.Structure):
    """CPython's ``Py_buffer``; in its stable ABI since 3.11, unchanged since 3.3."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address(view: memoryview) -> int:
    """Where a view's bytes lie; unlike ``ctypes.from_buffer`` it takes read-only ones too."""
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    try:
        return buffer.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))


def go_direct(fd: int) -> bool:
    """Turn O_DIRECT on for an open file; ``False`` where its file system refuses."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def go_buffered(fd: int) -> None:
    """Turn O_DIRECT off again."""
    if hasattr(os, "O_DIRECT"):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def down(value: int) -> int:
    """The multiple of ``ALIGNMENT`` at or below ``value``."""
    return value - value % ALIGNMENT


def up(value: int) -> int:
    """The multiple of ``ALIGNMENT`` at or above ``value``."""
    return down(value + ALIGNMENT - 1)


def steps(segments: Sequence[tuple[int, int]]) -> Iterator[tuple[bool, list[tuple[int, int, int]]]]:
    """How to write ``segments``, each an address and a length, with O_DIRECT from an aligned file offset.

    Yields ``(direct, pieces)`` in order, a piece being (segment, begin, end). Direct steps hold whole aligned pieces,
    to be written from where they lie; the others hold up to ``BOUNCE`` bytes to be gathered first, a multiple of
    ``ALIGNMENT`` but for the very last.
    """
    straight: list[tuple[int, int, int]] = []
    gathered: list[tuple[int, int, int]] = []
    held = 0  # bytes gathered
    for index, (start, length) in enumerate(segments):
        at = 0
        while at < length:
            if held % ALIGNMENT == 0 and (start + at) % ALIGNMENT == 0 and length - at >= ALIGNMENT:
                if gathered:
                    yield False, gathered
                    gathered, held = [], 0
                end = at + down(length - at)
                straight.append((index, at, end))
            else:
                if straight:
                    yield True, straight
                    straight = []
                # To the next boundary if the segment lies right from there on, else as much as the bounce takes.
                to_boundary = -held % ALIGNMENT or ALIGNMENT
                lies_right = (start + at + to_boundary) % ALIGNMENT == 0
                end = min(length, at + (to_boundary if lies_right else BOUNCE - held))
                gathered.append((index, at, end))
                held += end - at
                if held == BOUNCE:
                    yield False, gathered
                    gathered, held = [], 0
            at = end
    if straight:
        yield True, straight
    if gathered:
        yield False, gathered


def write_direct(fd: int, offset: int, data: Sequence[memoryview]) -> None:
    """Write ``data`` from an aligned ``offset`` with O_DIRECT on; a tail is padded with zeros to ``ALIGNMENT``.

    ``OSError`` with EINVAL if the file system refuses after all; the bytes written until then are right.
    """
    for direct, pieces in steps([(address(view), view.nbytes) for view in data]):
        views = [data[index][begin:end] for index, begin, end in pieces]
        offset = _write_all(fd, offset, views if direct else [_gather(views)], ALIGNMENT)


def write_buffered(fd: int, offset: int, data: Sequence[memoryview]) -> None:
    """Write ``data`` from ``offset`` through the page cache; not durable before an fsync."""
    _write_all(fd, offset, [view for view in data if view.nbytes], 1)


def read_direct(fd: int, offset: int, into: memoryview) -> int:
    """Fill ``into`` from ``offset`` with O_DIRECT on; returns the bytes read, fewer only at the end of the file."""
    base = address(into)
    size = into.nbytes
    done = 0
    while done < size:
        at = offset + done
        whole = down(size - done)
        lies_right = (base + done) % ALIGNMENT == at % ALIGNMENT
        if lies_right and at % ALIGNMENT == 0 and whole:
            got = os.preadv(fd, [into[done : done + whole]], at)
        elif not lies_right and whole > BOUNCE:
            got = _read_shifted(fd, at, into[done:], base + done)
        else:
            got = _read_bounced(fd, at, into[done:], lies_right=lies_right)
        if got <= 0:
            break
        done += got
    return done


def read_buffered(fd: int, offset: int, into: memoryview) -> int:
    """Fill ``into`` from ``offset`` through the page cache; returns the bytes read, fewer only at the file's end."""
    done = 0
    while done < into.nbytes:
        got = os.preadv(fd, [into[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def read_cached(fd: int, offset: int, into: memoryview) -> int | None:
    """Fill the beginning of ``into`` with what the page cache holds from ``offset``; returns the bytes read.

    ``None`` where the file system cannot tell what is cached.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    done = 0
    while done < into.nbytes:
        end = into.nbytes if done else min(PROBE, into.nbytes)
        try:
            got = os.preadv(fd, [into[done:end]], offset + done, os.RWF_NOWAIT)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return None
            raise
        if got == 0:
            break
        done += got
    return done


def _bounce() -> memoryview:
    """This thread's bounce buffer, ``BOUNCE`` bytes on a page."""
    buffer: memoryview | None = getattr(_local, "bounce", None)
    if buffer is None:
        buffer = _local.bounce = memoryview(mmap.mmap(-1, BOUNCE))
    return buffer


def _gather(views: Sequence[memoryview]) -> memoryview:
    """The views' bytes one after the other, padded with zeros to ``ALIGNMENT``."""
    buffer = _bounce()
    held = 0
    for view in views:
        buffer[held : held + view.nbytes] = view
        held += view.nbytes
    padded = up(held)
    buffer[held:padded] = bytes(padded - held)
    return buffer[:padded]


def _read_shifted(fd: int, offset: int, into: memoryview, base: int) -> int:
    """Read most of ``into``, which lies at ``base``, straight into it but too far back, then move it to its place.

    One large request and one pass over memory: measured 1.3 times as fast as 1 MiB requests through the bounce.
    """
    begin = down(offset)
    free = -base % ALIGNMENT
    shift = free + offset - begin
    got = os.preadv(fd, [into[free : free + down(into.nbytes - free)]], begin) - (offset - begin)
    if got > 0:
        ctypes.memmove(base, base + shift, got)  # with the GIL released, unlike a slice's assignment
    return got


def _read_bounced(fd: int, offset: int, into: memoryview, *, lies_right: bool) -> int:
    """Read some bytes for ``into`` through the bounce: to the next boundary where the rest can go straight."""
    begin = down(offset)
    skip = offset - begin
    need = up(skip + into.nbytes)
    want = min(BOUNCE, ALIGNMENT if lies_right and skip else need)
    buffer = _bounce()[:want]
    got = min(os.preadv(fd, [buffer], begin) - skip, into.nbytes)
    if got > 0:
        into[:got] = buffer[skip : skip + got]
    return got


def _write_all(fd: int, offset: int, views: Sequence[memoryview], alignment: int) -> int:
    """Write all views from ``offset`` in steps of whole ``alignment``; returns the offset behind them."""
    rest = list(views)
    while rest:
        wrote = os.pwritev(fd, rest[:IOV_MAX], offset)
        wrote -= wrote % alignment
        if wrote == 0:
            # The next attempt tells why, unless the device keeps taking less than a block.
            raise OSError(errno.EINVAL if alignment > 1 else errno.EIO, "the file system took no bytes of a write")
        offset += wrote
        while rest and wrote >= rest[0].nbytes:
            wrote -= rest.pop(0).nbytes
        if wrote:
            rest[0] = rest[0][wrote:]
    return offset
