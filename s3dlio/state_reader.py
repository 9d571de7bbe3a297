"""One checkpoint's state, opened: its tree, what its leaves are, and any box of any leaf, whichever ranks hold it.

Owns the opening of the shards and the way from boxes to the byte ranges that hold them; the reader brings verified
bytes, ``merging`` says where they lie. Knows no framework: whoever loads says which boxes are wanted, and where.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from .engine.errors import ConfigError, ManifestError
from .engine.source import buffer_address, move, view
from .engine.threads import each
from .index import ShardIndex
from .manifest import Manifest, shard_of
from .merging import Merged, Place, merge, of_one
from .reader import ShardReader, Wanted, batches
from .records import ShardRecord
from .tensors import Table, parse_table, restore
from .tensors.box import Box, byte_ranges, image_to_box, intersection
from .tensors.dtypes import element, numpy_dtype
from .tensors.leaf import Node, Spec, Target
from .tensors.restore import Place as JaxPlace
from .tensors.table import ALIGNMENT

Array = np.ndarray[Any, Any]

_AT_ONCE = 8  # indexes of ranks that are read at the same time
_BATCH = 1 << 30  # bytes on their way to memory that cannot be written in place


@dataclass(frozen=True, slots=True)
class BoxRead:
    """A box of leaf ``index`` and the memory that takes it: uint8, of the box's sizes and an element's bytes."""

    index: int
    box: Box
    memory: Array


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A shard whose index was read; ``table`` is ``None`` for a payload of bytes."""

    record: ShardRecord
    index: ShardIndex | None
    table: Table | None


def open_shard(reader: ShardReader, record: ShardRecord) -> OpenShard:
    """Read the index of a shard and check its table."""
    index = reader.index(record)
    if index is None or index.table is None:  # the tree of the state `None` is None
        return OpenShard(record, index, None)
    with naming(record):
        return OpenShard(record, index, parse_table(index.table, index.raw_size))


def open_state(manifest: Manifest, reader: ShardReader, rank: int | None = None) -> StateReader:
    """The state that ``rank`` sees; without one, what any process sees of it.

    ``ConfigError`` for a payload, for a rank that there is not, and for what each rank has of its own where none is
    named.
    """
    first = open_shard(reader, shard_of(manifest, rank if rank is not None else 0))
    state = state_of(manifest, reader, first, rank)
    state.require_shared()
    return state


def state_of(manifest: Manifest, reader: ShardReader, first: OpenShard, rank: int | None) -> StateReader:
    """As ``open_state``, before it asks what is shared; ``first``: the shard of ``rank``, or of rank 0, opened."""
    record, table = first.record, first.table
    if table is None:
        shard_of(manifest, rank)
        raise ConfigError(
            f"{record.key} is a payload of bytes, not a state of arrays: load it without into= and names="
        )
    assert first.index is not None
    if manifest.world_size == 1 or table.owners is None:
        shard_of(manifest, rank)
        with naming(record):
            return StateReader(reader, [first], of_one(first.index.tree, table))
    others = [shard for shard in manifest.shards if shard.rank != record.rank]
    opened = each(lambda shard: open_shard(reader, shard), others, min(len(others), _AT_ONCE))
    shards = sorted([first, *opened], key=lambda shard: shard.record.rank)
    with naming(record):
        trees = [shard.index.tree for shard in shards if shard.index is not None]
        tables = [shard.table for shard in shards if shard.table is not None]
        if not len(trees) == len(tables) == len(shards):
            raise ManifestError("some ranks of this checkpoint have saved a state, some a payload")
        return StateReader(reader, shards, merge(trees, tables, rank))


class StateReader:
    """A state. ``tree``: its nodes; ``specs``: what each leaf is as a whole; ``names``: its dotted path."""

    def __init__(self, reader: ShardReader, shards: list[OpenShard], merged: Merged) -> None:
        self._reader = reader
        self._shards = shards
        self._merged = merged
        self.tree: Node = merged.tree
        self.specs: list[Spec] = merged.specs
        self.names: list[str] = merged.names
        self.require_shared = merged.require_shared

    @cached_property
    def table(self) -> Table:
        """The table of the whole state: that of its shard, or one of leaves in a memory of their own."""
        if len(self._shards) == 1:
            table = self._shards[0].table
            assert table is not None
            return table
        offsets, size = _compact(self.specs)
        return Table(self.names, self.specs, offsets, self._merged.aliases, size)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Say whose tree is malformed."""
        with naming(self._shards[0].record):
            yield

    def whole(self, place: JaxPlace | None = None) -> Any:
        """The state; its arrays lie in one memory, and those of JAX become what ``place`` makes of them."""
        if len(self._shards) == 1:
            (shard,) = self._shards
            memory = self._reader.whole(shard.record, shard.index)
            room = memory if len(memory) else mmap.mmap(-1, 1)
        else:
            room = self.landed((index, self.table.offsets[index]) for index in range(len(self.specs)))
        with self.naming():
            return restore(self.tree, self.table, room, place)

    def landed(self, leaves: Iterable[tuple[int, int]], size: int | None = None) -> mmap.mmap:
        """New memory of ``size`` bytes (default: of the whole table) with whole leaves at the offsets given."""
        size = max(self.table.total if size is None else size, 1)
        self._reader.ask_memory(f"the state of {len(self._shards)} ranks", size)
        # Private: what a forked child writes must not change the arrays of its parent.
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = buffer_address(memoryview(room))
        self.fill((index, None, Landing(index, self.specs[index].nbytes, base + at)) for index, at in leaves)
        return room

    def memory(self, index: int, box: Box) -> BoxRead:
        """New memory for a box of a leaf."""
        itemsize = numpy_dtype(self.specs[index].dtype).itemsize
        size = box.count * itemsize
        room: Array = np.empty(size + ALIGNMENT, np.uint8)  # JAX takes aligned memory as it is, and copies other
        start = -room.ctypes.data % ALIGNMENT
        return BoxRead(index, box, room[start : start + size].reshape(*box.sizes, itemsize))

    def array(self, read: BoxRead) -> Array:
        """What was read, as an array of the leaf's dtype over the same memory."""
        spec = self.specs[read.index]
        made: Array = np.ndarray(read.box.sizes, numpy_dtype(spec.dtype), read.memory.reshape(-1))
        return made

    def read(self, reads: Iterable[BoxRead]) -> None:
        """Fill the memory of each; every chunk that holds some of them is read once, and checked."""
        self.fill(
            (each.index, each.box, Landing(each.index, each.memory.nbytes, each.memory.ctypes.data)) for each in reads
        )

    def fill(self, wanted: Iterable[tuple[int, Box | None, Target]]) -> None:
        """Fill targets, each with a box of a leaf (``None``: all of it)."""
        direct: list[tuple[int, Wanted]] = []
        late: list[tuple[int, Box, Target]] = []
        for index, some, target in wanted:
            box = Box.whole(self.specs[index].shape) if some is None else some
            places = self._merged.places(index)
            if len(places) == 1 and places[0].box == box:
                direct.append(_run(places[0], target))
            elif any(place.box == box for place in places):
                direct.append(_run(next(place for place in places if place.box == box), target))
            elif target.address() is None:
                late.append((index, box, target))
            else:
                direct += self._scattered(index, box, places, target)
        self._fetch(direct)
        for batch in batches(late, lambda item: item[2].nbytes, _BATCH):
            held = [(self.memory(index, box), target) for index, box, target in batch]
            self.read(read for read, _ in held)
            for read, target in held:
                target.copy_from(read.memory.ctypes.data, 0, target.nbytes)

    def _scattered(self, index: int, box: Box, places: Iterable[Place], target: Target) -> Iterator[tuple[int, Wanted]]:
        """What of each place the box holds; ``ManifestError`` if the places do not have all of it."""
        spec = self.specs[index]
        itemsize = element(spec.dtype).size
        left = box.count
        address = target.address()
        assert address is not None
        memory = np.frombuffer(view(address, left * itemsize), np.uint8) if left else np.empty(0, np.uint8)
        held = memory.reshape(*box.sizes, itemsize)
        for place in places:
            common = intersection(place.box, box)
            if common is None:
                continue
            left -= common.count
            there = _within(common, place.box)
            here = tuple(slice(at, at + size) for at, size in _spans(_within(common, box)))
            for start, stop in byte_ranges(place.box.sizes, itemsize, there):
                take = partial(_take, place.box.sizes, there, held[here], start)
                yield place.shard, Wanted(place.offset + start, place.offset + stop, take)
        if left:
            raise ManifestError(f"{self.names[index]}: {left} of {box.count} elements lie in no shard")

    def _fetch(self, wanted: Iterable[tuple[int, Wanted]]) -> None:
        jobs: dict[int, list[Wanted]] = {}
        for shard, want in wanted:
            if want.stop > want.start:
                jobs.setdefault(shard, []).append(want)
        for shard, wants in sorted(jobs.items()):
            index = self._shards[shard].index
            assert index is not None
            self._reader.pieces(self._shards[shard].record, index, wants)


class Landing(Target):
    """Plain memory that takes a box."""

    __slots__ = ("_address",)

    def __init__(self, index: int, nbytes: int, address: int) -> None:
        self.index = index
        self.nbytes = nbytes
        self._address = address

    def address(self) -> int:
        return self._address

    def copy_from(self, address: int, start: int, stop: int) -> None:
        move(self._address + start, address, stop - start)


def _run(place: Place, target: Target) -> tuple[int, Wanted]:
    """All of a place, which lies in its shard as it does in the target."""
    return place.shard, Wanted(place.offset, place.offset + target.nbytes, target.copy_from)


def _take(sizes: tuple[int, ...], box: Box, held: Array, first: int, address: int, start: int, stop: int) -> None:
    """A taker of the reader: bytes [start, stop), counted from the image's byte ``first``."""
    image_to_box(sizes, box, held, address, first + start, first + stop)


def _within(box: Box, outer: Box) -> Box:
    """``box`` as seen from the first element of ``outer``."""
    return Box(tuple(at - origin for at, origin in zip(box.offsets, outer.offsets, strict=True)), box.sizes)


def _spans(box: Box) -> Iterator[tuple[int, int]]:
    return zip(box.offsets, box.sizes, strict=True)


def _compact(specs: list[Spec]) -> tuple[list[int], int]:
    """Where leaves go in one memory, each at a multiple of ``ALIGNMENT``, and its size."""
    offsets, at = [], 0
    for spec in specs:
        offsets.append(at)
        at += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, at


@contextmanager
def naming(record: ShardRecord) -> Iterator[None]:
    """Say whose tree or table is malformed."""
    try:
        yield
    except ManifestError as error:
        key = record.key if record.index is None else record.index.key
        raise ManifestError(f"{key}: {error}; load another checkpoint") from error
