"""What the ledger of a save answers: a task to run, a slot to free, bytes to move, the end with its result.

Words only. ``ledger`` says them and ``job`` carries them out; the stored object that a save ends with is what the
layers above write down.
"""

from __future__ import annotations

from dataclasses import dataclass

from .contract import ObjectInfo
from .errors import S3dlioError
from .messages import Task


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """Where a raw chunk lies in the stored object: lengths and offsets in bytes, CRC-32C of the raw bytes."""

    raw_offset: int
    raw_length: int
    stored_offset: int
    stored_length: int
    codec: str
    crc: int


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A durable object: stored size and etag, raw size and CRC-32C, its chunks in order, the parts it came in."""

    info: ObjectInfo
    raw_size: int
    crc: int
    chunks: tuple[ChunkRecord, ...]
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """Have a worker do ``task``; its outcome comes back under ``token``."""

    token: tuple[str, int]
    task: Task


@dataclass(frozen=True, slots=True)
class Free:
    """Give a slot back to the arena."""

    slot: int


@dataclass(frozen=True, slots=True)
class Move:
    """Copy ``length`` bytes from the start of ``source`` to ``offset`` in ``target``, before any later action."""

    source: int
    target: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The save has ended: its result, or the first error. No slot and no task of it is left."""

    result: StoredObject | None
    error: S3dlioError | None


Action = Run | Free | Move | Finish
