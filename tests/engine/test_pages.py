"""Mappings where huge pages fit, and how long such pages are asked for."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3dlio.engine import pages
from s3dlio.engine.arena import SharedMemory
from s3dlio.engine.pages import HugePages, give_back, huge_size, map_shared, populate, unmap
from s3dlio.engine.source import view

PAGE = mmap.PAGESIZE
HUGE = 2 << 20


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory("test-pages", 4 * HUGE)
    yield memory
    memory.close()


@pytest.fixture
def address(memory: SharedMemory) -> Iterator[int]:
    address = map_shared(memory.fd, memory.size, align=HUGE)
    yield address
    unmap(address, memory.size)


def resident(memory: SharedMemory) -> int:
    return os.fstat(memory.fd).st_blocks * 512


def mappings() -> dict[str, str]:
    return dict(line.split(" ", 1) for line in Path("/proc/self/maps").read_text().splitlines())


def huge_bytes(memory: SharedMemory) -> int:
    """Bytes that this process maps of it by huge pages."""
    inode = str(os.fstat(memory.fd).st_ino)
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if re.fullmatch("[0-9a-f]+-[0-9a-f]+", fields[0]):
            ours = fields[4] == inode
        elif ours and fields[0] == "ShmemPmdMapped:":
            found += int(fields[1]) << 10
    return found


class Clock:
    """CPU time that passes by ``step`` seconds at each look."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Advice:
    """Stands in for madvise: notes what is asked, and refuses what ``refused`` names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.refused: dict[int, int] = {}
        monkeypatch.setattr(pages, "_advise", self._advise)

    def _advise(self, address: int, size: int, advice: int) -> int:
        self.asked.append((address, size, advice))
        return self.refused.get(advice, 0)

    def collapsed(self) -> list[tuple[int, int]]:
        return [(address, size) for address, size, advice in self.asked if advice == pages._MADV_COLLAPSE]


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> Advice:
    return Advice(monkeypatch)


@pytest.mark.parametrize("size", [1, PAGE, HUGE - 1, HUGE + PAGE])
def test_a_mapping_is_aligned_and_nothing_else_is_left(size: int) -> None:
    before = mappings()
    memory = SharedMemory("test-pages", size)
    address = map_shared(memory.fd, size, align=HUGE)
    assert address % HUGE == 0
    new = mappings().keys() - before.keys()
    stop = address + -(-size // PAGE) * PAGE
    assert f"{address:x}-{stop:x}" in new
    shared = view(address, size)
    shared[-1] = 7
    assert os.pread(memory.fd, 1, size - 1) == b"\x07"
    del shared
    unmap(address, size)
    memory.close()
    assert not any(f"{address:x}-" in name for name in mappings())


def test_what_cannot_be_mapped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = pages._mmap

    def noted(*given: Any) -> int:
        made.append(real(*given))
        return made[-1]

    monkeypatch.setattr(pages, "_mmap", noted)
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_shared(-1, HUGE, align=HUGE)
    assert len(made) == 1  # the room for the memory, which then could not be laid into it
    ranges = (tuple(int(end, 16) for end in name.split("-")) for name in mappings())
    assert not any(start <= made[0] < stop for start, stop in ranges)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        map_shared(-1, 1 << 60)
    assert len(made) == 1


def test_pages_are_made_and_given_back(memory: SharedMemory, address: int) -> None:
    assert resident(memory) == 0
    assert populate(address, HUGE + PAGE)
    assert resident(memory) == HUGE + PAGE
    assert give_back(address, HUGE)
    assert resident(memory) == PAGE


def test_bytes_stay_and_all_of_the_range_can_be_written(memory: SharedMemory, address: int) -> None:
    """Whether or not this kernel has huge pages."""
    os.pwrite(memory.fd, b"kept", HUGE)
    HugePages().make(address, 3 * HUGE, 60.0)
    assert os.pread(memory.fd, 4, HUGE) == b"kept"
    assert populate(address, 3 * HUGE)
    assert resident(memory) == 3 * HUGE
    shared = view(address, 3 * HUGE)
    shared[:] = b"\x05" * len(shared)
    assert os.pread(memory.fd, 3 * HUGE, 0) == bytes(shared)


def test_this_machines_huge_pages_are_mapped_whole(memory: SharedMemory, address: int) -> None:
    huge = HugePages()
    huge.make(address, 2 * HUGE, 60.0)
    assert huge_bytes(memory) == (2 * HUGE if huge.size == HUGE else 0)


@pytest.mark.parametrize(
    ("start", "size", "made"),
    [
        (0, 4 * HUGE, (0, 4 * HUGE)),
        (PAGE, 3 * HUGE, (HUGE, 2 * HUGE)),
        (HUGE, HUGE + PAGE, (HUGE, HUGE)),
        (PAGE, HUGE, None),
        (0, HUGE - PAGE, None),
    ],
)
def test_only_whole_huge_pages_are_asked_for(
    advice: Advice, start: int, size: int, made: tuple[int, int] | None
) -> None:
    base = 1 << 40
    HugePages(size=HUGE, clock=Clock(0)).make(base + start, size)
    assert advice.collapsed() == ([(base + made[0], made[1])] if made else [])
    begun = [address for address, size, kind in advice.asked if kind == pages._MADV_POPULATE_WRITE]
    assert begun == ([base + made[0] + at for at in range(0, made[1], HUGE)] if made else [])


def test_a_machine_without_huge_pages_is_not_asked(advice: Advice) -> None:
    HugePages(size=0).make(0, 8 * HUGE)
    assert advice.asked == []


@pytest.mark.parametrize("refused", [pages._MADV_COLLAPSE, pages._MADV_POPULATE_WRITE])
def test_a_kernel_that_refuses_is_not_asked_again(advice: Advice, refused: int) -> None:
    huge = HugePages(size=HUGE, clock=Clock(0))
    advice.refused[refused] = 22
    huge.make(0, 2 * HUGE)
    assert huge.size == 0
    asked = len(advice.asked)
    huge.make(0, 2 * HUGE)
    assert len(advice.asked) == asked


@pytest.mark.parametrize(("seconds", "goes_on"), [(0.019, True), (0.021, False)])
def test_patience_is_counted_for_each_page(advice: Advice, seconds: float, goes_on: bool) -> None:
    huge = HugePages(size=HUGE, clock=Clock(seconds))
    huge.make(0, 2 * HUGE, 0.01)
    assert len(advice.collapsed()) == 1
    assert (huge.size == HUGE) is goes_on


@pytest.mark.parametrize(
    ("text", "size"), [("2097152\n", HUGE), ("33554432\n", 32 << 20), ("536870912\n", 0), ("no\n", 0), (None, 0)]
)
def test_the_size_of_a_huge_page(tmp_path: Path, text: str | None, size: int) -> None:
    setting = tmp_path / "hpage_pmd_size"
    if text is not None:
        setting.write_text(text)
    assert huge_size(setting) == size


@pytest.mark.parametrize(("code", "enough"), [(12, False), (14, False), (22, True), (0, True)])
def test_a_kernel_without_memory_says_so(advice: Advice, code: int, enough: bool) -> None:
    advice.refused[pages._MADV_POPULATE_WRITE] = code
    assert populate(0, PAGE) is enough
