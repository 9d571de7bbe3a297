"""``CheckpointStore``: saving and loading the state of a training run, in the background and whole or not at all.

The public face. Owns the checks of what a user asks to be saved; ``state_saver`` saves. What is stored already is
``stored``'s, the life of a store ``open_store``'s, the shards of many ranks ``bytes_level``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bytes_level import CheckpointReader, CheckpointWriter, StoreAccess
from .commit import check_meta
from .config import CheckpointConfig
from .content import draft_of
from .coordination.boards import Coordinator
from .coordination.words import speak_error
from .engine.errors import ConfigError, PoolClosedError
from .handle import Handle
from .ids import check_step
from .info import CheckpointInfo
from .saving import Meta
from .state_saver import Staging
from .stored import StoredCheckpoints
from .strategy import Strategy


class CheckpointStore(StoredCheckpoints):
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
        rank_timeout: float | None = None,
        options: Mapping[str, Any] | None = None,
        config: CheckpointConfig | None = None,
    ) -> None:
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
            "rank_timeout": rank_timeout,
            "options": options,
        }
        chosen = [name for name, value in given.items() if value is not None]
        if config is not None and chosen:
            raise ConfigError(f"pass either config= or {', '.join(chosen)}, not both")
        super().__init__(uri, config or CheckpointConfig.of(**given))

    @classmethod
    def open(cls, uri: str) -> CheckpointStore:
        """A store with default options."""
        return cls(uri)

    @classmethod
    def open_with_config(cls, uri: str, config: CheckpointConfig) -> CheckpointStore:
        """A store with these options."""
        return cls(uri, config=config)

    def save(
        self,
        step: int,
        state: Any,
        *,
        epoch: int = 0,
        framework: str | None = None,
        user_meta: Any = None,
        id: str | None = None,
        coordinator: Coordinator = "auto",
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
        coordinator: Coordinator = "auto",
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
        coordinator: Coordinator,
        staging: Staging,
    ) -> Handle:
        if self._closing:
            raise PoolClosedError(f"the store {self.uri} is closed: open another one")
        seat = self._seat(coordinator)
        topic = "" if seat is None else seat.topic("save")  # counted by every rank, whatever it meets
        try:
            check_step(step)
            check_meta(epoch, framework or "", user_meta, label)
            draft = draft_of(state, alone=seat is None)
            writer = self._writer()
            meta = Meta(self._mint(step, seat), epoch, framework or draft.framework, user_meta, label)
        except BaseException as error:
            if seat is not None:
                speak_error(seat.council, topic, 0, error)
            raise
        if seat is None:
            return self._saver.begin(draft, writer, meta, staging)
        return self._saver.begin_group(draft, writer, meta, staging, seat, topic)

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
