"""A control group of our own, with a limit on memory; version 1 or 2, where the machine lets a test make one."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.waiting import until

_ENTER = """\
import os, sys
with open(sys.argv[1], "w") as group:
    group.write(str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextmanager
def memory_group(limit: int) -> Iterator[tuple[Sequence[str], Path]]:
    """The command that runs another in a group limited to ``limit`` bytes, and the group's folder."""
    group = (_V1 if _V1.is_dir() else _V2) / f"s3dlio-test-{os.getpid()}"
    try:
        group.mkdir()
        name = "memory.limit_in_bytes" if _V1.is_dir() else "memory.max"
        (group / name).write_text(str(limit))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"this machine lets no test make a control group: {error}")
    try:
        yield (sys.executable, "-c", _ENTER, str(group / "cgroup.procs")), group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():  # after a failure: else it could not be removed
            os.kill(int(pid), signal.SIGKILL)
        until(lambda: _removed(group), f"{group} to be empty")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def most_used(group: Path) -> int:
    """The most memory that the group has held, in bytes."""
    name = "memory.max_usage_in_bytes" if (group / "memory.max_usage_in_bytes").exists() else "memory.peak"
    return int((group / name).read_text())


def kills(group: Path) -> int:
    """How many of its processes the kernel has killed for memory."""
    lines = [
        line
        for name in ("memory.oom_control", "memory.events")
        if (group / name).exists()
        for line in (group / name).read_text().splitlines()
    ]
    return int(dict(line.split() for line in lines)["oom_kill"])
