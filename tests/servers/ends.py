"""The end of a process that is nobody's child here any more."""

from __future__ import annotations

import os
import select


def await_end(pid: int, timeout: float = 10.0) -> None:
    """Return once the process has ended, reaped or not; ``TimeoutError`` if it lives on."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"process {pid} lives on after {timeout} s")
    finally:
        os.close(fd)
