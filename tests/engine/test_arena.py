from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

import pytest

from s3dlio.engine import pages
from s3dlio.engine.arena import Arena, SharedMemory, forget_memories
from s3dlio.engine.errors import DeadlineError, MemoryLimitError

MIB = 1 << 20
MARGIN = 64 * MIB
Make = Callable[..., Arena]


class Room:
    """What the machine has left, as the test says."""

    def __init__(self, slots: float = 1000) -> None:
        self.set(slots)

    def set(self, slots: float) -> None:
        self.left = MARGIN + int(slots * MIB)

    def __call__(self) -> int:
        return self.left


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Arena] = []

    def make_(slots: int = 4, room: Callable[[], int] | None = None) -> Arena:
        made.append(Arena(slots * MIB, MIB, room=room or Room()))
        return made[-1]

    yield make_
    for arena in made:
        arena.close()


def resident(arena: Arena) -> int:
    return os.fstat(arena.fd).st_blocks * 512


class Waiting:
    """A thread in ``lease`` that has begun to wait there; ``outcome`` is what came of it."""

    def __init__(self, arena: Arena, **options: object) -> None:
        self._arena = arena
        self._options = options
        self._outcome: Future[int] = Future()
        self._begun = threading.Event()
        self._wait = arena._changed.wait
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arena._changed, "wait", self._told_wait)
            self._thread = threading.Thread(target=self._lease)
            self._thread.start()
            assert self._begun.wait(30)

    def _told_wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is self._thread:
            self._begun.set()  # the arena's lock is held until the wait has begun: whoever takes it comes after that
        return self._wait(timeout)

    def _lease(self) -> None:
        try:
            self._outcome.set_result(self._arena.lease(**self._options))  # type: ignore[arg-type]
        except (DeadlineError, MemoryLimitError) as error:
            self._outcome.set_exception(error)
        self._begun.set()

    def outcome(self) -> int:
        """The slot it got, or what it raises."""
        self._thread.join(30)
        return self._outcome.result(0)

    @staticmethod
    def first(several: list[Waiting]) -> Waiting:
        """The one of ``several`` that ends first."""
        done, _ = wait([each._outcome for each in several], 30, return_when=FIRST_COMPLETED)
        return next(each for each in several if each._outcome in done)


def test_the_lowest_free_slot_is_lent_first(make: Make) -> None:
    arena = make(4)
    assert [arena.lease() for _ in range(3)] == [0, 1, 2]
    arena.release([1, 0])
    assert arena.free == 3
    assert [arena.lease(), arena.lease(), arena.lease()] == [0, 1, 3]


def test_untouched_slots_cost_nothing(make: Make) -> None:
    arena = make(100)
    assert (arena.slots, arena.size, resident(arena)) == (100, 100 * MIB, 0)
    for _ in range(5):
        arena.release([arena.lease()])
    assert resident(arena) == MIB


def test_a_slot_is_shared_memory(make: Make) -> None:
    arena = make(2)
    first, second = arena.lease(), arena.lease()
    ctypes.memmove(arena.address(second), b"hello", 5)
    arena.move(second, first, 10, 5)
    with mmap.mmap(arena.fd, arena.size) as other:
        assert other[arena.offset(second) :][:5] == b"hello"
        assert other[arena.offset(first) + 10 :][:5] == b"hello"


def test_a_slot_given_back_twice_is_a_bug(make: Make) -> None:
    arena = make()
    slot = arena.lease()
    arena.release([slot])
    with pytest.raises(KeyError):
        arena.release([slot])
    with pytest.raises(KeyError):
        arena.release([3])


def test_too_little_memory_for_one_chunk() -> None:
    with pytest.raises(MemoryLimitError, match=r"memory number \(1000 bytes\) cannot hold one chunk of 1048576 bytes"):
        Arena(1000, MIB)


def test_a_full_arena_waits_until_its_deadline(make: Make) -> None:
    arena = make(1)
    arena.lease()
    with pytest.raises(DeadlineError, match="all 1 of 1048576 bytes are in use; storage is slower"):
        arena.lease(deadline=time.monotonic())
    assert arena.try_lease() is None


def test_a_waiting_lease_gets_the_next_slot(make: Make) -> None:
    arena = make(1)
    arena.lease()
    waiting = Waiting(arena)
    arena.release([0])
    assert waiting.outcome() == 0


def test_a_waiting_lease_stops_when_told(make: Make) -> None:
    arena = make(1)
    arena.lease()
    stopped = threading.Event()
    waiting = Waiting(arena, stop=stopped.is_set)
    stopped.set()
    arena.wake()
    with pytest.raises(DeadlineError, match="stopped"):
        waiting.outcome()
    arena.release([0])
    with pytest.raises(DeadlineError, match="stopped"):
        arena.lease(stop=lambda: True)


def test_growth_stops_where_the_machine_is_short(make: Make) -> None:
    room = Room(2)
    arena = make(4, room)
    assert [arena.lease(), arena.lease()] == [0, 1]
    room.set(0.9)
    assert arena.try_lease() is None  # it streams through what exists
    arena.release([1])
    assert arena.lease() == 1  # warm: no more memory is needed
    room.set(1)
    assert arena.lease() == 2


def test_a_warm_slot_is_taken_before_a_cold_one_where_memory_is_short(make: Make) -> None:
    room = Room()
    arena = make(4, room)
    cold, warm = arena._free[0], 2
    arena._grown[warm] = True
    room.set(0)
    assert cold == 0
    assert arena.lease() == warm


def test_no_memory_for_even_one_slot(make: Make) -> None:
    room = Room(0)
    arena = make(4, room)
    with pytest.raises(MemoryLimitError, match=f"{MARGIN} bytes of memory are left, too few for one chunk of 1048576"):
        arena.lease()
    room.set(1)
    assert arena.lease() == 0


def test_who_would_wait_for_its_own_slots_is_told(make: Make) -> None:
    room = Room()
    arena = make(4, room)
    arena.lease()
    room.set(0)
    with pytest.raises(MemoryLimitError, match="too few"):
        arena.lease(held=1)
    with pytest.raises(MemoryLimitError, match="too few"):
        arena.try_lease(held=1)


def test_slots_that_others_are_growing_count(make: Make) -> None:
    room = Room(1)
    arena = make(4, room)
    arena._lent.add(arena._free.pop(0))  # as between the choice of a cold slot and its first page
    assert arena.try_lease() is None
    arena.release([0])


def test_a_kernel_without_memory_does_not_make_it_spin(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = make(4)
    assert arena.lease() == 0
    tries: list[int] = []

    def refuse(slot: int) -> bool:
        tries.append(slot)
        return False

    monkeypatch.setattr(arena, "_grow", refuse)
    waiting = [Waiting(arena) for _ in range(3)]
    assert sorted(arena._free) == [1, 2, 3]
    assert len(tries) <= 3  # at most one each, then they wait
    while waiting:
        arena.release([0])
        served = Waiting.first(waiting)
        assert served.outcome() == 0
        waiting.remove(served)


def test_a_kernel_without_memory_and_nobody_to_wait_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = make(4)
    with monkeypatch.context() as patch:
        patch.setattr(arena, "_grow", lambda _slot: False)
        for _ in range(2):
            with pytest.raises(MemoryLimitError, match="too few"):
                arena.lease()
    assert arena.lease() == 0


def test_a_kernel_that_cannot_populate_is_no_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MADV_POPULATE_WRITE", 9999)  # EINVAL, as before Linux 5.14
    arena = make(1)
    assert arena.lease() == 0
    assert resident(arena) == 0


def test_warming_up(make: Make) -> None:
    arena = make(8)
    asked: list[Sequence[int]] = []
    assert arena.grow(3 * MIB - 1, asked.append) == 3 * MIB
    assert asked == [[0, 1, 2]]
    assert resident(arena) == 3 * MIB
    assert arena.free == 8
    assert arena.grow(4 * MIB, asked.append) == 4 * MIB
    assert asked[1:] == [[3]]
    assert arena.grow(1 << 40, asked.append) == 8 * MIB


def test_warming_up_leaves_out_what_is_lent_and_stops_where_memory_is_short(make: Make) -> None:
    room = Room(2.5)
    arena = make(8, room)
    assert arena.lease() == 0
    asked: list[Sequence[int]] = []
    assert arena.grow(8 * MIB, asked.append) == 3 * MIB
    assert asked == [[1, 2]]


def test_free_slots_are_given_back_to_the_machine(make: Make) -> None:
    """From the top, and only as many as are asked for; a slot that is lent keeps its bytes."""
    arena = make(6)
    slots = [arena.lease() for _ in range(5)]
    ctypes.memmove(arena.address(slots[4]), b"kept", 4)
    arena.release(slots[:4])
    assert arena.shrink(MIB + 1) == 2 * MIB
    assert resident(arena) == 3 * MIB
    assert ctypes.string_at(arena.address(slots[4]), 4) == b"kept"
    assert arena.shrink(100 * MIB) == 2 * MIB
    assert resident(arena) == MIB
    assert arena.shrink(1) == 0
    assert [arena.lease() for _ in range(4)] == slots[:4]  # as if they had never been lent
    assert resident(arena) == 5 * MIB


def test_a_kernel_that_takes_nothing_back_is_no_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = make(2)
    arena.release([arena.lease()])
    monkeypatch.setattr(pages, "_MADV_REMOVE", -1)
    assert arena.shrink(MIB) == 0
    assert resident(arena) == MIB


def test_a_failed_warm_up_gives_the_slots_back(make: Make) -> None:
    arena = make(2)

    def fail(_slots: Sequence[int]) -> None:
        raise MemoryLimitError("no")

    with pytest.raises(MemoryLimitError):
        arena.grow(2 * MIB, fail)
    assert arena.free == 2


def test_closing_twice_is_harmless() -> None:
    arena = Arena(MIB, MIB, room=Room())
    arena.close()
    arena.close()


def test_platforms_without_memfd_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(MemoryLimitError, match="needs Linux"):
        SharedMemory("test", MIB)


def test_too_many_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str, _flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(MemoryLimitError, match="raise the limit of open files"):
        SharedMemory("test", MIB)


def test_an_impossible_size_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _size: int) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(MemoryLimitError, match="cannot make a shared memory of"):
        SharedMemory("test", MIB)


def test_an_arena_that_cannot_be_mapped_is_told() -> None:
    with pytest.raises(MemoryLimitError, match="cannot map an arena of"):
        Arena(1 << 50, MIB, room=Room())


def test_memories_are_forgotten() -> None:
    memory = SharedMemory("test", MIB)
    forget_memories()
    assert memory.fd == -1
    memory.close()


def python(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_file_size_limit_bounds_it() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
from s3dlio.engine.arena import Arena
from s3dlio.engine.errors import MemoryLimitError
arena = Arena(100 << 20, 1 << 20)
print(arena.slots, [arena.lease() for _ in range(3)])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Arena(100 << 20, 1 << 20)
except MemoryLimitError as error:
    print("file-size limit" in str(error))
"""
    assert python(code) == "3 [0, 1, 2]\nTrue"


def test_a_forked_child_neither_sees_nor_keeps_it() -> None:
    code = """
import os
from s3dlio.engine.arena import Arena, forget_memories
arena = Arena(8 << 20, 1 << 20)
arena.lease()
read, write = os.pipe()
if os.fork() == 0:
    arena.forget()
    forget_memories()
    arena.wake()
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    held = [os.readlink(path) for path in paths if os.path.lexists(path)]
    maps = open("/proc/self/maps").read()
    os.write(write, repr(("memfd" in maps, any("memfd" in name for name in held))).encode())
    os._exit(0)
os.wait()
print(os.read(read, 100).decode(), "memfd" in open("/proc/self/maps").read())
"""
    assert python(code) == "(False, False) True"
