"""Past the page cache or through it: which way the bytes of one store go.

Owns that choice, and what happens when a file system refuses O_DIRECT; the loops are in ``direct_io``. Called by
``posix`` with open files.

Both schemes write past the cache, and read past it what is not cached: on the disk this was measured on, writing is 1.7
times as fast as through the cache with fsync, and a training job's memory is not filled with checkpoints. ``file``
takes cached bytes from the cache (7 times as fast as the disk), and does without O_DIRECT in silence; ``direct`` reads
from the device always, and warns once per root and process when its file system refuses.
"""

from __future__ import annotations

import errno
import logging
import threading

from ..contract import Segments
from . import direct_io

log = logging.getLogger("s3dlio.engine.backend")

_told: set[str] = set()
_told_lock = threading.Lock()


class Route:
    """The way to and from the files below ``root``."""

    def __init__(self, root: str, *, direct: bool) -> None:
        self._root = root
        self._direct = direct
        self._refused = False

    def write(self, fd: int, offset: int, data: Segments, *, past_cache: bool = True) -> bool:
        """Write ``data`` from ``offset``; ``False`` if bytes wait in the page cache for an fsync."""
        if past_cache and self._go_direct(fd):
            try:
                direct_io.write_direct(fd, offset, data)
                return True
            except OSError as error:
                self._check_refusal(error, fd)
        direct_io.write_buffered(fd, offset, data)
        return False

    def read(self, fd: int, offset: int, into: memoryview) -> int:
        """Read into the whole of ``into`` from ``offset``; returns the bytes read, fewer only at the file's end."""
        done = 0
        if not self._direct:
            cached = direct_io.read_cached(fd, offset, into) if into.nbytes >= direct_io.SMALL else None
            if cached is None:
                return direct_io.read_buffered(fd, offset, into)
            done = cached
        rest = into[done:]
        if rest.nbytes and self._go_direct(fd):
            try:
                return done + direct_io.read_direct(fd, offset + done, rest)
            except OSError as error:
                self._check_refusal(error, fd)
        return done + direct_io.read_buffered(fd, offset + done, rest)

    def _go_direct(self, fd: int) -> bool:
        if not self._refused and not direct_io.go_direct(fd):
            self._refuse()
        return not self._refused

    def _check_refusal(self, error: OSError, fd: int) -> None:
        """Go on through the page cache if ``error`` is a file system's refusal of O_DIRECT, else raise it."""
        if error.errno != errno.EINVAL:
            raise error
        self._refuse()
        direct_io.go_buffered(fd)

    def _refuse(self) -> None:
        self._refused = True
        with _told_lock:
            first = self._root not in _told
            _told.add(self._root)
        if self._direct and first:
            text = "%s: its file system refuses O_DIRECT; files go through the page cache and fsync"
            log.warning(text, self._root, extra={"once": True})  # every worker finds out for itself
