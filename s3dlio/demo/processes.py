"""Which processes a trainer started, and whether they are gone after its death.

Owns reading ``/proc``; never signals anything. ``trainer`` names its children before it dies, ``story`` waits for their
end. Where there is no ``/proc``, no child is found and nothing is claimed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be confused with a later one of the same ``pid``; ``started`` in clock ticks since boot."""

    pid: int
    started: int


def children(parent: int, proc: Path = PROC) -> list[Process]:
    """The living children of process ``parent``."""
    found = []
    for entry in proc.glob("[0-9]*/stat"):
        fields = _fields(entry)
        if fields is not None and int(fields[1]) == parent and fields[0] not in "ZX":
            found.append(Process(int(entry.parent.name), int(fields[19])))
    return sorted(found, key=lambda process: process.pid)


def alive(process: Process, proc: Path = PROC) -> bool:
    """Whether ``process`` still runs; a zombie does not."""
    fields = _fields(proc / str(process.pid) / "stat")
    return fields is not None and fields[0] not in "ZX" and int(fields[19]) == process.started


def wait_gone(processes: Iterable[Process], seconds: float, proc: Path = PROC) -> list[Process]:
    """Wait up to ``seconds`` for all of them to end; those that still run."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while True:
        left = [process for process in left if alive(process, proc)]
        if not left or time.monotonic() >= deadline:
            return left
        # They are orphans of a dead trainer, nobody's children here: there is nothing to wait on but /proc.
        time.sleep(0.02)


def _fields(stat: Path) -> list[str] | None:
    """Fields of a stat file from the state on (the command's name before it may hold anything), None if it is gone."""
    try:
        return stat.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
