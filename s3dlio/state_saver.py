"""Saving states: each from its draft to its commit, and what became of it.

Owns the order of things (lay out, stage, store, index, commit) and the saves of one store; ``content`` lays out,
``writer`` stores, ``saving`` keeps the promises, ``commit`` publishes; a save of all ranks is ``group_saver``'s.
``store`` calls it with checked arguments.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from .commit import commit
from .content import Draft, Pieces
from .coordination.boards import Seat
from .engine.actions import StoredObject
from .handle import Handle
from .info import CheckpointInfo
from .saving import Finisher, Meta, Save, mark_finishing
from .writer import Shard, ShardWriter

if TYPE_CHECKING:
    from .group_saver import GroupSave


class Staging(Enum):
    """When the copy happens: beside the storing (``save`` waits for both), before it, or in a thread."""

    BESIDE = "beside"
    QUIET = "quiet"
    DEFERRED = "deferred"


class StateSaver:
    """The saves of one store. ``committed`` is called after each commit, in the finisher's thread."""

    def __init__(self, committed: Callable[[], None]) -> None:
        self._committed = committed
        self._finisher = Finisher()
        self._failed: list[Save] = []
        self._lock = threading.Lock()
        self._groups: list[threading.Thread] = []
        self._turn = threading.Event()  # the group save before has taken its share of the arena
        self._turn.set()

    def pending(self) -> list[Save]:
        """Saves that have not ended."""
        return self._finisher.pending()

    def _take(self, meta: Meta) -> Save:
        """A new save, whose failure is not forgotten if nobody asks for it."""
        save = Save(meta.id.name)
        save.committed.add_done_callback(lambda _: self._note_failure(save))
        self._finisher.take(save)
        return save

    def begin(self, draft: Draft, writer: ShardWriter, meta: Meta, staging: Staging) -> Handle:
        """Start a save; it is staged when this returns, unless it is deferred. Raises what staging raises."""
        save = self._take(meta)
        try:
            if staging is Staging.DEFERRED:
                self._defer(save, draft, writer, meta)
            else:
                self.store(save, draft, writer, meta, quiet=staging is Staging.QUIET)
        except BaseException as error:
            save.asked = True
            save.cancel()  # after a Ctrl-C between the last byte and this line its job would go on
            self._finisher.fail(save, error)
            raise
        return Handle(save)

    def store(self, save: Save, draft: Draft, writer: ShardWriter, meta: Meta, *, quiet: bool) -> None:
        """Lay out and stage; what follows runs in the finisher's thread."""
        content = draft.content()
        shard = writer.shard(meta.id, 0, meta.epoch, empty=not content.source.total, label=meta.label)
        job = writer.start(shard, content.source.total, content.runs)
        tree, table = content.tree, content.table  # not the content: once staged, nothing keeps the user's arrays
        self._finisher.follow(
            save,
            job,
            lambda stored: self._finish(save, stored, writer, shard, tree, table, meta),
            discard=lambda: writer.discard(shard),
        )
        save.stage(job, content.source, quiet=quiet)

    def _defer(self, save: Save, draft: Draft, writer: ShardWriter, meta: Meta) -> None:
        """Lay out and stage in a thread of its own; the handle tells what became of it."""
        returned = threading.Event()

        def run(draft: Draft) -> None:
            returned.wait()  # else laying out takes the interpreter, and the caller waits 5 ms to get it back
            try:
                self.store(save, draft, writer, meta, quiet=False)
            except Exception as error:  # noqa: BLE001 - it is the handle's to raise
                del draft
                traceback.clear_frames(error.__traceback__)  # a kept error keeps no state
                self._finisher.fail(save, error)

        try:
            threading.Thread(target=run, args=(draft,), name="s3dlio-stage", daemon=True).start()
        finally:
            returned.set()

    def begin_group(
        self, draft: Draft, writer: ShardWriter, meta: Meta, staging: Staging, seat: Seat, topic: str
    ) -> Handle:
        """Start this rank's part of a save of all ranks; as ``begin``. ``topic``: where the ranks talk of it."""
        from .group_saver import GroupSave  # with NumPy, which few programs that only import the store need

        save = self._take(meta)
        group = GroupSave(save, draft, writer, meta, seat, topic)
        # Ranks that each hold memory for another one of two saves would wait for each other: all take turns alike.
        turn = threading.Event()
        with self._lock:
            before, self._turn = self._turn, turn

        def stage() -> None:
            try:
                before.wait()
                save.check()
                group.stage()
            finally:
                turn.set()

        try:
            if staging is not Staging.DEFERRED:
                stage()
            self._run_group(save, group, stage if staging is Staging.DEFERRED else None)
        except BaseException as error:
            turn.set()
            save.asked = True
            save.cancel()
            try:
                group.refuse(error)
            finally:
                self._finisher.fail(save, error)
            raise
        return Handle(save)

    def _run_group(self, save: Save, group: GroupSave, stage: Callable[[], None] | None) -> None:
        """Do the rest in a thread of its own: saves that wait for other ranks must not hold up others."""
        returned = threading.Event()

        def run() -> None:
            returned.wait()  # as in `_defer`
            mark_finishing()
            try:
                if stage is not None:
                    stage()
                info = group.finish(self._committed)
            except Exception as error:  # noqa: BLE001 - it is the handle's to raise
                traceback.clear_frames(error.__traceback__)
                try:
                    group.refuse(error)
                finally:
                    self._finisher.fail(save, error)
            else:
                self._finisher.succeed(save, info)

        thread = threading.Thread(target=run, name="s3dlio-group", daemon=True)
        try:
            thread.start()
        finally:
            returned.set()
        with self._lock:
            self._groups = [thread, *(old for old in self._groups if old.is_alive())]

    def _finish(
        self,
        save: Save,
        stored: StoredObject,
        writer: ShardWriter,
        shard: Shard,
        tree: Pieces | None,
        table: Pieces | None,
        meta: Meta,
    ) -> CheckpointInfo:
        """Index and commit."""
        record = writer.finish(shard, stored, tree=tree() if tree else None, table=table() if table else None)
        save.make_durable(record)
        control = writer.control
        committed = commit(
            control,
            [record],
            step=meta.id.step,
            epoch=meta.epoch,
            framework=meta.framework,
            world_size=1,
            user_meta=meta.user_meta,
            label=meta.label,
            each=control.each,
        )
        self._committed()
        return CheckpointInfo.of(committed.manifest)

    def _note_failure(self, save: Save) -> None:
        if save.committed.exception() is not None and not save.asked:
            with self._lock:
                self._failed.append(save)

    def raise_unasked(self) -> None:
        """Raise the first failure that nobody has asked for."""
        with self._lock:
            failed = list(self._failed)
        for save in failed:
            if not save.asked and (error := save.committed.exception()) is not None:
                save.asked = True
                raise error

    def close(self) -> None:
        """End the threads; the caller has waited for the saves that it wants."""
        self._finisher.close()
        for thread in self._groups:
            thread.join()
