"""Processes as the system tells of them: workers of a process, and everything that a marked one has started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
MARK = "S3DLIO_FAULT_SCRIPT"
"""In the environment of a script and of all that it starts, so that they are found when their parent is dead."""


def kill_workers(pid: int | None = None) -> list[int]:
    """SIGKILL all workers of a process (this one); their ids."""
    pids = workers(pid)
    for worker in pids:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    return pids


def workers(pid: int | None = None) -> list[int]:
    """Workers of a process (this one) that live."""
    found = []
    for task in (PROC / str(pid or os.getpid()) / "task").iterdir():
        for child in map(int, _read(task / "children").split()):
            if b"s3dlio.engine.worker" in _read(PROC / str(child) / "cmdline"):
                found.append(child)
    return found


def marked(mark: str) -> list[int]:
    """Processes with this mark that live; a zombie has no environment."""
    wanted = f"{MARK}={mark}".encode()
    pids = (int(path.name) for path in PROC.iterdir() if path.name.isdigit())
    return [pid for pid in pids if wanted in _read(PROC / str(pid) / "environ").split(b"\0")]


def our_memory(pid: int) -> list[str]:
    """Descriptors and mappings of our shared memory that a process holds."""
    held = []
    with suppress(OSError):
        for fd in (PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                target = os.readlink(fd)
                held += [target] if "memfd:s3dlio" in target else []
    held += [line for line in _read(PROC / str(pid) / "maps").decode().splitlines() if "memfd:s3dlio" in line]
    return held


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone, or not ours
        return b""
