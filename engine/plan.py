"""How raw bytes become chunks, and stored bytes become parts: the rules of size, for every store.

Pure: no I/O, no state but the ``Gatherer``'s own. ``plan_save`` decides once per shard; the ``Gatherer`` then cuts the
stored chunks, as they come in order, into parts that the store's ``Limits`` allow. The ledger calls both.
"""

from __future__ import annotations

from dataclasses import dataclass

from .contract import Limits
from .errors import ConfigError, MemoryLimitError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SavePlan:
    """How one shard is saved. Sizes in bytes.

    ``chunk_size``: raw bytes of every chunk but the last. ``whole``: one ``put`` instead of an upload. ``part_target``:
    a part is sent once it holds this much. ``reserve``: slots set aside for encoded bytes before any raw slot is lent.
    ``total``: raw size, ``None`` for a stream.
    """

    total: int | None
    chunk_size: int
    whole: bool
    part_target: int
    reserve: int
    limits: Limits

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Raw bytes [start, stop) of a chunk of a shard of known size."""
        start = index * self.chunk_size
        return start, min(start + self.chunk_size, self.total if self.total is not None else start + self.chunk_size)

    @property
    def chunks(self) -> int:
        """Number of chunks of a shard of known size; an empty shard has none."""
        return -(-(self.total or 0) // self.chunk_size)

    def target(self, number: int) -> int:
        """Least size of part ``number``. A stream's parts double five times on the way to the store's most parts."""
        if self.total is not None:
            return self.part_target
        return min(self.part_target << (number - 1) * 5 // self.limits.parts_max, self.limits.part_max)


def plan_save(
    total: int | None,
    *,
    slot_size: int,
    slots: int,
    limits: Limits,
    encoded: bool,
    headroom: int,
    lanes: int,
    whole_below: int,
) -> SavePlan:
    """Plan a shard of ``total`` raw bytes through an arena of ``slots`` slots of ``slot_size`` bytes.

    ``encoded``: chunks pass a codec, whose worst case needs ``headroom`` bytes more than the raw chunk; ``lanes``:
    tasks that run at once over all workers; ``whole_below``: a shard up to this size may go in one request. Raises
    ``MemoryLimitError`` where the arena is too small for the store's parts, ``ConfigError`` where the store cannot
    hold the shard at all.
    """
    chunk_size = slot_size - headroom if encoded else slot_size
    if chunk_size <= 0 or chunk_size % limits.alignment:
        raise ConfigError(f"chunk_size {slot_size} must be a multiple of {limits.alignment} above {headroom} bytes")
    if slot_size > limits.part_max:
        raise ConfigError(f"chunk_size {slot_size} is above the largest part of the store, {limits.part_max} bytes")
    if total is not None and total > limits.parts_max * limits.part_max:
        raise ConfigError(f"a shard of {total} bytes is more than the store takes in one object")
    # One request holds all its slots at once, raw or encoded: it may take at most half of the arena.
    whole = total is not None and total <= min(whole_below, limits.put_max, (slots // 2) * chunk_size)
    if whole and not encoded:
        return SavePlan(total, chunk_size, True, slot_size, 0, limits)
    part_target = max(limits.part_min, _part_size(total, limits), limits.alignment if encoded else slot_size)
    held = -(-part_target // slot_size)
    if not encoded:
        _require(held + 1, slots, slot_size)
        return SavePlan(total, chunk_size, whole, part_target, 0, limits)
    chunks = -(-total // chunk_size) if total is not None else slots
    # The gatherer holds up to `held` + 1 slots while it waits for more; beyond that, one for each lane to encode into.
    fewest = held + 2
    reserve = max(min(fewest, chunks + 1), min(fewest + lanes, slots // 2, chunks + 1))
    if whole:
        reserve = chunks + 1
    _require(reserve + held + 1, slots, slot_size)
    return SavePlan(total, chunk_size, whole, part_target, reserve, limits)


def _part_size(total: int | None, limits: Limits) -> int:
    """Least part size that keeps a shard within the most parts, aligned."""
    if total is None:
        return 0
    least = -(-total // limits.parts_max)
    return -(-least // limits.alignment) * limits.alignment


def _require(needed: int, slots: int, slot_size: int) -> None:
    if needed > slots:
        raise MemoryLimitError(
            f"this save needs {needed} chunks of {slot_size} bytes in memory, the memory number allows {slots}: "
            "raise memory= or lower chunk_size="
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes at ``start`` of a slot."""

    slot: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Part:
    """Part ``number`` (from 1) at ``offset`` in the object: its pieces in order."""

    number: int
    offset: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.length for piece in self.pieces)


class Gatherer:
    """Cuts stored chunks, given in order, into parts: each but the last at least its target, and aligned."""

    def __init__(self, plan: SavePlan) -> None:
        self._plan = plan
        self._pending: list[Piece] = []
        self._size = 0
        self._number = 1
        self._offset = 0

    @property
    def pending(self) -> tuple[Piece, ...]:
        """What waits for more bytes."""
        return tuple(self._pending)

    def room(self, length: int, slot_size: int) -> Piece | None:
        """Where ``length`` more bytes may be moved behind the last pending piece, while the part is too small to send.

        Small encoded chunks are moved together so that they do not hold a slot each.
        """
        if not self._pending or self._size + length >= self._plan.target(self._number):
            return None
        last = self._pending[-1]
        stop = last.start + last.length
        return Piece(last.slot, stop, length) if stop + length <= slot_size else None

    def add(self, piece: Piece) -> list[Part]:
        """Take the next stored bytes; the parts that are now complete."""
        if piece.length:
            last = self._pending[-1] if self._pending else None
            if last is not None and last.slot == piece.slot and last.start + last.length == piece.start:
                self._pending[-1] = Piece(last.slot, last.start, last.length + piece.length)
            else:
                self._pending.append(piece)
            self._size += piece.length
        parts = []
        while not self._plan.whole and self._size >= self._plan.target(self._number):
            parts.append(self._cut(self._cut_size()))
        return parts

    def finish(self) -> list[Part]:
        """No more bytes: the last part, of whatever is left; an empty object is one empty part."""
        if not self._pending and self._number > 1:
            return []
        return [self._cut(self._size)]

    def _cut_size(self) -> int:
        size = min(self._size, self._plan.limits.part_max)
        return size - size % self._plan.limits.alignment

    def _cut(self, size: int) -> Part:
        taken: list[Piece] = []
        left = size
        while left:
            piece = self._pending.pop(0)
            if piece.length > left:
                self._pending.insert(0, Piece(piece.slot, piece.start + left, piece.length - left))
                piece = Piece(piece.slot, piece.start, left)
            taken.append(piece)
            left -= piece.length
        part = Part(self._number, self._offset, tuple(taken))
        self._number += 1
        self._offset += size
        self._size -= size
        return part
