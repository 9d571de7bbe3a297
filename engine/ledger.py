"""The state of one save: a pure table. Events come in, ``actions`` go out; no I/O, no clock, no threads.

Two rules carry it. A slot is freed only when no task that names it is outstanding and no later part needs it. The save
is stored only when every chunk's bytes are in a stored part and every CRC-32C is known. ``job.SaveJob`` feeds it in
the supervisor thread and carries out what it answers; ``validate()`` runs after every event in the tests.

    open ──close()──▶ closing ──all parts stored──▶ publishing ──▶ stored
      └──────────failed/cancel────────┴────────────────────┴──▶ draining ──▶ aborting ──▶ dead
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from .actions import Action, ChunkRecord, Finish, Free, Move, Run, StoredObject
from .auto import Auto
from .checksum import combine_crc32c
from .contract import Location, ObjectInfo, PartReceipt
from .errors import CorruptError, S3dlioError, StorageError
from .messages import ARENA, Abort, Begin, Complete, Encode, Encoded, PutWhole, Runs, Span, Stored, StorePart, Task
from .plan import PIECES, Gatherer, Part, Piece, SavePlan

RAW = "none"


class Phase(Enum):
    """Where a save stands."""

    OPEN = "open"
    CLOSING = "closing"
    PUBLISHING = "publishing"
    STORED = "stored"
    DRAINING = "draining"
    ABORTING = "aborting"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class SaveSpec:
    """What to save where: one object, its plan, the codec every chunk passes, and how many parts leave at once."""

    location: Location
    key: str
    plan: SavePlan
    slot_size: int
    codec: str = RAW
    level: int = 0
    width: int = 1


@dataclass(slots=True)
class _Chunk:
    """A row of the table: where a chunk's raw and stored bytes are, and what is known of it."""

    raw_slot: int
    length: int
    runs: Runs = ()
    target: int | None = None
    codec: str = RAW
    stored: int | None = None
    crc: int | None = None


class SaveLedger:
    """The table of one save. Every public method is an event and returns the actions it causes.

    With ``auto`` a chunk passes the codec only if that says so. It is asked as late as possible: no more chunks are
    decided than keep the workers and the ``width`` requests of the save busy.
    """

    def __init__(self, spec: SaveSpec, reserve: tuple[int, ...] = (), auto: Auto | None = None) -> None:
        self.spec = spec
        self._auto = auto
        self.phase = Phase.OPEN
        self.bytes_encoded = 0
        self.bytes_stored = 0
        self._encoded = spec.codec != RAW
        self._gatherer = Gatherer(spec.plan)
        self._chunks: dict[int, _Chunk] = {}
        self._count: int | None = None
        self._encode_next = 0
        self._gather_next = 0
        self._spare = list(reserve)
        self._reserve = frozenset(reserve)
        self._uses: dict[int, int] = {}
        self._parts: dict[int, Part] = {}
        self._unsent: deque[Part] = deque()
        self._receipts: dict[int, PartReceipt] = {}
        self._part_chunks: dict[int, tuple[int, ...]] = {}
        self._upload: str | None = None
        self._outstanding: set[tuple[str, int]] = set()
        self._error: S3dlioError | None = None

    @property
    def upload(self) -> str | None:
        """Name of the open upload."""
        return self._upload

    @property
    def alive(self) -> bool:
        """Whether chunks are still taken."""
        return self.phase is Phase.OPEN

    # events

    def begin(self) -> list[Action]:
        """Open the upload, unless the shard goes in one request."""
        if self.spec.plan.whole:
            return []
        size = None if self._encoded else self.spec.plan.total
        return [self._run(("begin", 0), Begin(self.spec.location, self.spec.key, size))]

    def chunk_ready(self, index: int, slot: int, length: int, runs: Runs = ()) -> list[Action]:
        """Chunk ``index`` is staged in ``slot``."""
        if not self.alive:
            return [Free(slot)]
        if index in self._chunks:
            raise AssertionError(f"chunk {index} was staged twice")
        self._chunks[index] = _Chunk(slot, length, runs=runs)
        self._uses[slot] = 1
        if not self._encoded:
            self._chunks[index].stored = length
            return self._gather()
        return self._encode()

    def close(self, count: int) -> list[Action]:
        """All ``count`` chunks were handed in."""
        if not self.alive:
            return []
        self._count = count
        self.phase = Phase.CLOSING
        return self._gather()

    def done(self, token: tuple[str, int], value: object) -> list[Action]:
        """A task came back with its result."""
        self._outstanding.remove(token)
        kind, number = token
        if kind == "begin":
            self._upload = str(value)
        if self.phase in (Phase.DRAINING, Phase.ABORTING):
            return self._drain()
        match value:
            case Encoded():
                return self._on_encoded(number, value)
            case Stored():
                return self._on_stored(number, value)
            case ObjectInfo():
                return self._on_published(value)
        return self._send()

    def failed(self, token: tuple[str, int], error: S3dlioError) -> list[Action]:
        """A task failed for good; the first error is the save's."""
        self._outstanding.remove(token)
        return self.cancel(error)

    def dropped(self, token: tuple[str, int]) -> None:
        """A task was withdrawn before it was sent."""
        self._outstanding.remove(token)

    def cancel(self, error: S3dlioError) -> list[Action]:
        """Give up: let outstanding tasks return, abort the upload, free everything, end with ``error``."""
        if self.phase in (Phase.STORED, Phase.DEAD):
            return []
        if self._error is None:
            self._error = error
        if self.phase is not Phase.ABORTING:
            self.phase = Phase.DRAINING
        return self._drain()

    # encoding

    def _encode(self) -> list[Action]:
        """Send chunks to be encoded, in order, while there is a spare slot for what comes out."""
        actions: list[Action] = []
        while self._encoded and self._error is None and (chunk := self._chunks.get(self._encode_next)) is not None:
            if not self._spare or not self._is_due():
                break
            if self._auto is None or self._auto.choose():
                chunk.codec, chunk.target = self.spec.codec, self._spare.pop()
            index, self._encode_next = self._encode_next, self._encode_next + 1
            actions.append(self._run(("encode", index), self._encode_task(chunk)))
        return actions

    def _is_due(self) -> bool:
        """Whether the next chunk has to be decided now; without ``auto`` there is nothing to decide."""
        if self._auto is None:
            return True
        unstored = len(self._parts) - len(self._receipts)
        return self._active("encode") < self._auto.ahead and unstored < self.spec.width + self._auto.ahead

    def _active(self, kind: str) -> int:
        """Tasks of a kind (``encode``, ``store``) that are outstanding."""
        return sum(token[0] == kind for token in self._outstanding)

    def _encode_task(self, chunk: _Chunk) -> Encode:
        target = None if chunk.target is None else self._span(Piece(chunk.target, 0, self.spec.slot_size))
        source = self._span(Piece(chunk.raw_slot, 0, chunk.length))
        return Encode(chunk.codec, self.spec.level, source, target, chunk.runs)

    def _on_encoded(self, index: int, result: Encoded) -> list[Action]:
        chunk = self._chunks[index]
        if self._auto is not None and chunk.target is not None:
            self._auto.encoded(chunk.length, result.length, result.seconds, self._active("encode") + 1)
        chunk.codec, chunk.stored, chunk.crc = result.codec, result.length, result.crc
        self.bytes_encoded += chunk.length
        actions: list[Action] = []
        if chunk.target is not None:
            if result.codec == RAW:  # it did not shrink: the raw slot itself is stored
                self._spare.append(chunk.target)
                chunk.target = None
            else:
                self._uses[chunk.target] = 1
                actions += self._unuse(chunk.raw_slot)
        actions += self._gather()
        return actions + self._encode()

    # gathering

    def _gather(self) -> list[Action]:
        """Give chunks whose stored bytes are known, in order, to the gatherer."""
        actions: list[Action] = []
        while (chunk := self._chunks.get(self._gather_next)) is not None and chunk.stored is not None:
            slot = chunk.raw_slot if chunk.target is None else chunk.target
            piece = Piece(slot, 0, chunk.stored)
            room = self._room(chunk)
            if room is not None:
                actions.append(Move(slot, room.slot, room.start, room.length))
                piece = room
            before = self._gatherer.pending
            parts = self._gatherer.add(piece)
            self._note_uses(before, parts)
            self._unsent.extend(parts)
            actions += self._unuse(slot)
            self._gather_next += 1
        if self.phase is Phase.CLOSING and self._gather_next == self._count:
            self._finish_gathering()
        if len(self._parts) > self.spec.plan.limits.parts_max:
            return actions + self.cancel(self._too_long())
        return actions + self._send()

    def _too_long(self) -> S3dlioError:
        most, stored = self.spec.plan.limits.parts_max, sum(part.size for part in self._parts.values())
        return StorageError(
            f"{self.spec.location.uri}: {self.spec.key}: {stored} bytes of a stream are more than {most} parts, the "
            "most that one object has: pass its size, raise chunk_size= or memory=, or write several objects"
        )

    def _finish_gathering(self) -> None:
        before = self._gatherer.pending
        parts = self._gatherer.finish()
        self._note_uses(before, parts)
        self._unsent.extend(parts)
        self.phase = Phase.PUBLISHING

    def _room(self, chunk: _Chunk) -> Piece | None:
        """Room behind the last pending bytes for a small encoded chunk; ``plan_save`` counts on it."""
        if chunk.target is None or chunk.stored is None or chunk.stored > self.spec.slot_size // PIECES:
            return None
        room = self._gatherer.room(chunk.stored, self.spec.slot_size)
        return room if room is not None and room.slot in self._reserve else None

    def _note_uses(self, before: tuple[Piece, ...], parts: list[Part]) -> None:
        """Each pending piece and each piece of an unstored part is one use of its slot."""
        for piece in before:
            self._uses[piece.slot] -= 1
        for part in parts:
            self._parts[part.number] = part
            for piece in part.pieces:
                self._uses[piece.slot] += 1
        for piece in self._gatherer.pending:
            self._uses[piece.slot] += 1

    # storing

    def _send(self) -> list[Action]:
        if self.spec.plan.whole:
            return self._send_whole()
        if self._upload is None:
            return []
        actions: list[Action] = []
        while self._unsent:
            part = self._unsent.popleft()
            actions.append(self._run(("store", part.number), self._store_task(part)))
        if self.phase is Phase.PUBLISHING and len(self._receipts) == len(self._parts):
            receipts = tuple(self._receipts[number] for number in sorted(self._receipts))
            task = Complete(self.spec.location, self.spec.key, self._upload, receipts)
            actions.append(self._run(("publish", 0), task))
        return actions

    def _send_whole(self) -> list[Action]:
        actions: list[Action] = []
        while self._unsent:
            part = self._unsent.popleft()
            spans = tuple(map(self._span, part.pieces))
            task = PutWhole(self.spec.location, self.spec.key, spans, checksum=not self._encoded)
            actions.append(self._run(("store", part.number), task))
        return actions

    def _store_task(self, part: Part) -> StorePart:
        spans = tuple(map(self._span, part.pieces))
        upload = self._upload or ""
        return StorePart(
            self.spec.location, self.spec.key, upload, part.number, part.offset, spans, checksum=not self._encoded
        )

    def _on_stored(self, number: int, result: Stored) -> list[Action]:
        part = self._parts[number]
        if self._auto is not None:
            active = min(self._active("store") + 1, self.spec.width)
            self._auto.stored(result.receipt.size, result.seconds, active)
        self._receipts[number] = result.receipt
        self.bytes_stored += result.receipt.size
        if not self._encoded:
            self._note_checksums(part, result.crcs)
        actions = [action for piece in part.pieces for action in self._unuse(piece.slot)]
        if self.spec.plan.whole:
            receipt = result.receipt
            info = ObjectInfo(self.spec.key, receipt.size, receipt.tag, 0.0, receipt.verified)
            return actions + self._on_published(info)
        return actions + self._encode() + self._send()

    def _note_checksums(self, part: Part, crcs: tuple[int, ...]) -> None:
        """Without a codec a part is whole chunks, in order: chunk i begins at i × chunk_size."""
        first = part.offset // self.spec.plan.chunk_size
        if len(crcs) != len(part.pieces):
            raise AssertionError(
                f"part {part.number} of {len(part.pieces)} chunks came back with {len(crcs)} checksums"
            )
        for index, crc in enumerate(crcs, first):
            self._chunks[index].crc = crc

    def _on_published(self, info: ObjectInfo) -> list[Action]:
        result = self._result(info)
        if info.size != result.info.size:
            return self.cancel(
                CorruptError(
                    f"{self.spec.location.uri}: {self.spec.key}: the store holds {info.size} bytes of "
                    f"{result.info.size} that were sent; save again"
                )
            )
        self.phase = Phase.STORED
        spare = [Free(slot) for slot in self._spare]
        self._spare.clear()
        return [*spare, Finish(result, None)]

    def _result(self, info: ObjectInfo) -> StoredObject:
        records, raw, stored, total_crc = [], 0, 0, 0
        for index in range(self._count or 0):
            chunk = self._chunks[index]
            if chunk.crc is None or chunk.stored is None:
                raise AssertionError(f"chunk {index} of {self.spec.key} was published without a checksum")
            records.append(ChunkRecord(raw, chunk.length, stored, chunk.stored, chunk.codec, chunk.crc))
            total_crc = combine_crc32c(total_crc, chunk.crc, chunk.length)
            raw += chunk.length
            stored += chunk.stored
        return StoredObject(replace(info, size=stored), raw, total_crc, tuple(records), len(self._receipts))

    # ending badly

    def _drain(self) -> list[Action]:
        self._unsent.clear()
        if self._outstanding:
            return []
        if self.phase is Phase.DRAINING:
            self.phase = Phase.ABORTING
            if self._upload is not None:
                return [self._run(("abort", 0), Abort(self.spec.location, self.spec.key, self._upload))]
        self.phase = Phase.DEAD
        slots = sorted(self._uses.keys() | self._reserve)  # a target that was being encoded into is in neither list
        self._uses.clear()
        self._spare.clear()
        return [*map(Free, slots), Finish(None, self._error)]

    # slots

    def _span(self, piece: Piece) -> Span:
        return Span(ARENA, piece.slot * self.spec.slot_size + piece.start, piece.length)

    def _unuse(self, slot: int) -> list[Action]:
        """One use less; a slot without uses goes back to the reserve it came from, or to the arena."""
        self._uses[slot] -= 1
        if self._uses[slot]:
            return []
        del self._uses[slot]
        if slot in self._reserve:
            self._spare.append(slot)
            return []
        return [Free(slot)]

    def _run(self, token: tuple[str, int], task: Task) -> Run:
        if token in self._outstanding:
            raise AssertionError(f"{token} was sent twice")
        self._outstanding.add(token)
        return Run(token, task)

    def validate(self) -> None:
        """Raise ``AssertionError`` if the table contradicts itself (called by tests after every event)."""
        if any(uses < 1 for uses in self._uses.values()):
            raise AssertionError("a slot is held without a use")
        if set(self._spare) & set(self._uses):
            raise AssertionError("a spare slot is in use")
        if len(set(self._spare)) != len(self._spare):
            raise AssertionError("a slot is spare twice")
        if self.phase in (Phase.STORED, Phase.DEAD) and (self._uses or self._spare or self._outstanding):
            raise AssertionError(f"{self.phase} with slots or tasks left")
