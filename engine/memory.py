"""How much memory this process may still take: the machine's and the control group's word.

Owns the reading of /proc/meminfo and of cgroup limits (v1 and v2); decides nothing. The arena asks before it grows (a
fallocate past a cgroup limit is a SIGKILL, not an errno), loads ask before they land, the pool asks for its default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60


def headroom(proc: Path = Path("/proc"), sysfs: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be taken before the machine or a control group runs short; never negative."""
    return max(0, min(_mem_available(proc), _cgroup_headroom(proc, sysfs)))


def _mem_available(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _cgroup_headroom(proc: Path, sysfs: Path) -> int:
    return min((_group_headroom(group) for group in _groups(proc, sysfs)), default=_UNLIMITED)


def _groups(proc: Path, sysfs: Path) -> Iterator[Path]:
    """Folders of this process's memory groups and all their ancestors, v2 and v1."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        roots = [sysfs / "memory"] if controllers else [sysfs, sysfs / "unified"]
        for root in roots:
            folder = root / path.lstrip("/")
            # Inside a container the path of the host may not exist; the mounted root is then the group itself.
            while root in folder.parents or folder == root:
                yield folder
                folder = folder.parent


def _group_headroom(group: Path) -> int:
    for limit_name, used_name in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        limit, used = _number(group / limit_name), _number(group / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED:
            return limit - used + _reclaimable(group)
    return _UNLIMITED


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _reclaimable(group: Path) -> int:
    """Page cache that the kernel drops before it kills: counted in the usage, but free to take."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0
