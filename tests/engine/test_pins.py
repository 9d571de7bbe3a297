"""Which of the arena's memory is page-locked, in which pieces, and that it is let go before it is unmapped."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine import pages
from s3dlio.engine.arena import Arena
from s3dlio.engine.pins import PIECE, Pins, pieces
from s3dlio.engine.pool import Pool, PoolConfig

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class Locks:
    """A registrar that notes what is asked of it, and refuses what the test says."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.asked: list[tuple[int, int]] = []
        self.refuses: Callable[[int], bool] = lambda _: False
        self.keeps = False
        self.during: Callable[[], None] = lambda: None

    def register(self, address: int, size: int) -> bool:
        self.asked.append((address, size))
        self.during()
        if self.refuses(address):
            return False
        self.held[address] = size
        return True

    def unregister(self, address: int) -> bool:
        if self.keeps:
            return False
        self.held.pop(address, None)
        return True


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(8 * MIB, MIB, room=lambda: 1 << 40)
    yield made
    made.close()


def grow(arena: Arena, nbytes: int) -> None:
    arena.grow(nbytes, lambda slots: None)


@given(st.sets(st.integers(0, 60)), st.integers(0, 9))
def test_pieces_cover_every_slot_once_and_are_bounded(slots: set[int], most: int) -> None:
    found = pieces(sorted(slots), most)
    covered = [slot for first, count in found for slot in range(first, first + count)]
    assert covered == (sorted(slots) if most else [])
    assert all(0 < count <= most for _, count in found)
    # Not in more pieces than it takes: adjacent ones are full.
    assert all(count == most for (first, count), (after, _) in pairwise(found) if first + count == after)


def test_a_piece_is_at_most_64_gib() -> None:
    pins, locks = Pins(0, 16 * MIB), Locks()
    pins.register(pins.claim(range(10_000)), locks)
    assert PIECE == 64 << 30
    assert [size for _, size in locks.asked] == [64 << 30, 64 << 30, (10_000 * 16 * MIB) - (128 << 30)]


def test_a_slot_that_is_larger_than_a_piece_is_left_alone() -> None:
    pins, locks = Pins(0, 2 * MIB, piece=MIB), Locks()
    assert pins.register(pins.claim([0, 1]), locks) == 0
    assert not locks.asked
    assert 0 not in pins


def test_only_what_is_warm_is_registered_and_once(arena: Arena) -> None:
    locks = Locks()
    assert arena.pin(locks) == 0
    assert not locks.asked
    grow(arena, 3 * MIB)
    assert arena.pin(locks) == 3 * MIB
    assert arena.pin(locks) == 0
    grow(arena, 5 * MIB)
    assert arena.pin(locks) == 2 * MIB
    assert locks.asked == [(arena.address(0), 3 * MIB), (arena.address(3), 2 * MIB)]
    assert os.fstat(arena.fd).st_blocks * 512 == 5 * MIB


def test_a_refusal_leaves_what_was_registered_before(arena: Arena) -> None:
    locks = Locks()
    grow(arena, 2 * MIB)
    arena.pin(locks)
    grow(arena, 4 * MIB)
    locks.refuses = lambda address: address == arena.address(2)
    assert arena.pin(locks) == 0
    assert [slot in arena._pins for slot in range(4)] == [True, True, False, False]
    locks.refuses = lambda _: False
    assert arena.pin(locks) == 2 * MIB  # not for ever


def test_page_locked_memory_is_not_given_back_to_the_machine(arena: Arena) -> None:
    """A device would write into the old pages while everybody else reads new ones."""
    locks = Locks()
    grow(arena, 2 * MIB)
    during: list[int] = []
    locks.during = lambda: during.append(arena.shrink(8 * MIB))  # while it is being registered, already
    arena.pin(locks)
    grow(arena, 4 * MIB)
    assert during == [0]
    assert arena.shrink(8 * MIB) == 2 * MIB
    assert os.fstat(arena.fd).st_blocks * 512 == 2 * MIB


def test_it_is_let_go_before_it_is_unmapped(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = Locks()
    grow(arena, 2 * MIB)
    arena.pin(locks)
    held: list[int] = []
    unmap = pages._libc.munmap

    def munmap(address: int, size: int) -> int:
        held.append(len(locks.held))
        return int(unmap(address, size))

    monkeypatch.setattr(pages._libc, "munmap", munmap)
    arena.close()
    arena.close()
    assert held == [0]


def test_what_is_not_let_go_stays_mapped(arena: Arena) -> None:
    locks = Locks()
    grow(arena, MIB)
    arena.pin(locks)
    locks.keeps = True
    address, size = arena.address(0), arena.size
    arena.close()
    assert arena.fd == -1
    assert f"{address:x}-{address + size:x}" in Path("/proc/self/maps").read_text()
    assert pages._libc.munmap(address, size) == 0


def test_a_piece_that_an_interrupt_leaves_in_doubt_is_let_go(arena: Arena) -> None:
    locks = Locks()

    def interrupt() -> None:
        locks.held[arena.address(0)] = MIB  # registered, and nobody told
        raise KeyboardInterrupt

    locks.during = interrupt
    grow(arena, MIB)
    with pytest.raises(KeyboardInterrupt):
        arena.pin(locks)
    locks.during = lambda: None
    assert arena.pin(locks) == 0
    arena.close()
    assert not locks.held


def test_warming_up_a_pool_registers_and_closing_it_lets_go() -> None:
    locks = Locks()
    pool = Pool(PoolConfig(memory=4 * MIB, workers=1, slot_size=MIB))
    try:
        assert pool.warmup(2 * MIB) == 2 * MIB
        assert not locks.asked
        assert pool.warmup(MIB, locks) == MIB
        assert locks.asked == [(pool.arena.address(0), 2 * MIB)]
    finally:
        pool.close()
    assert not locks.held


def test_an_arena_of_the_parent_lets_nothing_go(arena: Arena) -> None:
    locks = Locks()
    grow(arena, MIB)
    arena.pin(locks)
    arena.forget()
    arena.close()
    assert list(locks.held) == [arena.address(0)]


def test_a_forked_child_lets_nothing_of_its_parent_go() -> None:
    script = """
        import os
        from s3dlio.engine.pool import Pool, PoolConfig
        class Locks:
            held = set()
            def register(self, address, size):
                self.held.add(address)
                return True
            def unregister(self, address):
                self.held.remove(address)
                return True
        pool = Pool(PoolConfig(memory=2 << 20, workers=1, slot_size=1 << 20))
        pool.warmup(None, Locks())
        child = os.fork()
        if child == 0:
            pool.close()
            pool.arena.close()
            os._exit(0 if len(Locks.held) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        pool.close()
        assert not Locks.held
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
