from __future__ import annotations

from pathlib import Path

import pytest

from s3dlio.engine.memory import headroom

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:  8388608 kB\nSwapFree: 0 kB\n")
    return folder


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def group(folder: Path, limit: object, used: int, stat: str | None = None, *, v1: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if v1 else "memory.current")).write_text(f"{used}\n")
    if stat is not None:
        (folder / "memory.stat").write_text(stat)


def member(proc: Path, text: str) -> None:
    (proc / "self" / "cgroup").write_text(text)


def test_this_machine_has_some() -> None:
    assert headroom() > 0


def test_without_groups_it_is_what_is_available(proc: Path, sysfs: Path) -> None:
    assert headroom(proc, sysfs) == 8 * GIB


@pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: much kB\n", "MemFree: 1 kB\n"])
def test_without_meminfo_it_is_what_the_system_counts(proc: Path, sysfs: Path, text: str) -> None:
    (proc / "meminfo").write_text(text)
    assert headroom(proc, sysfs) > 0
    (proc / "meminfo").unlink()
    assert headroom(proc, sysfs) > 0


def test_v2_counts_the_limit_less_what_is_used(proc: Path, sysfs: Path) -> None:
    member(proc, "0::/job/step\n")
    group(sysfs / "job" / "step", 4 * GIB, GIB)
    assert headroom(proc, sysfs) == 3 * GIB


def test_page_cache_is_free_to_take(proc: Path, sysfs: Path) -> None:
    member(proc, "0::/job\n")
    group(sysfs / "job", 4 * GIB, 3 * GIB, f"anon 5\ninactive_file {2 * GIB}\nactive_file 7\n")
    assert headroom(proc, sysfs) == 3 * GIB
    group(sysfs / "job", 4 * GIB, 3 * GIB, "not a table\n\n")
    assert headroom(proc, sysfs) == GIB


def test_the_tightest_ancestor_counts(proc: Path, sysfs: Path) -> None:
    member(proc, "0::/a/b/c\n")
    group(sysfs / "a" / "b" / "c", "max", GIB)
    group(sysfs / "a" / "b", 6 * GIB, GIB)
    group(sysfs / "a", 3 * GIB, 2 * GIB)
    assert headroom(proc, sysfs) == GIB


def test_a_container_sees_its_group_at_the_root(proc: Path, sysfs: Path) -> None:
    member(proc, "0::/path/on/the/host\n")
    group(sysfs, 2 * GIB, GIB)
    assert headroom(proc, sysfs) == GIB


def test_a_path_above_the_root_is_no_error(proc: Path, sysfs: Path) -> None:
    member(proc, "0::/../sibling\n")
    group(sysfs, 2 * GIB, GIB)
    assert headroom(proc, sysfs) == GIB


def test_v1_and_hybrid_trees(proc: Path, sysfs: Path) -> None:
    member(proc, "12:cpu,cpuacct:/job\n7:memory:/job\n1:name=systemd:/job\n0::/job\n")
    group(sysfs / "memory" / "job", 4 * GIB, 2 * GIB, f"inactive_file 1\ntotal_inactive_file {GIB}\n", v1=True)
    group(sysfs / "memory", 9223372036854771712, 5 * GIB, v1=True)
    assert headroom(proc, sysfs) == 3 * GIB
    group(sysfs / "unified" / "job", GIB, 0)
    assert headroom(proc, sysfs) == GIB


def test_without_a_limit_a_group_does_not_count(proc: Path, sysfs: Path) -> None:
    member(proc, "0::/job\n")
    group(sysfs / "job", "max", 100 * GIB)
    assert headroom(proc, sysfs) == 8 * GIB


def test_a_group_over_its_limit_has_nothing_left(proc: Path, sysfs: Path) -> None:
    member(proc, "0::/job\n")
    group(sysfs / "job", GIB, 2 * GIB)
    assert headroom(proc, sysfs) == 0
