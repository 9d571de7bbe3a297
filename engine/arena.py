"""The arena: slots of shared memory in one memfd, lent out by lease.

Owns the memfd, its mapping in this process and the free list; never looks at what is in a slot. Stagers lease slots
and jobs give them back; workers map the same memfd by its descriptor. The memfd is sparse: a slot costs nothing until
it is first lent, and the lowest free slot is lent first, so untouched memory stays untouched. Nothing has a name, so
nothing is left behind by a SIGKILL.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import os
import resource
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from .errors import DeadlineError, MemoryLimitError
from .memory import headroom
from .pages import HugePages, give_back, map_shared, populate, unmap
from .pins import Pins, Registrar

# Kept free beyond what a slot takes, so that the process itself can go on living when a group is almost full.
_MARGIN = 64 << 20

_open_memories: weakref.WeakSet[SharedMemory] = weakref.WeakSet()


class SharedMemory:
    """An anonymous memory of ``size`` bytes that other processes can map by ``fd``."""

    def __init__(self, name: str, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise MemoryLimitError("this platform has no memfd_create; s3dlio needs Linux")
        self.size = size
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        except OSError as error:
            raise MemoryLimitError(f"cannot make a shared memory: {error}; raise the limit of open files") from error
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            os.close(self.fd)
            limited = error.errno == errno.EFBIG
            advice = "; raise the file-size limit (ulimit -f), which binds memory files too" if limited else ""
            raise MemoryLimitError(f"cannot make a shared memory of {size} bytes: {error}{advice}") from error
        _open_memories.add(self)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Arena:
    """``slots`` slots of ``slot_size`` bytes within ``memory`` bytes.

    Raises ``MemoryLimitError`` if not one slot fits. ``room`` tells the bytes that may still be taken (injected by
    tests).
    """

    def __init__(self, memory: int, slot_size: int, *, room: Callable[[], int] = headroom) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]  # bounds memfds too
        if limit != resource.RLIM_INFINITY:
            memory = min(memory, limit)
        self.slot_size = slot_size
        self.slots = memory // slot_size
        if self.slots < 1:
            raise MemoryLimitError(
                f"the memory number ({memory} bytes) cannot hold one chunk of {slot_size} bytes: "
                "raise memory= (or the file-size limit), or lower chunk_size="
            )
        self._room = room
        self._memory = SharedMemory("s3dlio-arena", self.slots * slot_size)
        self._address = self._map()
        self._huge = HugePages()
        self._pins = Pins(self._address, slot_size)
        self._free = list(range(self.slots))
        self._grown = [False] * self.slots
        self._lent: set[int] = set()
        self._exhausted = False
        # Taken itself, not through the condition: a Ctrl-C within a condition's own `__enter__` would leave it taken.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def _map(self) -> int:
        try:
            return map_shared(self._memory.fd, self._memory.size)
        except OSError as error:
            self._memory.close()
            raise MemoryLimitError(f"cannot map an arena of {self._memory.size} bytes: {error.strerror}") from error

    @property
    def fd(self) -> int:
        return self._memory.fd

    @property
    def size(self) -> int:
        return self._memory.size

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        with self._lock:
            return self.slots - len(self._lent)

    def address(self, slot: int) -> int:
        """Address of a slot in this process."""
        return self._address + slot * self.slot_size

    def offset(self, slot: int) -> int:
        """Offset of a slot in the memfd."""
        return slot * self.slot_size

    def lease(self, *, deadline: float | None = None, stop: Callable[[], bool] = lambda: False, held: int = 0) -> int:
        """Take the lowest free slot, waiting for one.

        ``stop`` is asked at each change (``wake``); when true, or past ``deadline`` (monotonic seconds),
        ``DeadlineError``. ``MemoryLimitError`` if the machine has no memory for another slot and nobody holds one but
        the caller, who does not give back its own ``held`` slots before it gets this one.
        """
        while True:
            slot = self._take(deadline, stop, held)
            if self._grown[slot] or self._grow(slot):
                return slot
            with self._lock:
                self._put_back(slot)
                self._exhausted = True  # until a slot comes back: asking the kernel again at once would spin

    def try_lease(self, held: int = 0) -> int | None:
        """A slot if one is free at once, as ``lease``."""
        try:
            return self.lease(deadline=0.0, held=held)
        except DeadlineError:
            return None

    def _take(self, deadline: float | None, stop: Callable[[], bool], held: int) -> int:
        with self._lock:
            while True:
                if stop():
                    raise DeadlineError("the wait for memory was stopped")
                slot = self._candidate(held)
                if slot is not None:
                    self._lent.add(slot)
                    return slot
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise DeadlineError(
                        f"no slot became free in time: all {self.slots} of {self.slot_size} bytes are in use; "
                        "storage is slower than the saves that are asked of it"
                    )
                self._changed.wait(left)

    def _candidate(self, held: int) -> int | None:
        """The lowest free slot; a new one only while the machine has memory for it."""
        if not self._free:
            return None
        if self._grown[self._free[0]] or self._may_grow():
            return heapq.heappop(self._free)
        warm = [slot for slot in self._free if self._grown[slot]]
        if warm:
            self._free.remove(warm[0])
            heapq.heapify(self._free)
            return warm[0]
        if len(self._lent) <= held:
            self._exhausted = False  # no slot will come back to say so
            raise MemoryLimitError(
                f"{self._room()} bytes of memory are left, too few for one chunk of {self.slot_size} bytes "
                f"and a margin of {_MARGIN}: free memory, or lower chunk_size="
            )
        return None

    def _may_grow(self) -> bool:
        """Whether there is room for one more slot beyond those that others are just growing."""
        growing = sum(not self._grown[slot] for slot in self._lent)
        return not self._exhausted and self._room() >= (growing + 1) * self.slot_size + _MARGIN

    def _grow(self, slot: int) -> bool:
        """Allocate and map a new slot with the GIL released; false where the kernel has no memory for it."""
        self._huge.make(self.address(slot), self.slot_size)
        return self._enter(slot)

    def _enter(self, slot: int) -> bool:
        """Map a slot, and allocate what is not there."""
        self._grown[slot] = populate(self.address(slot), self.slot_size)
        return self._grown[slot]

    def grow(self, nbytes: int, allocate: Callable[[Sequence[int]], None]) -> int:
        """Make the lowest slots warm for ``nbytes``: ``allocate`` makes them (in workers), then they are mapped.

        Stops where memory runs short; returns the bytes that are warm.
        """
        wanted = min(self.slots, -(-nbytes // self.slot_size))
        with self._lock:
            cold = [slot for slot in self._free if slot < wanted and not self._grown[slot]]
            room = max(0, self._room() - _MARGIN) // self.slot_size
            cold = sorted(cold)[:room]
            self._free = [slot for slot in self._free if slot not in set(cold)]
            heapq.heapify(self._free)
            self._lent.update(cold)
        try:
            allocate(cold)
            for slot in cold:
                self._enter(slot)
        finally:
            self.release(cold)
        return sum(self._grown[:wanted]) * self.slot_size

    def pin(self, registrar: Registrar) -> int:
        """Have ``registrar`` page-lock the slots that are warm and are not yet; the bytes of those that it did.

        Never memory that is not there yet: page-locking would make it, without asking what the machine has left.
        """
        with self._lock:
            claimed = self._pins.claim([slot for slot in range(self.slots) if self._grown[slot]])
        return self._pins.register(claimed, registrar)

    def shrink(self, nbytes: int) -> int:
        """Give the memory of free slots that are not page-locked back to the machine, highest first.

        Until it has ``nbytes`` more of it; returns the bytes given back. Whoever leases such a slot makes its pages
        anew.
        """
        given = 0
        while given < nbytes:
            with self._lock:  # for each anew: 16 MiB take a millisecond, for which others may be waiting
                warm = [slot for slot in self._free if self._grown[slot] and slot not in self._pins]
                if not warm or not give_back(self.address(max(warm)), self.slot_size):
                    return given
                self._grown[max(warm)] = False
            given += self.slot_size
        return given

    def release(self, slots: Sequence[int]) -> None:
        """Give slots back; nobody may touch them afterwards."""
        with self._lock:
            for slot in slots:
                self._put_back(slot)
            self._exhausted = False

    def _put_back(self, slot: int) -> None:
        self._lent.remove(slot)
        heapq.heappush(self._free, slot)
        self._changed.notify_all()

    def wake(self) -> None:
        """Make waiting leases ask ``stop`` again."""
        with self._lock:
            self._changed.notify_all()

    def move(self, source: int, target: int, offset: int, length: int) -> None:
        """Copy the first ``length`` bytes of slot ``source`` to ``offset`` in slot ``target``."""
        ctypes.memmove(self.address(target) + offset, self.address(source), length)

    def close(self) -> None:
        """Unmap and free; the caller has made sure that nobody holds a lease. Once more is harmless."""
        # What may be page-locked stays mapped: whatever lay at these addresses next would be taken for it.
        if self._memory.fd >= 0 and self._pins.release():
            unmap(self._address, self._memory.size)
        self._memory.close()

    def forget(self) -> None:
        """In a forked child, where the mapping is a hole: a thread that does not exist here may hold the lock."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pins = Pins(self._address, self.slot_size)  # what is page-locked is the parent's to let go


def forget_memories() -> None:
    """In a forked child: close every inherited memfd, so that the parent's memory ends with the parent."""
    for memory in list(_open_memories):
        memory.close()
