"""What this process and its workers hold, to be compared before and after load."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Descriptors, threads and processes, and MiB of anonymous memory over all of them.

    Other kinds of private memory change without us: a library's pages are private only while no other process of the
    machine maps them, and those of the arena while not every worker has touched them.
    """

    fds: int
    threads: int
    processes: int
    memory: float
    workers_fds: int

    def assert_flat(self, later: Usage, *, growth: float) -> None:
        """``later`` holds no more than this, and at most ``growth`` MiB more memory."""
        assert (later.fds, later.threads, later.processes) == (self.fds, self.threads, self.processes), (self, later)
        assert later.workers_fds <= self.workers_fds, (self, later)
        assert later.memory <= self.memory + growth, (self, later)


def take() -> Usage:
    """What is held now, with garbage collected and the allocator's free memory given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    this = psutil.Process()
    workers = this.children(recursive=True)
    return Usage(
        fds=this.num_fds(),
        threads=this.num_threads(),
        processes=1 + len(workers),
        memory=sum(_anonymous(process.pid) for process in (this, *workers)),
        workers_fds=sum(worker.num_fds() for worker in workers),
    )


def _anonymous(pid: int) -> float:
    """MiB of anonymous memory of a process, which are no file's and no memfd's."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"/proc/{pid}/smaps_rollup tells of no anonymous memory")
