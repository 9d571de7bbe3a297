"""A world for the pure ledger: slots that hold bytes, workers that answer in any order, a store that remembers.

``SaveWorld`` drives one ``SaveLedger`` as ``job.SaveJob`` would, with everything random but the seed, and checks after
every event what must always hold. Bytes are real (a few dozen to a slot), so a slot that is freed, moved or written too
early shows up as a wrong object.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from s3dlio.engine.actions import Action, Finish, Free, Move, Run
from s3dlio.engine.auto import Auto
from s3dlio.engine.checksum import crc32c
from s3dlio.engine.contract import Location, ObjectInfo, PartReceipt
from s3dlio.engine.errors import CancelledError, S3dlioError, StorageError
from s3dlio.engine.ledger import Phase, SaveLedger, SaveSpec
from s3dlio.engine.messages import Abort, Begin, Complete, Encode, Encoded, PutWhole, Span, Stored, StorePart, Task
from s3dlio.engine.plan import SavePlan

LOCATION = Location("memory", "fake")
KEY = "object"
_SCRAP = 0xDD

Token = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Chances:
    """Probability, at each step, that a task fails, that its worker dies first, and that the save is cancelled."""

    fail: float = 0.0
    lose: float = 0.0
    cancel: float = 0.0


@dataclass(slots=True)
class FakeStore:
    """One upload, the object it becomes, and whether it was dropped."""

    begun: bool = False
    parts: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    stored: bytes | None = None
    aborted: bool = False
    receipts: tuple[PartReceipt, ...] = ()

    def complete(self, receipts: tuple[PartReceipt, ...]) -> ObjectInfo:
        data = b""
        for position, receipt in enumerate(receipts, 1):
            offset, body = self.parts[receipt.number]
            assert (receipt.number, receipt.offset, receipt.size) == (position, offset, len(body))
            assert offset == len(data), "parts are not neighbours"
            data += body
        assert len(receipts) == len(self.parts), "a stored part is not in the object"
        self.stored, self.receipts = data, receipts
        return ObjectInfo(KEY, len(data), "etag", 1.0)


class Whim(Auto):
    """Encodes four chunks of five, whatever that brings."""

    def __init__(self, seed: int) -> None:
        super().__init__(workers=1)
        self._random = random.Random(seed)

    def choose(self) -> bool:
        return self._random.random() < 0.8


class SaveWorld:
    """One save of ``raw`` by ``plan``; ``copiers`` slots are filled at once and handed in in any order."""

    def __init__(
        self,
        plan: SavePlan,
        raw: bytes,
        *,
        slot_size: int,
        slots: int,
        seed: int,
        codec: str = "none",
        headroom: int = 0,
        copiers: int = 1,
        chances: Chances | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.raw = raw
        self.plan = plan
        self.store = FakeStore()
        self.finish: Finish | None = None
        self._chances = chances or Chances()
        self._slot_size = slot_size
        self._headroom = headroom
        self._copiers = copiers
        self._memory = bytearray([_SCRAP]) * (slots * slot_size)
        self._free = set(range(slots))
        reserve = tuple(self._lease() for _ in range(plan.reserve))
        spec = SaveSpec(LOCATION, KEY, plan, slot_size, "zstd-grouped" if codec == "auto" else codec)
        self.ledger = SaveLedger(spec, reserve, Whim(seed) if codec == "auto" else None)
        self._codec = spec.codec
        self._outstanding: dict[Token, tuple[Task, list[bytes]]] = {}
        self._staging: dict[int, int] = {}
        self._next = 0
        self._chunks = -(-len(raw) // plan.chunk_size)
        self._closed = False
        self.encoded: dict[int, bytes] = {}
        self.cancelled = False
        self.failed = False
        self._act(self.ledger.begin())

    # the loop

    def run(self) -> Finish:
        """Step until the save has ended; AssertionError if nothing can happen any more."""
        while self.finish is None or self._staging:
            events = self._events()
            assert events, f"deadlock in {self.ledger.phase}: {len(self._free)} slots free, nothing outstanding"
            self.random.choice(events)()
            self._check()
        assert self.finish is not None
        return self.finish

    def _events(self) -> list[Callable[[], None]]:
        events: list[Callable[[], None]] = []
        gone = self.finish is not None
        if self._next < self._chunks and len(self._staging) < self._copiers and self._free and not gone:
            events.append(self._take)
        if self._staging:
            events.append(self._hand_in)
        if self._next == self._chunks and not self._staging and not self._closed:
            events.append(self._close)
        if self._outstanding:
            events += [self._answer] * 2
        if self.random.random() < self._chances.cancel and not gone:
            return [self._cancel]
        return events

    def _lease(self) -> int:
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def _take(self) -> None:
        slot, index = self._lease(), self._next
        self._next += 1
        start = index * self.plan.chunk_size
        self._write(slot * self._slot_size, self.raw[start : start + self.plan.chunk_size])
        self._staging[index] = slot

    def _hand_in(self) -> None:
        index = self.random.choice(list(self._staging))
        slot = self._staging.pop(index)
        length = len(self._raw_chunk(index))
        self._act(self.ledger.chunk_ready(index, slot, length))

    def _close(self) -> None:
        self._closed = True
        self._act(self.ledger.close(self._chunks))

    def _cancel(self) -> None:
        self.cancelled = True
        for token in list(self._outstanding):  # as the supervisor takes back what it has not sent
            if self.ledger.phase is not Phase.ABORTING and self.random.random() < 0.5:
                del self._outstanding[token]
                self.ledger.dropped(token)
        self._act(self.ledger.cancel(CancelledError("enough")))

    def _answer(self) -> None:
        token = self.random.choice(list(self._outstanding))
        task, before = self._outstanding[token]
        assert self._read(task) == before, f"the bytes of {token} changed while it was outstanding"
        if self.random.random() < self._chances.lose:
            self._tear(task)  # the worker died in the middle; the task stays outstanding and is done again
            return
        if self.random.random() < self._chances.fail:
            del self._outstanding[token]
            self.failed = True
            self._act(self.ledger.failed(token, StorageError(f"{token} failed")))
            return
        value = self._work(token, task)
        del self._outstanding[token]
        self._act(self.ledger.done(token, value))

    # what a worker does

    def _work(self, token: Token, task: Task) -> object:
        match task:
            case Begin():
                self.store.begun = True
                return "upload"
            case Encode():
                return self._encode(token[1], task)
            case StorePart():
                body = b"".join(self._read(task))
                self.store.parts[task.number] = (task.offset, body)
                return Stored(PartReceipt(task.number, task.offset, len(body)), self._crcs(task), 0.0)
            case PutWhole():
                body = b"".join(self._read(task))
                self.store.stored = body
                return Stored(PartReceipt(1, 0, len(body), "etag"), self._crcs(task), 0.0)
            case Complete():
                assert task.upload == "upload"
                assert not self.store.aborted
                return self.store.complete(task.parts)
            case Abort():
                assert task.upload == "upload"
                self.store.aborted = True
                return None
        raise AssertionError(f"the ledger sent {task}")

    def _encode(self, index: int, task: Encode) -> Encoded:
        raw = self._bytes(task.source)
        assert raw == self._raw_chunk(index), f"chunk {index} was overwritten before it was encoded"
        if task.target is None:
            self.encoded[index] = raw
            return Encoded("none", len(raw), crc32c(raw), 0.0)
        assert task.target.length == self._slot_size
        chance = random.Random(index)  # encoding is deterministic
        shape = chance.random()
        if self._codec == "zstd-grouped" and shape < 0.3:
            self.encoded[index] = raw
            self._tear(task)  # it tried
            return Encoded("none", len(raw), crc32c(raw), 0.0)
        most = len(raw) + self._headroom if self._codec == "zstd" else len(raw)
        if shape > 0.6:
            most = max(1, most // 5)
        body = chance.randbytes(chance.randint(1, most))
        self.encoded[index] = body
        self._write(task.target.offset, body)
        return Encoded(self._codec, len(body), crc32c(raw), 0.0)

    def _tear(self, task: Task) -> None:
        if isinstance(task, Encode) and task.target is not None:
            self._write(task.target.offset, self.random.randbytes(task.target.length))

    def _crcs(self, task: StorePart | PutWhole) -> tuple[int, ...]:
        return tuple(crc32c(body) for body in self._read(task)) if task.checksum else ()

    # memory

    def _raw_chunk(self, index: int) -> bytes:
        return self.raw[index * self.plan.chunk_size : (index + 1) * self.plan.chunk_size]

    def _bytes(self, span: Span) -> bytes:
        return bytes(self._memory[span.offset : span.offset + span.length])

    def _write(self, offset: int, data: bytes) -> None:
        self._memory[offset : offset + len(data)] = data

    def _read(self, task: Task) -> list[bytes]:
        return [self._bytes(span) for span in _read_spans(task)]

    # what the ledger wants

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            # What was being copied when the save died is given back later.
            assert self.finish is None or isinstance(action, Free), f"{action} after the end"
            match action:
                case Run():
                    assert action.token not in self._outstanding
                    self._outstanding[action.token] = (action.task, self._read(action.task))
                case Free():
                    assert action.slot not in self._free, f"slot {action.slot} is freed twice"
                    self._free.add(action.slot)
                    self._write(action.slot * self._slot_size, bytes([_SCRAP]) * self._slot_size)
                case Move():
                    self._move(action)
                case Finish():
                    self.finish = action

    def _move(self, action: Move) -> None:
        assert action.source not in self._free
        assert action.target not in self._free
        assert 0 < action.length <= self._slot_size - action.offset
        body = self._bytes(Span(0, action.source * self._slot_size, action.length))
        self._write(action.target * self._slot_size + action.offset, body)

    def _check(self) -> None:
        self.ledger.validate()
        written: list[int] = []
        used: set[int] = set()
        for token, (task, _) in self._outstanding.items():
            for span in _read_spans(task):
                used.add(span.offset // self._slot_size)
                assert span.length > 0
                assert span.offset % self._slot_size + span.length <= self._slot_size
            if isinstance(task, Encode) and task.target is not None:
                written.append(task.target.offset // self._slot_size)
            named = used | set(written)
            assert not named & self._free, f"{token} names a slot that was freed"
        assert len(set(written)) == len(written), "two tasks write to one slot"
        assert not used & set(written), "a slot is read while it is written"
        if self.finish is not None:
            assert not self._outstanding

    def free_slots(self) -> int:
        return len(self._free)

    def check_end(self, slots: int) -> None:
        """What must hold once it has finished."""
        assert self.finish is not None
        assert len(self._free) == slots, "slots were not given back"
        if self.finish.result is None:
            assert isinstance(self.finish.error, S3dlioError)
            assert self.cancelled or self.failed
            return
        assert self.finish.error is None
        body = self.raw if self._codec == "none" else b"".join(self.encoded[i] for i in range(self._chunks))
        assert self.store.stored == body
        result = self.finish.result
        assert (result.raw_size, result.crc) == (len(self.raw), crc32c(self.raw))
        assert result.info.size == len(body)
        raw = stored = 0
        for index, chunk in enumerate(result.chunks):
            piece = self._raw_chunk(index)
            assert (chunk.raw_offset, chunk.raw_length, chunk.crc) == (raw, len(piece), crc32c(piece))
            assert (chunk.stored_offset, chunk.stored_length) == (
                stored,
                len(piece if self._codec == "none" else self.encoded[index]),
            )
            raw, stored = raw + chunk.raw_length, stored + chunk.stored_length
        assert (raw, stored) == (len(self.raw), len(body))


def _read_spans(task: Task) -> tuple[Span, ...]:
    match task:
        case StorePart() | PutWhole():
            return task.spans
        case Encode():
            return (task.source,)
    return ()
