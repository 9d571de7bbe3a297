"""How raw bytes become chunks, and stored bytes become parts: the rules of size, for every store.

Pure: no I/O, no state but the ``Gatherer``'s own. ``plan_save`` decides once per shard; the ``Gatherer`` then cuts the
stored chunks, as they come in order, into parts that the store's ``Limits`` allow. ``job`` plans, ``ledger`` gathers.
"""

from __future__ import annotations

from dataclasses import dataclass

from .contract import Limits
from .errors import ConfigError, MemoryLimitError

MIB = 1 << 20
_DOUBLINGS = 5  # the last part's target is the first's << 4
_FAR_PART = 64 * MIB
"""Parts of a store behind a network grow up to this: a part's reply takes a round trip in which its connection sends
nothing, 7 % of the time for 16 MiB at 90 MB/s and 15 ms, an SDK takes 2 ms of CPU time to make a request, and stores
charge for requests."""
_ROUNDS = 2
"""Parts for each request in flight that are left at least, so that all end at about the same time. Where the store is
near, 1 GiB by 16 requests took 0.55 s and 0.84 CPU seconds with 2 and 0.62 s and 0.95 with 4, from a far one 1.26 s and
1.38 s (medians of 5 and 2, sink)."""
_ENCODED_ROUNDS = 3
"""The same where encoded parts shrink towards the end. 1 GiB that a codec makes 19.3 % smaller, by 4 requests on a link
of 100 MB/s: 9.46 s with parts all alike, 9.23 s with parts that shrink, 9.07 s if they also grow before, 8.92 s with 3
of these, 9.02 s with 4 (medians of 2, sink; 10.97 s without the codec)."""
_ENCODED_FEWEST = 4  # encoded parts for which there is room, however few are in flight
BLOCK = 4 * MIB
"""Of what a store sends, taken at once: it is checked and put in its place while more arrives. A GiB from a near sink
took 0.92 s and 1.43 CPU seconds so, 1.03 s and 1.50 by 16 MiB and 0.99 s and 1.51 by 1 MiB; half a GiB from a far one
1.79, 1.92 and 1.75 s (medians of 6 and 2)."""
PIECES = 4
"""Encoded chunks up to a slot / 4 are moved together (1 ms for 16 MiB at memmove's 13 GB/s); larger keep theirs."""


def block_size(raw: int, *, far: bool) -> int:
    """Bytes of a chunk of ``raw`` that a worker reads at once where it need not decode them.

    A disk is asked for all of it: its requests in flight are as few as the lanes. ``far``: a store behind a network.
    """
    return min(raw, BLOCK) if far else raw


@dataclass(frozen=True, slots=True)
class SavePlan:
    """How one shard is saved. Sizes in bytes.

    ``total``: raw size, ``None`` for a stream. ``chunk_size``: raw bytes of every chunk but the last. ``whole``: one
    ``put`` instead of an upload. ``part_target``: a part is sent once it holds this much; a stream's grow up to
    ``part_most``. ``shared``: requests in flight that are to begin and end together although nobody knows what the
    codec leaves: each has smaller parts at first, and at the end, none below ``part_least``; 0 where all are alike.
    ``reserve``: slots set aside for encoded bytes before any raw slot is lent. ``needed``: slots, those of the reserve
    included, with which the save ends whatever the order of results; it goes faster with more.
    """

    total: int | None
    chunk_size: int
    whole: bool
    part_least: int
    part_target: int
    part_most: int
    reserve: int
    needed: int
    limits: Limits
    shared: int = 0

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Raw bytes [start, stop) of a chunk of a shard of known size."""
        start = index * self.chunk_size
        return start, min(start + self.chunk_size, self.total if self.total is not None else start + self.chunk_size)

    @property
    def chunks(self) -> int:
        """Number of chunks of a shard of known size; an empty shard has none."""
        return -(-(self.total or 0) // self.chunk_size)

    def target(self, number: int, left: int) -> int:
        """Least size of part ``number``; ``left``: bytes of the shard in no part, counted raw where not yet stored.

        A stream's, whose end is not known, double four times on the way to the store's most parts.
        """
        if self.total is not None:
            if not self.shared:
                return self.part_target
            begun = self.chunk_size // PIECES << min((number - 1) // self.shared, 32)
            wanted = min(begun, left // (self.shared * _ENCODED_ROUNDS), self.part_target)
            return max(self.part_least, wanted - wanted % self.limits.alignment)
        return min(self.part_target << (number - 1) * _DOUBLINGS // self.limits.parts_max, self.part_most)


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
    part_size: int | None = None,
    far: bool = False,
) -> SavePlan:
    """Plan a shard of ``total`` raw bytes through an arena of ``slots`` slots of ``slot_size`` bytes.

    ``encoded``: chunks pass a codec, whose worst case needs ``headroom`` bytes more than the raw chunk; ``lanes``:
    tasks at once over all workers; ``whole_below``: a shard up to this size may go in one request;
    ``part_size``: of all parts of a stream, rounded up to slots, which then do not grow; ``far``: a round trip to the
    store takes long, so that large shards go in larger parts where memory allows. Raises ``MemoryLimitError`` where the
    arena is too small for the store's parts, ``ConfigError`` where the store cannot hold the shard at all.
    """
    headroom = headroom if encoded else 0
    chunk_size = slot_size - headroom
    if chunk_size <= 0 or chunk_size % limits.alignment or slot_size % limits.alignment:
        raise ConfigError(f"chunk_size {slot_size} must be a multiple of {limits.alignment} above {headroom} bytes")
    if slot_size > limits.part_max:
        raise ConfigError(f"chunk_size {slot_size} is above the largest part of the store, {limits.part_max} bytes")
    if total is None:
        return _plan_stream(slot_size, slots, limits, headroom, lanes, part_size, encoded=encoded)
    chunks = -(-total // chunk_size)
    most = total + chunks * headroom  # where nothing shrinks
    # One request holds all its slots at once, raw or encoded, and until then some of both: at most half of the arena.
    if total <= whole_below and most <= limits.put_max and chunks <= slots // 2:
        reserve = chunks if encoded else 0
        return SavePlan(total, chunk_size, True, slot_size, slot_size, slot_size, reserve, reserve + chunks, limits)
    part = least = _part_target(most, limits, limits.alignment if encoded else slot_size)
    if far:
        part = max(part, _far_part(total, slot_size, slots, lanes, limits, encoded=encoded))
    held = min(_raw_slots(part, slot_size, headroom, encoded=encoded), chunks)
    reserve = 0
    if encoded:
        # Beyond the fewest one for each lane to encode into, as far as that leaves room for raw chunks.
        fewest = _encoded_slots(part, slot_size)
        reserve = min(max(fewest, min(fewest + lanes, slots // 2)), chunks)
    _require(reserve + held, slots, slot_size)
    return SavePlan(
        total, chunk_size, False, least, part, part, reserve, reserve + held, limits, lanes if encoded and far else 0
    )


def _plan_stream(
    slot_size: int, slots: int, limits: Limits, headroom: int, lanes: int, part_size: int | None, *, encoded: bool
) -> SavePlan:
    """A stream holds its slots as long as its writer likes, so it contents itself with a quarter of the arena."""
    unit = limits.alignment if encoded else slot_size
    part = _part_target(0, limits, unit)
    # The inverse of `_encoded_slots` and `_raw_slots`: the largest part that the quarter can hold.
    affordable = (slots // 4 - 3) // (PIECES + 1) if encoded else slots // 4
    # Beyond its doublings a part never grows, so to hold more would only keep other streams from opening.
    most = min(max(part, affordable * slot_size), part << (_DOUBLINGS - 1), limits.part_max)
    most -= most % unit
    if part_size is not None:
        part = most = max(part, min(-(-part_size // unit) * unit, limits.part_max - limits.part_max % unit))
    held, reserve = _raw_slots(most, slot_size, headroom, encoded=encoded), 0
    if encoded:
        fewest = _encoded_slots(most, slot_size)
        reserve = max(fewest, min(fewest + lanes, slots // 8))
    _require(reserve + held, slots // 2, slot_size)
    return SavePlan(None, slot_size - headroom, False, part, part, most, reserve, reserve + held, limits)


def _part_target(most: int, limits: Limits, unit: int) -> int:
    """Least part, a multiple of ``unit``, that keeps ``most`` stored bytes within the most parts.

    ``unit`` is the store's alignment; without a codec it is a slot, since the checksums of a part's spans are then
    those of the chunks.
    """
    least = max(1, limits.part_min, -(-most // limits.parts_max))
    target = -(-least // unit) * unit
    if target <= limits.part_max:
        return target
    if most > limits.parts_max * limits.part_max:
        raise ConfigError(f"a shard of {most} bytes is more than the store takes in one object")
    raise ConfigError(f"parts of {target} bytes are above the store's largest, {limits.part_max}: lower chunk_size=")


def _far_part(total: int, slot_size: int, slots: int, lanes: int, limits: Limits, *, encoded: bool) -> int:
    """Part size, whole slots, for a store behind a network; 0 where a shard or an arena is too small for larger ones.

    The parts in flight take no more than half of the arena, encoded ones, whose raw chunks lie beside them, a quarter;
    where few are in flight an encoded one must still fit with all that it needs beside it.
    """
    share = slots // (4 * max(lanes, _ENCODED_FEWEST)) if encoded else slots // (2 * lanes)
    most = min(_FAR_PART, limits.part_max) // slot_size
    return slot_size * min(most, share, total // (slot_size * lanes * _ROUNDS))


def _raw_slots(part: int, slot_size: int, headroom: int, *, encoded: bool) -> int:
    """Slots that hold raw bytes until they are a part; encoded, one more holds what the last cut left over."""
    return -(-part // (slot_size - headroom)) + 1 if encoded else part // slot_size


def _encoded_slots(part: int, slot_size: int) -> int:
    """Slots that hold encoded bytes until they are a part.

    Each but the first either begins with a piece too large to be moved or follows one that is nearly full. One more
    holds what the last cut left over, and one is encoded into.
    """
    return -(-part * PIECES // slot_size) + 2


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
    """Cuts stored chunks, given in order, each once, into parts: each but the last at least its target, and aligned."""

    def __init__(self, plan: SavePlan) -> None:
        self._plan = plan
        self._raw_left = plan.total or 0
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
        if not self._pending or self._size + length >= self._target():
            return None
        last = self._pending[-1]
        stop = last.start + last.length
        return Piece(last.slot, stop, length) if stop + length <= slot_size else None

    def add(self, piece: Piece) -> list[Part]:
        """Take the next chunk's stored bytes; the parts that are now complete."""
        self._raw_left = max(0, self._raw_left - self._plan.chunk_size)
        if piece.length:
            last = self._pending[-1] if self._pending else None
            if last is not None and last.slot == piece.slot and last.start + last.length == piece.start:
                self._pending[-1] = Piece(last.slot, last.start, last.length + piece.length)
            else:
                self._pending.append(piece)
            self._size += piece.length
        parts = []
        while not self._plan.whole and self._size >= self._target():
            parts.append(self._cut(self._cut_size()))
        return parts

    def finish(self) -> list[Part]:
        """No more bytes: the last part, of whatever is left; an empty object is one empty part."""
        if not self._pending and self._number > 1:
            return []
        return [self._cut(self._size)]

    def _target(self) -> int:
        return self._plan.target(self._number, self._size + self._raw_left)

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
