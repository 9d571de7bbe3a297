"""What this process and its workers hold, to be compared before and after load."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass

import psutil

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """Descriptors, threads and processes, and MiB of memory that is each process's own, over all of them."""

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
    own = [this.memory_full_info().uss, *(worker.memory_full_info().uss for worker in workers)]
    return Usage(
        fds=this.num_fds(),
        threads=this.num_threads(),
        processes=1 + len(workers),
        memory=sum(own) / _MIB,
        workers_fds=sum(worker.num_fds() for worker in workers),
    )
