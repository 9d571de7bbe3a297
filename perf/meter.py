"""Counts what all processes of a benchmark use: CPU seconds, and memory with shared pages counted once.

Reads ``/proc`` only. Benchmarks and ``harness`` call it. The kernel's own writeback threads are not ours to see, so a
buffered save uses more CPU than is shown here.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

_SHARED = ("/memfd:", "/dev/shm/")
INTERVAL = 0.02


def tree() -> list[psutil.Process]:
    """This process and all that descend from it."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> float:
    """User and system seconds of the tree so far, ended children included (10 ms steps)."""
    total = 0.0
    for process in tree():
        try:
            total += sum(process.cpu_times()[:4])  # user, system, and both of children that were waited for
        except psutil.Error:
            continue
    return total


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held by the tree: ``private`` (PSS of anonymous and file pages), ``shared`` (memfds and shared memory)."""

    private: int
    shared: int

    @property
    def total(self) -> int:
        """Both."""
        return self.private + self.shared


def memory() -> Memory:
    """What the tree holds now.

    Shared pages count once, whether or not a process has touched them: as PSS, or by the blocks of open memfds and
    shared files where that is more, since a page that nobody has mapped is in no PSS.
    """
    private = mapped = 0
    blocks: dict[tuple[int, int], int] = {}
    for process in tree():
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        fields = {name: int(rest.split()[0]) << 10 for name, rest in _fields(rollup)}
        private += fields.get("Pss_Anon", 0) + fields.get("Pss_File", 0)
        mapped += fields.get("Pss_Shmem", 0)
        blocks.update(_shared_files(process.pid))
    return Memory(private, max(mapped, sum(blocks.values())))


def _fields(rollup: str) -> Iterator[tuple[str, str]]:
    for line in rollup.splitlines():
        name, colon, rest = line.partition(":")
        if colon and rest.endswith("kB"):
            yield name, rest


def _shared_files(pid: int) -> Iterator[tuple[tuple[int, int], int]]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            if os.readlink(f"{folder}/{name}").startswith(_SHARED):
                status = os.stat(f"{folder}/{name}")
                yield (status.st_dev, status.st_ino), status.st_blocks * 512
        except OSError:
            continue


def settle() -> None:
    """Give back what the heap holds free: it would hide what is taken next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """Samples the tree's memory in a thread; ``peak`` is the sample with the largest total since the start."""

    def __init__(self) -> None:
        self.peak = memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._take()

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._take()

    def _take(self) -> None:
        now = memory()
        if now.total > self.peak.total:
            self.peak = now
