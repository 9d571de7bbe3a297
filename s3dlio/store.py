"""``CheckpointStore``: saving and loading the state of a training run, in the background and whole or not at all.

The public face. Owns the checks of what a user asks for, and the life of a store; delegates the rest: ``state_saver``
saves, ``reader`` and ``restoring`` load, ``catalog`` and ``removal`` speak the store's protocol.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from . import catalog, leftovers, loading, pools, removal
from .bytes_level import CheckpointReader, CheckpointWriter, StoreAccess
from .commit import check_meta
from .config import CheckpointConfig, parse_uri
from .content import draft_of
from .engine.errors import (
    CheckpointNotFoundError,
    ConfigError,
    DeadlineError,
    NotFoundError,
    PoolClosedError,
    S3dlioError,
)
from .engine.pool import EXIT_TIMEOUT, Pool, PoolControl
from .handle import Handle
from .ids import CheckpointId, IdClock, check_step
from .info import CheckpointInfo
from .manifest import Manifest
from .ranks import check_coordinator
from .reader import OnBytes, ShardReader
from .records import ShardRecord
from .restoring import load_into, load_named, load_whole
from .saving import Save, check_may_wait
from .shards import ShardStream
from .state_saver import Meta, Staging, StateSaver
from .strategy import Strategy
from .writer import ShardWriter

_log = logging.getLogger("s3dlio")


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` read and found right: shards and raw bytes of one checkpoint."""

    info: CheckpointInfo
    shards: int
    bytes: int

    @property
    def ok(self) -> bool:
        """True: damage raises instead."""
        return True


class CheckpointStore:
    """Checkpoints of one run at ``uri``: ``file:///dir``, ``direct:///dir``, ``s3://bucket/prefix`` or
    ``az://account/container/prefix``; options as in ``CheckpointConfig``.

    Opening touches nothing: worker processes start with the first operation. Use it as a context manager, or ``close``
    it. Its methods may be called by several threads; a forked child starts workers of its own when it uses the store.
    """

    def __init__(
        self,
        uri: str,
        strategy: Strategy | str | None = None,
        *,
        compression: str | None = None,
        compression_level: int | None = None,
        multipart_threshold: int | None = None,
        memory: int | None = None,
        workers: int | None = None,
        chunk_size: int | None = None,
        connections: int | None = None,
        keep_last: int | None = None,
        options: Mapping[str, Any] | None = None,
        config: CheckpointConfig | None = None,
    ) -> None:
        self.uri = uri
        given: dict[str, Any] = {
            "strategy": strategy,
            "compression": compression,
            "compression_level": compression_level,
            "multipart_threshold": multipart_threshold,
            "memory": memory,
            "workers": workers,
            "chunk_size": chunk_size,
            "connections": connections,
            "keep_last": keep_last,
            "options": options,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        if config is not None and chosen:
            raise ConfigError(f"pass either config= or {', '.join(chosen)}, not both")
        self.config = config or CheckpointConfig(**chosen)
        self.location = parse_uri(uri, self.config.options)
        self._pool_config = pools.config_of(self.config)
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

    @classmethod
    def open(cls, uri: str) -> CheckpointStore:
        """A store with default options."""
        return cls(uri)

    @classmethod
    def open_with_config(cls, uri: str, config: CheckpointConfig) -> CheckpointStore:
        """A store with these options."""
        return cls(uri, config=config)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._saver.pending())} saves in flight"
        return f"<CheckpointStore {self.uri}: {state}>"

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except S3dlioError:
            if error is None:  # else the body's own error is the one to see; the save's was logged
                raise

    # saving

    def save(
        self,
        step: int,
        state: Any,
        *,
        epoch: int = 0,
        framework: str | None = None,
        user_meta: Any = None,
        id: str | None = None,
        coordinator: str | None = "auto",
    ) -> CheckpointInfo:
        """Save and wait until it is committed. Arguments and errors as in ``save_async``."""
        handle = self._save(step, state, epoch, framework, user_meta, id, coordinator, Staging.BESIDE)
        try:
            return handle.result()
        except KeyboardInterrupt:
            handle.cancel()
            raise

    def save_async(
        self,
        step: int,
        state: Any,
        *,
        epoch: int = 0,
        framework: str | None = None,
        user_meta: Any = None,
        id: str | None = None,
        coordinator: str | None = "auto",
        defer_staging: bool = False,
    ) -> Handle:
        """Copy ``state`` and return; storing and committing go on in the background.

        ``state``: nested dicts, lists and tuples of NumPy or torch arrays, scalars, strings, bytes and ``None``; or one
        bytes-like payload. ``epoch``, ``framework`` and ``user_meta`` (JSON) are recorded; ``id`` labels the save. With
        ``defer_staging`` it returns at once, copies in a thread, and the arrays must not change before
        ``handle.wait_staged()``. Raises ``ConfigError`` and ``UnsupportedError`` (with the path in the tree) before
        anything is written; whatever happens later is raised by the handle.
        """
        staging = Staging.DEFERRED if defer_staging else Staging.QUIET
        return self._save(step, state, epoch, framework, user_meta, id, coordinator, staging)

    def _save(
        self,
        step: int,
        state: Any,
        epoch: int,
        framework: str | None,
        user_meta: Any,
        label: str | None,
        coordinator: str | None,
        staging: Staging,
    ) -> Handle:
        if self._closing:
            raise PoolClosedError(f"the store {self.uri} is closed: open another one")
        check_step(step)
        check_coordinator(coordinator)
        check_meta(epoch, framework or "", user_meta, label)
        draft = draft_of(state)
        writer = self._writer()
        meta = Meta(self._mint(step), epoch, framework or draft.framework, user_meta, label)
        return self._saver.begin(draft, writer, meta, staging)

    def _prune_quietly(self) -> None:
        """After a commit: that older checkpoints stay longer must not make it fail."""
        pool = self._pool  # without asking whether the store is closed: it is while it waits for its saves
        if self.config.keep_last is None or pool is None:
            return
        try:
            self._prune(pool.control(self.location), self.config.keep_last)
        except S3dlioError as error:
            _log.warning("older checkpoints were not pruned: %s", error)

    # loading

    def load(
        self,
        step: int | None = None,
        *,
        into: Any = None,
        names: str | Iterable[str] | None = None,
        rank: int | None = None,
        id: str | None = None,
    ) -> Any:
        """The state of the newest committed checkpoint, or of ``step``'s newest save.

        Arrays are views of one memory, without a copy, so a kept array pins the whole shard. ``into``: a state of the
        same structure whose arrays are filled in place; names, shapes, dtypes are checked before a byte is written.
        ``names``: globs; only these arrays are read, as a dict by name. A payload comes back bytes-like. ``rank``:
        whose shard, for a checkpoint of several ranks. ``id``: a checkpoint by its own name (``CheckpointInfo.id``),
        where a step was saved more than once. Raises ``CheckpointNotFoundError``, ``CorruptError`` for bytes that are
        not those saved, ``ConfigError`` with everything that does not fit ``into`` or ``names``.
        """
        if into is not None and names is not None:
            raise ConfigError("load takes into= or names=, not both")
        with self._open_checkpoint(step, id) as (manifest, reader):
            record = _shard_of(manifest, rank)
            if into is not None:
                return load_into(reader, record, into)
            if names is not None:
                return load_named(reader, record, names)
            return load_whole(reader, record)

    def verify(
        self, step: int | None = None, *, id: str | None = None, on_bytes: OnBytes | None = None
    ) -> VerifyReport:
        """Read every byte of a checkpoint back and check every checksum; ``CorruptError`` names what is damaged.

        ``id``: as in ``load``. ``on_bytes`` is called with the number of bytes just checked, in a thread of the pool.
        """
        with self._open_checkpoint(step, id) as (manifest, reader):
            total = sum(reader.verify(record, on_bytes) for record in manifest.shards)
            return VerifyReport(CheckpointInfo.of(manifest), len(manifest.shards), total)

    def read_shard(self, step: int | None = None, *, rank: int | None = None, id: str | None = None) -> Any:
        """A shard's raw bytes, bytes-like: of a state, a valid safetensors file. ``rank`` and ``id`` as in ``load``."""
        with self._open_checkpoint(step, id) as (manifest, reader):
            record = _shard_of(manifest, rank)
            return reader.whole(record, reader.index(record))

    @contextmanager
    def _open_checkpoint(self, step: int | None, id: str | None) -> Iterator[tuple[Manifest, ShardReader]]:
        """A manifest and a reader; the checkpoint is not pruned by this process meanwhile."""
        manifest = self._resolve(step, id)
        with self._holding(manifest.id.name):
            yield manifest, self._reader()

    def _holding(self, name: str) -> AbstractContextManager[None]:
        """The checkpoint of this id is not pruned by this process meanwhile."""
        return loading.holding(self.location, name)

    def _resolve(self, step: int | None, id: str | None = None) -> Manifest:
        if id is not None:
            return self._by_id(step, id)
        if step is not None:
            return catalog.find(self.control(), check_step(step))
        manifest = catalog.resolve_latest(self.control())
        if manifest is None:
            raise CheckpointNotFoundError(f"{self.uri} holds no committed checkpoint")
        return manifest

    def _by_id(self, step: int | None, id: str) -> Manifest:
        found = CheckpointId.parse(id)
        if found is None or step not in (None, found.step):
            raise ConfigError(f"id={id!r} is not the id of a checkpoint{'' if step is None else f' of step {step}'}")
        try:
            return catalog.read_manifest(self.control(), found)
        except NotFoundError as error:
            raise CheckpointNotFoundError(f"{self.uri} holds no committed checkpoint {id}") from error

    # the bytes level: each rank stores its shard, then one rank commits them all

    def writer(self, world_size: int, rank: int) -> CheckpointWriter:
        """Stores the shards of one rank and commits; ``ConfigError`` for a rank outside the world."""
        return CheckpointWriter(self._access(), world_size, rank)

    def reader(self) -> CheckpointReader:
        """Reads manifests, and shards by rank."""
        return CheckpointReader(self._access())

    def _access(self) -> StoreAccess:
        return StoreAccess(
            writer=self._writer,
            reader=self._reader,
            control=self.control,
            mint=self._mint,
            committed=self._prune_quietly,
            holding=self._holding,
            opened=self._follow,
        )

    def _follow(self, stream: ShardStream) -> None:
        self._streams.add(stream)

    # the catalogue

    def list(self) -> list[CheckpointInfo]:
        """All committed checkpoints in order of saving."""
        control = self.control()
        return catalog.list_checkpoints(control, control.each)

    def latest(self) -> CheckpointInfo | None:
        """The newest committed checkpoint by (start of the save, step); ``None`` in an empty store."""
        manifest = catalog.resolve_latest(self.control())
        return None if manifest is None else CheckpointInfo.of(manifest)

    def info(self, step: int) -> CheckpointInfo:
        """The newest save of ``step``; ``CheckpointNotFoundError`` if there is none."""
        return CheckpointInfo.of(self._resolve(step))

    def delete(self, step: int) -> bool:
        """Remove every save of ``step``; whether there was one."""
        control = self.control()
        return removal.delete(control, step, control.each)

    def prune(self, keep_last: int) -> int:
        """Remove all but the ``keep_last`` newest checkpoints, none that is being loaded here; how many went."""
        return self._prune(self.control(), keep_last)

    def _prune(self, control: PoolControl, keep_last: int) -> int:
        return len(removal.prune(control, keep_last, protect=loading.held(self.location), each=control.each))

    def cleanup(self, min_age: float = leftovers.DAY) -> int:
        """Remove what saves that never committed left behind ``min_age`` seconds ago or longer; how many objects."""
        control = self.control()
        found = leftovers.find_leftovers(control, min_age=min_age)
        return leftovers.remove_leftovers(control, found, control.each)

    # life

    def warmup(self, nbytes: int | None = None) -> int:
        """Start the workers and make ``nbytes`` of the arena warm (default: all of it); the bytes that are warm now.

        The first save into cold memory copies at a tenth of the speed.
        """
        return self._use_pool().warmup(nbytes)

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

    def _end_streams(self) -> None:
        """Cancel the streams that were not finalized: nobody else would, and the pool would wait for them."""
        for stream in list(self._streams):
            stream.cancel()

    def _wait_for_saves(self, deadline: float | None) -> Sequence[Save]:
        """Saves that have not ended by then, which are cancelled."""
        unfinished = []
        for save in self._saver.pending():
            if not save.wait(_left(deadline)):
                save.cancel()
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

    def _mint(self, step: int) -> CheckpointId:
        """A new id behind every one in the store; the store is listed once."""
        if not self._seen:
            self._clock.see(catalog.list_ids(self.control()))
            self._seen = True
        return self._clock.mint(step)


def _shard_of(manifest: Manifest, rank: int | None) -> ShardRecord:
    if rank is None and manifest.world_size > 1:
        raise ConfigError(
            f"step {manifest.step} was saved by {manifest.world_size} ranks: pass rank= to load the shard of one"
        )
    wanted = 0 if rank is None else rank
    for shard in manifest.shards:
        if shard.rank == wanted:
            return shard
    raise ConfigError(f"rank {rank} is outside the world of {manifest.world_size} ranks of step {manifest.step}")


_open_stores: weakref.WeakSet[CheckpointStore] = weakref.WeakSet()


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
