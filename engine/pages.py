"""Pages of shared memory: mapped so that huge ones fit, made, and given back.

Owns the calls to the C library for them; never knows what they hold. ``arena`` maps with it in the training process,
``attached`` in the workers. Shared memory has huge pages only where an administrator allowed them, or where they are
asked for range by range, as here. They are worth it. Measured with 2 GiB on one virtual machine (Linux 6.18, 2 cores):
two workers and the mapping after them took 0.35 s instead of 1.65 (3.7 where free memory was in small pieces), and the
disk wrote from them with 2.1 GB/s instead of 1.6, since a device is told of few long pieces of memory, not of many
short ones.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

_MADV_REMOVE = 9
_MADV_DONTFORK = 10
_MADV_POPULATE_WRITE = 23  # Linux 5.14; older kernels answer EINVAL and the first copy faults the pages in
_MADV_COLLAPSE = 25  # Linux 6.1
_MAP_FIXED = 0x10
_NO_MEMORY = frozenset({errno.ENOMEM, errno.EFAULT})
_FAILED = ctypes.c_void_p(-1).value
_LARGEST = 32 << 20
"""Larger huge pages (512 MiB where pages are 64 KiB) fit no slot."""
PATIENCE = 0.004
"""Seconds of CPU time for one huge page beyond which no more are made, where somebody waits for it.

Where free memory is in small pieces the kernel moves others out of the way: 8 ms each was seen, and 0.2 to 1.2 where
it is not.
"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def huge_size(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")) -> int:
    """Bytes of a huge page; 0 where there are none of use."""
    try:
        size = int(setting.read_text())
    except (OSError, ValueError):
        return 0
    return size if size <= _LARGEST else 0


def map_shared(fd: int, size: int, *, align: int | None = None) -> int:
    """Map the memory ``fd`` at an address that is a multiple of a huge page's size; a forked child has it not.

    Not a mmap object: that would keep a second descriptor open, which a forked child inherits, and in the child, where
    the mapping is a hole, its collection would unmap whatever lies there by then. Raises ``OSError``.
    """
    align = align or huge_size() or mmap.PAGESIZE
    whole = _mmap(None, size + align, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    address = -(-whole // align) * align
    try:
        _mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)
    except OSError:
        unmap(whole, size + align)
        raise
    stop = -(-(address + size) // mmap.PAGESIZE) * mmap.PAGESIZE
    unmap(whole, address - whole)
    unmap(stop, whole + size + align - stop)
    _advise(address, size, _MADV_DONTFORK)
    return address


def lay_over(address: int, fd: int, size: int) -> None:
    """Map the memory ``fd`` at an address, in place of what is mapped there; private: writes stay in this process."""
    _mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED, fd)


def unmap(address: int, size: int) -> None:
    """Let a mapping go, whole or in part."""
    if size:
        _libc.munmap(address, size)


class HugePages:
    """Makes huge pages of shared memory, for as long as the kernel has them and makes them quickly; one for a process.

    ``size``: bytes of one, the machine's by default, 0 for none. ``clock``: the calling thread's CPU time in seconds.
    """

    def __init__(self, *, size: int | None = None, clock: Callable[[], float] = time.thread_time) -> None:
        self.size = huge_size() if size is None else size
        """Bytes of one; 0 once no more are made."""
        self._clock = clock

    def make(self, address: int, size: int, patience: float = PATIENCE) -> None:
        """Have huge pages where the range has room for them and none of its pages exist; with the GIL released.

        Where there are none the range is as it was. If one took more than ``patience`` seconds of CPU time, or there
        are none, no more are made.
        """
        if not self.size:
            return
        first = -(-address // self.size) * self.size
        count = (address + size - first) // self.size
        if count <= 0:
            return
        started = self._clock()
        if not self._collapse(first, count) or self._clock() - started > count * patience:
            self.size = 0

    def _collapse(self, first: int, count: int) -> bool:
        # The kernel makes a huge page of a range that has a page, not of a hole.
        starts = range(first, first + count * self.size, self.size)
        begun = all(_advise(start, mmap.PAGESIZE, _MADV_POPULATE_WRITE) == 0 for start in starts)
        return begun and _advise(first, count * self.size, _MADV_COLLAPSE) == 0


def populate(address: int, size: int) -> bool:
    """Make the pages of a range that are not there, and map all, with the GIL released; false without memory for them.

    True also of a kernel that cannot be asked: there the first copy makes them.
    """
    return _advise(address, size, _MADV_POPULATE_WRITE) not in _NO_MEMORY


def give_back(address: int, size: int) -> bool:
    """Give the memory of a range back to the machine, for all who map it; false if that cannot be done."""
    return _advise(address, size, _MADV_REMOVE) == 0


def _mmap(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    found = _libc.mmap(address, size, protection, flags, fd, 0)
    if found == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(found)


def _advise(address: int, size: int, advice: int) -> int:
    """What madvise says: 0, or the error's number."""
    return ctypes.get_errno() if _libc.madvise(address, size, advice) else 0
