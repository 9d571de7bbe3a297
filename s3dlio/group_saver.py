"""One rank's part of a save of all ranks: copied first, agreed on afterwards, committed by rank 0.

Owns the order of things and what is said of failures: whatever keeps one rank from saving fails the save on every rank,
and nothing is committed. ``group_content`` lays out, ``coordination`` passes the words, ``writer`` stores, ``commit``
publishes. ``state_saver`` starts it and keeps the promises of its handle.

The words are said on two topics: on ``hello`` each rank says what it has and hears who stores what, on ``stored`` what
it has stored and hears of the commit. A rank that fails says so on the topic on which it is expected next.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace

from . import catalog
from .commit import commit
from .content import Draft
from .coordination.boards import Seat
from .coordination.verdict import Verdict, decide, read_verdict
from .coordination.words import TOPICS, read_word, speak_error, topic_of
from .engine.capture import Capture
from .engine.errors import MemoryLimitError, S3dlioError
from .engine.job import SaveJob
from .engine.source import BufferSource
from .group_content import Agreed, GroupContent, Read, group_content, read_source
from .ids import CheckpointId
from .info import CheckpointInfo
from .records import ShardRecord
from .saving import Meta, Save
from .writer import Shard, ShardWriter

_SCRATCH = 4 << 20  # bytes of a state too large for the arena that are looked at in one piece


class GroupSave:
    """A save between its first copy and its commit; ``seat`` and ``topic``: where this rank talks of it."""

    def __init__(self, save: Save, draft: Draft, writer: ShardWriter, meta: Meta, seat: Seat, topic: str) -> None:
        self._save = save
        self._writer = writer
        self._meta = meta
        self._council = seat.council
        self._topic = topic
        self._draft: Draft | None = draft
        self._content = GroupContent(None, None, BufferSource(memoryview(b"")))
        self._capture: Capture | None = None
        self._begun: tuple[Shard, SaveJob, Agreed] | None = None
        self._spoken = 0  # topics on which this rank has spoken
        self._may_be_committed = False

    # in the caller's thread, or that of a deferred save

    def stage(self) -> None:
        """Copy the state; one that the arena cannot hold is agreed on first, and copied as it is stored."""
        assert self._draft is not None
        self._content, self._draft = group_content(self._draft), None
        source = self._content.source
        try:
            self._capture = self._writer.capture(source.total) if source.total else None
        except MemoryLimitError:
            self._stream()
            return
        if self._capture is not None:
            self._capture.fill(source)
        self._content = self._content.bare()
        self._save.end_staging(source.total)

    def _stream(self) -> None:
        source = self._content.source
        scratch = ctypes.create_string_buffer(_SCRATCH)
        read = read_source(source, memoryview(scratch).cast("B"), ctypes.addressof(scratch))
        agreed, shard = self._settle(read, contextlib.nullcontext())
        job = self._writer.start(shard, agreed.content.source.total, agreed.content.runs)
        self._begun = shard, job, agreed
        self._content = self._content.bare()
        self._save.stage(job, agreed.content.source, quiet=False)

    # in a thread of its own

    def finish(self, committed: Callable[[], None]) -> CheckpointInfo:
        """Agree, store, and commit or hear of the commit; ``committed`` is called where this rank has committed."""
        shard, job, agreed = self._begun or self._begin_captured()
        tree, table = agreed.content.tree, agreed.content.table
        try:
            record = self._writer.finish(
                shard, job.future.result(), tree=tree() if tree else None, table=table() if table else None
            )
            self._save.make_durable(record)
            return self._commit(record, committed) if self._council.presides else self._hear_commit(record)
        except BaseException:
            job.cancel()
            job.future.exception()  # once it has ended nobody publishes any more
            if not self._may_be_committed:
                self._writer.discard(shard)
            raise

    def refuse(self, error: BaseException) -> None:
        """Give up: the others hear of it, and what was captured goes back."""
        if self._capture is not None:
            self._capture.release()
        speak_error(self._council, self._topic, self._spoken, error, clean=not self._may_be_committed)

    # parts of the above

    def _begin_captured(self) -> tuple[Shard, SaveJob, Agreed]:
        capture = self._capture
        if capture is None:
            agreed, shard = self._settle(lambda _start, _stop: (), contextlib.nullcontext())
            job = self._writer.start(shard, 0)
            self._save.stage(job, agreed.content.source, quiet=False)
            return shard, job, agreed
        agreed, shard = self._settle(capture.read, capture.pool.in_use())
        content = agreed.content
        capture.squeeze(agreed.moves, agreed.head, content.source.total)
        captured = self._writer.start_captured(shard, capture, content.runs)
        self._save.follow(captured)
        captured.hand_over()
        return shard, captured, agreed

    def _settle(self, read: Read, reading: AbstractContextManager[None]) -> tuple[Agreed, Shard]:
        """What this rank stores, and as which shard."""
        verdict = self._agree(read, reading)
        agreed = self._content.agreed(verdict, self._council.rank, self._council.world_size)
        meta, empty = self._meta, not agreed.content.source.total
        return agreed, self._writer.shard(meta.id, self._council.rank, meta.epoch, empty=empty, label=meta.label)

    def _agree(self, read: Read, reading: AbstractContextManager[None]) -> Verdict:
        """Say what this rank has, and hear who stores what; the save has its id then."""
        council, topic = self._council, self._on(0)
        with reading:
            hello = self._content.hello(self._meta.id.step, council.world_size, read).encode()
        if council.presides:
            words = self._words(topic, hello)
            verdict = decide(words, self._content.names, self._meta.id.timestamp)
            self._spoken = 1
            council.announce(topic, verdict.encode())
        else:
            self._spoken = 1
            council.say(topic, hello)
            verdict = read_verdict(self._hear(topic))
        self._meta = replace(self._meta, id=CheckpointId(self._meta.id.step, verdict.timestamp))
        self._save.name = self._meta.id.name
        return verdict

    def _words(self, topic: str, own: bytes) -> Iterator[tuple[int, bytes]]:
        """The words of all ranks, this one's first."""
        yield 0, own
        yield from self._council.gather(topic, range(1, self._council.world_size), self._save.check)

    def _hear(self, topic: str) -> bytes:
        word = self._council.hear(topic, self._save.check)
        if word.startswith(b'{"error"'):
            self._spoken = len(TOPICS)  # rank 0 has given up, and asks no more
        return word

    def _commit(self, record: ShardRecord, committed: Callable[[], None]) -> CheckpointInfo:
        council, topic, meta = self._council, self._on(1), self._meta
        records = [record]
        for rank, word in council.gather(topic, range(1, council.world_size), self._save.check_wanted):
            try:
                records.append(ShardRecord.from_dict(read_word(word)["record"]))
            except S3dlioError as error:
                raise type(error)(f"rank {rank} failed, so nothing is committed: {error}") from error
        control = self._writer.control
        self._may_be_committed = True
        info = CheckpointInfo.of(
            commit(
                control,
                records,
                step=meta.id.step,
                epoch=meta.epoch,
                framework=meta.framework,
                world_size=council.world_size,
                user_meta=meta.user_meta,
                label=meta.label,
                each=control.each,
            ).manifest
        )
        self._spoken = 2
        with contextlib.suppress(S3dlioError):  # it is committed, which the others find in the store
            council.announce(topic, json.dumps({"committed": asdict(info)}).encode())
        committed()
        return info

    def _hear_commit(self, record: ShardRecord) -> CheckpointInfo:
        council, topic = self._council, self._on(1)
        self._spoken = 2
        self._may_be_committed = True
        try:
            council.say(topic, json.dumps({"record": record.to_dict()}).encode())
            word = council.hear(topic, self._save.check_wanted)
        except S3dlioError:
            found = self._find_committed()  # rank 0 may have died just after the commit
            if found is None:
                raise
            return found
        self._may_be_committed = not json.loads(word).get("clean", False)
        return CheckpointInfo(**read_word(word)["committed"])

    def _find_committed(self) -> CheckpointInfo | None:
        try:
            return CheckpointInfo.of(catalog.read_manifest(self._writer.control, self._meta.id))
        except S3dlioError:
            return None

    def _on(self, number: int) -> str:
        return topic_of(self._topic, number)
