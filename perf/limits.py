"""How fast the machine is without us: plain files with some requests in flight, a bare reading loop, one warm copy.

Owns the baselines that every ratio refers to. Benchmarks call it.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from .state import tensors

CHUNK = 16 << 20
_MADV_POPULATE_WRITE = 23
_RING = 256 << 20  # far beyond the caches, and no second state in memory

# One of two processes of the bare loop: for each line "path start stop flags" it reads that range with two requests in
# flight, checks it, lands it in a new memory file and answers with its descriptor; closes it at an empty line.
_LOOP = """
import mmap, os, sys
from concurrent.futures import ThreadPoolExecutor
from awscrt.checksums import crc32c
CHUNK, LANES = int(sys.argv[1]), 2
free = [mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(LANES)]
for buffer in free:
    buffer.madvise(mmap.MADV_HUGEPAGE)
def one(offset):
    buffer = free.pop()
    with memoryview(buffer) as whole, whole[: min(CHUNK, stop - offset)] as piece:
        done = 0
        while done < len(piece):
            done += os.preadv(fd, [piece[done:]], offset + done)
        crc32c(piece)
        assert os.pwrite(out, piece, offset - start) == len(piece)
    free.append(buffer)
for line in sys.stdin:
    if line == "\\n":
        os.close(out)
        continue
    path, start, stop, flags = line.rstrip("\\n").split("\\t")
    start, stop, flags = int(start), int(stop), int(flags)
    fd, out = os.open(path, os.O_RDONLY | flags), os.memfd_create("loop")
    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(one, range(start, stop, CHUNK)))
    os.close(fd)
    print(out, flush=True)
"""


def aligned(nbytes: int) -> mmap.mmap:
    """Memory that O_DIRECT takes, touched, of huge pages: from small ones a disk was up to a third slower."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory.madvise(_MADV_POPULATE_WRITE)
    return memory


class PlainFile:
    """Writes and reads one file of ``nbytes`` in chunks of 16 MiB with ``requests`` in flight, from warm memory."""

    def __init__(self, path: Path, nbytes: int, requests: int, *, direct: bool) -> None:
        self.path = path
        self._nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._requests = requests
        self._flags = os.O_DIRECT if direct else 0
        self._ring = aligned(max(min(_RING, self._nbytes) // CHUNK, requests + 1) * CHUNK)

    def write(self) -> None:
        """A new file, fsynced with its folder."""
        self.path.unlink(missing_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | self._flags, 0o644)
        try:
            self._each(lambda piece, offset: os.pwrite(fd, piece, offset))
            os.fsync(fd)
        finally:
            os.close(fd)
        fsync(self.path.parent)

    def read(self) -> None:
        """The whole file."""
        fd = os.open(self.path, os.O_RDONLY | self._flags)
        try:
            self._each(lambda piece, offset: os.preadv(fd, [piece], offset))
        finally:
            os.close(fd)

    def _each(self, act: Callable[[memoryview, int], int]) -> None:
        view = memoryview(self._ring)

        def one(offset: int) -> None:
            size, place = min(CHUNK, self._nbytes - offset), offset % len(view)
            if act(view[place : place + size], offset) != size:
                raise OSError(f"{self.path}: short transfer at {offset}")

        with ThreadPoolExecutor(self._requests) as pool:
            list(pool.map(one, range(0, self._nbytes, CHUNK)))


class Loop:
    """Two processes that read a file, check its CRC-32C and land it in new memory: the least that a verified load does.

    ``direct``: past the page cache.
    """

    def __init__(self, path: Path, *, direct: bool = False) -> None:
        self._path = path
        self._flags = os.O_DIRECT if direct else 0
        command = [sys.executable, "-c", _LOOP, str(CHUNK)]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]

    def read(self) -> list[mmap.mmap]:
        """The file's halves in memory of their own."""
        size = self._path.stat().st_size
        half = size // 2 // CHUNK * CHUNK
        for process, start, stop in zip(self._processes, (0, half), (half, size), strict=True):
            assert process.stdin
            process.stdin.write(f"{self._path}\t{start}\t{stop}\t{self._flags}\n")
            process.stdin.flush()
        return [_landed(process) for process in self._processes]

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.communicate()


def _landed(process: subprocess.Popen[str]) -> mmap.mmap:
    assert process.stdout
    assert process.stdin
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError("a process of the bare loop ended")
    fd = os.open(f"/proc/{process.pid}/fd/{int(answer)}", os.O_RDWR)
    process.stdin.write("\n")  # the mapping keeps it now, and no longer than what this package lands
    process.stdin.flush()
    try:
        return mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)
    finally:
        os.close(fd)


class WarmCopy:
    """One copy of every tensor of a state into warm memory, in the calling thread: the least that staging costs."""

    def __init__(self, state: object) -> None:
        self._pairs = [(tensor, torch.zeros_like(tensor)) for tensor in tensors(state)]

    def copy(self) -> None:
        """Copy all."""
        for source, target in self._pairs:
            target.copy_(source)


def fsync(*paths: Path) -> None:
    """Make files or folders durable."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def files(folder: Path) -> list[Path]:
    """Every file below ``folder``."""
    return [path for path in folder.rglob("*") if path.is_file()]


def cool(paths: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def heat(paths: Iterable[Path]) -> None:
    """Bring files into the page cache: a file written with O_DIRECT is not there."""
    buffer = bytearray(4 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
