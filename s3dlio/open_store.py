"""A store that is open: its pool of workers, its saves and streams in flight, and how all of it ends.

Owns that life, through ``close``, the interpreter's exit and a fork. Never looks at what is stored, but to name and to
prune. ``stored`` and ``store`` make the public ``CheckpointStore`` of it.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from . import catalog, cuda_host, loading, pools, removal
from .config import CheckpointConfig, parse_uri
from .coordination.boards import Coordinator, Seat, seat_of
from .engine.errors import DeadlineError, PoolClosedError, S3dlioError
from .engine.pool import EXIT_TIMEOUT, Pool, PoolControl
from .ids import CheckpointId, IdClock
from .reader import ShardReader
from .saving import Save, check_may_wait
from .shards import ShardStream
from .state_saver import StateSaver
from .writer import ShardWriter

_log = logging.getLogger("s3dlio")
_Store = TypeVar("_Store", bound="OpenStore")


class OpenStore:
    """The life of a store at ``uri``; see ``CheckpointStore``. The pool is borrowed by the first operation."""

    def __init__(self, uri: str, config: CheckpointConfig) -> None:
        self.uri = uri
        self.config = config
        self.location = parse_uri(uri, config.options)
        self._pool_config = pools.config_of(config)
        self._clock = IdClock()
        self._seen = False
        self._closing = False
        self._closed = False
        self._begin()
        _open_stores.add(self)

    def _begin(self) -> None:
        """Start with no pool and no saves: at first, and in a forked child, whose parent keeps those it has."""
        self._saver = StateSaver(self._prune_quietly)
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._streams: weakref.WeakSet[ShardStream] = weakref.WeakSet()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._saver.pending())} saves in flight"
        return f"<{type(self).__name__} {self.uri}: {state}>"

    def __enter__(self: _Store) -> _Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except S3dlioError:
            if error is None:  # else the body's own error is the one to see; the save's was logged
                raise

    def warmup(self, nbytes: int | None = None) -> int:
        """Start the workers and make ``nbytes`` of the arena warm (default: all of it); the bytes that are warm now.

        The first save into cold memory copies at a tenth of the speed. Once torch uses CUDA in this process, what is
        warm is also page-locked, if the machine lets it: copies from devices are slower without.
        """
        return self._use_pool().warmup(nbytes, cuda_host.registrar())

    def close(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds for saves in flight, then leave the pool.

        Raises the first failure of a save that nobody asked about, ``DeadlineError`` if saves had to be given up.
        """
        if self._closed:
            return
        check_may_wait()
        self._closing = True  # no new saves; after a Ctrl-C here the next close, or the exit, waits again
        self._end_streams()
        deadline = None if timeout is None else time.monotonic() + timeout
        unfinished = self._wait_for_saves(deadline)
        self._closed = True
        _open_stores.discard(self)
        if self._pool is not None:
            pools.give_back(self._pool_config, self._pool, 0 if unfinished else _left(deadline))
            self._wait_for_saves(None)
        self._saver.close()
        if unfinished:
            names = ", ".join(save.name for save in unfinished)
            raise DeadlineError(f"{self.uri}: given up after {timeout} s, not committed: {names}")
        self._saver.raise_unasked()

    def _follow(self, stream: ShardStream) -> None:
        self._streams.add(stream)

    def _end_streams(self) -> None:
        """Cancel the streams that were not finalized: nobody else would, and the pool would wait for them."""
        for stream in list(self._streams):
            stream.cancel()

    def _wait_for_saves(self, deadline: float | None) -> Sequence[Save]:
        """Saves that have not ended by then, which are cancelled."""
        unfinished = []
        for save in self._saver.pending():
            if not save.wait(_left(deadline)):
                save.give_up()
                unfinished.append(save)
        return unfinished

    def control(self) -> PoolControl:
        """The small operations of this store, carried out by the workers."""
        return self._use_pool().control(self.location)

    def _reader(self) -> ShardReader:
        return ShardReader(self._use_pool(), self.location)

    def _writer(self) -> ShardWriter:
        return ShardWriter(self._use_pool(), self.location, self.config)

    def _use_pool(self) -> Pool:
        with self._lock:
            if self._closed:
                raise PoolClosedError(f"the store {self.uri} is closed: open another one")
            if self._pool is None:
                self._pool = pools.borrow(self._pool_config)
            return self._pool

    def _mint(self, step: int, seat: Seat | None = None) -> CheckpointId:
        """A new id behind every one in the store, which is listed once; of several ranks, rank 0's counts."""
        if not self._seen and (seat is None or seat.council.presides):
            self._clock.see(catalog.list_ids(self.control()))
            self._seen = True
        return self._clock.mint(step)

    def _seat(self, coordinator: Coordinator) -> Seat | None:
        """This rank's seat among those that share the store; ``None`` where it is on its own."""
        return seat_of(coordinator, self.uri, self.control, self.config.rank_timeout)

    def _prune_quietly(self) -> None:
        """After a commit: that older checkpoints stay longer must not make it fail."""
        pool = self._pool  # without asking whether the store is closed: it is while it waits for its saves
        if self.config.keep_last is None or pool is None:
            return
        try:
            self._prune(pool.control(self.location), self.config.keep_last)
        except S3dlioError as error:
            _log.warning("older checkpoints were not pruned: %s", error)

    def _prune(self, control: PoolControl, keep_last: int) -> int:
        return len(removal.prune(control, keep_last, protect=loading.held(self.location), each=control.each))


_open_stores: weakref.WeakSet[OpenStore] = weakref.WeakSet()


def _left(deadline: float | None) -> float | None:
    """Seconds until a deadline on the monotonic clock."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _close_all() -> None:
    """At the interpreter's end: finish what is in flight, in bounded time, and say what failed."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    for store in list(_open_stores):
        pending = len(store._saver.pending())
        if pending:
            _log.warning("%s was not closed: waiting for %d saves in flight", store.uri, pending)
        try:
            store.close(_left(deadline))
        except S3dlioError as error:
            _log.error("%s: %s", store.uri, error)


def _begin_all() -> None:
    for store in list(_open_stores):
        store._begin()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_begin_all)
