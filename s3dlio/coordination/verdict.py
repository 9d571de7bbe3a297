"""What the ranks decide of a save: whether they save the same thing, under which id, and who stores what.

Pure. Each rank says a ``Hello``; rank 0 hears all of them and ``decide``s; the ``Verdict`` is announced. Later each
says what it ``stored``, and rank 0 announces the commit. All words are JSON, a hello's digests follow as bytes.

A leaf that every rank holds is stored once where name, dtype, shape and digest agree on all ranks; RNG states and
BatchNorm buffers share names but differ. Which rank stores it follows from the leaves alone (``owners``). A leaf that
is a rank's part of an array is stored by that rank, or, where several have the same part, by one of them.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, S3dlioError
from ..tensors.box import Box, tiles
from .council import name_ranks
from .words import read_word

Array = np.ndarray[Any, Any]

DIGEST = 12
"""Bytes of a digest: CRC-64/NVME and CRC-32C of the leaf, which differ for any two leaves that differ by chance."""

Kind = tuple[tuple[int, ...], tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]]
"""A part: the shape of the array, and (offsets, sizes) of each box that a rank has of it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A rank has its state: the ``step`` and ``world_size`` it saves for, a digest of the names, dtypes and shapes of
    its leaves, ``digests`` of their bytes, ``DIGEST`` each, and ``parts``, by leaf what it has of which shape.

    A state has many parts and few kinds of them, so a word names each kind once.
    """

    step: int
    world_size: int
    structure: str
    digests: bytes
    parts: Mapping[int, Kind] = field(default_factory=dict)

    def encode(self) -> bytes:
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(self.parts.values()))}
        head = {
            "step": self.step,
            "world_size": self.world_size,
            "structure": self.structure,
            "kinds": list(kinds),
            "leaves": list(self.parts),
            "kind": [kinds[kind] for kind in self.parts.values()],
        }
        return json.dumps(head).encode() + b"\n" + self.digests


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ``timestamp`` of the checkpoint's id, which leaves that all hold differ, by index, and of parts that several
    ranks have, who stores them: (ranks, leaves)."""

    timestamp: str
    differing: tuple[int, ...] = ()
    storing: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()

    def encode(self) -> bytes:
        return json.dumps({"timestamp": self.timestamp, "differing": self.differing, "storing": self.storing}).encode()

    def elsewhere(self, rank: int) -> Iterable[int]:
        """Leaves of parts that another rank stores for this one."""
        return (leaf for ranks, leaves in self.storing if rank not in ranks for leaf in leaves)


def read_hello(word: bytes) -> Hello:
    """A rank's hello; raises the error that it says instead."""
    value = read_word(word)
    kinds: list[Kind] = [
        (tuple(shape), tuple((tuple(offsets), tuple(sizes)) for offsets, sizes in boxes))
        for shape, boxes in value["kinds"]
    ]
    parts = {leaf: kinds[number] for leaf, number in zip(value["leaves"], value["kind"], strict=True)}
    return Hello(value["step"], value["world_size"], value["structure"], word.partition(b"\n")[2], parts)


def read_verdict(word: bytes) -> Verdict:
    """What was announced; raises the error that it says instead."""
    value = read_word(word)
    storing = tuple((tuple(ranks), tuple(leaves)) for ranks, leaves in value["storing"])
    return Verdict(value["timestamp"], tuple(value["differing"]), storing)


class Tally:
    """The hellos of the ranks, taken one after the other, rank 0's first.

    No more is held of them than 16 bytes for each part of an array, since a large job has millions.
    """

    def __init__(self, first: Hello, names: Sequence[str]) -> None:
        self._first = first
        self._names = names
        self._others: dict[str, dict[int, Any]] = {"step": {}, "world size": {}, "structure": {}}
        self._all = _table(first.digests)
        self._differing = np.zeros(len(self._all), bool)
        self._leaves = list(first.parts)
        self._kinds: dict[Kind, int] = {}
        self._whole: set[tuple[tuple[int, ...], bytes]] = set()  # shapes, and kinds that make them up
        self._ranks: list[int] = []
        self._numbers: list[Array] = []  # of each rank, by part: its kind, -1 for one without elements
        self._digests: list[Array] = []
        self._take_parts(0, first)

    def add(self, rank: int, hello: Hello) -> None:
        """Take a rank's hello."""
        first = self._first
        for what, ours, theirs in (
            ("step", first.step, hello.step),
            ("world size", first.world_size, hello.world_size),
            ("structure", first.structure, hello.structure),
        ):
            if ours != theirs:
                self._others[what][rank] = theirs
        if hello.structure == first.structure:
            if hello.digests != first.digests:
                self._differing |= (self._all != _table(hello.digests)).any(axis=1)
            self._take_parts(rank, hello)

    def _take_parts(self, rank: int, hello: Hello) -> None:
        if self._leaves:
            known: dict[int, int] = {}  # by identity: to hash a kind 10,000,000 times takes half a minute
            for kind in hello.parts.values():
                if id(kind) not in known:
                    known[id(kind)] = self._number(kind)
            parts = hello.parts
            self._ranks.append(rank)
            self._numbers.append(np.array([known[id(parts[leaf])] for leaf in self._leaves], np.int32))
            self._digests.append(_table(hello.digests)[self._leaves])

    def _number(self, kind: Kind) -> int:
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = len(self._kinds) if _elements(kind) else -1
        return found

    def decide(self, timestamp: str) -> Verdict:
        """The verdict; ``ConfigError``, naming ranks, for what keeps them from saving together."""
        for what in ("step", "world size"):
            others = self._others[what]
            if others:
                value = next(iter(others.values()))
                ours = self._first.step if what == "step" else self._first.world_size
                raise ConfigError(
                    f"the ranks disagree on the {what}: rank 0 says {ours}, {name_ranks(list(others))} {value}"
                )
        if self._others["structure"]:
            raise ConfigError(
                f"the state of {name_ranks(list(self._others['structure']))} has other arrays than that of rank 0 "
                "(names, dtypes or shapes): every rank must save the same tree, or pass coordinator=None to save its "
                "own as a checkpoint of its own"
            )
        parts = self._first.parts
        differing = tuple(int(index) for index in np.flatnonzero(self._differing) if int(index) not in parts)
        return Verdict(timestamp, differing, self._storing())

    def _storing(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Of each part that several have, one stores it: who has stored least so far of those that have the same."""
        if not self._leaves:
            return ()
        numbers, digests = np.stack(self._numbers, axis=1), np.stack(self._digests, axis=1)
        elements = np.zeros(len(self._kinds), np.int64)
        for kind, number in self._kinds.items():
            if number >= 0:
                elements[number] = _elements(kind)
        boxes_of = {number: [Box(*box) for box in boxes] for (_, boxes), number in self._kinds.items()}
        chosen: dict[tuple[int, ...], list[int]] = {}
        loads: dict[bytes, list[int]] = {}  # by which ranks have the same: elements that the first of them store, ...
        for column, leaf in enumerate(self._leaves):
            there = np.flatnonzero(numbers[column] >= 0)
            kinds, first, which, counts = np.unique(
                numbers[column][there], return_index=True, return_inverse=True, return_counts=True
            )
            self._check_cover(leaf, int(elements[kinds].sum()))
            self._check_tiles(leaf, kinds, boxes_of)
            if len(counts) and counts.max() > 1:
                self._check_replicas(leaf, digests[column], there, there[first][which])
                order = np.argsort(which, kind="stable")
                starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
                load = loads.setdefault(which.tobytes(), [0] * int(counts.max()))
                turn = load.index(min(load))
                load[turn] += math.prod(self._first.parts[leaf][0])
                storing = sorted(
                    self._ranks[there[order[start + turn % count]]] for start, count in zip(starts, counts, strict=True)
                )
                chosen.setdefault(tuple(storing), []).append(leaf)
        return tuple((ranks, tuple(leaves)) for ranks, leaves in chosen.items())

    def _check_cover(self, leaf: int, held: int) -> None:
        elements = math.prod(self._first.parts[leaf][0])
        if held != elements:
            raise ConfigError(
                f"the parts of {self._names[leaf]} on all ranks hold {held} elements, the array {elements}: its mesh "
                "does not span the ranks that save it"
            )

    def _check_tiles(self, leaf: int, kinds: Array, boxes_of: Mapping[int, list[Box]]) -> None:
        shape = self._first.parts[leaf][0]
        key = shape, kinds.tobytes()
        if key not in self._whole:
            if not tiles(shape, (box for kind in kinds for box in boxes_of[int(kind)])):
                raise ConfigError(
                    f"the parts of {self._names[leaf]} on all ranks overlap and leave others out: every rank must have "
                    "it on the same mesh with the same placements"
                )
            self._whole.add(key)

    def _check_replicas(self, leaf: int, digests: Array, there: Array, like: Array) -> None:
        """Whether ranks that have the same part (rows ``there`` that of rows ``like``) have the same bytes of it."""
        clashes = np.flatnonzero((digests[there] != digests[like]).any(axis=1))
        if len(clashes):
            one, other = self._ranks[like[clashes[0]]], self._ranks[there[clashes[0]]]
            raise ConfigError(
                f"ranks {one} and {other} have the same part of {self._names[leaf]} with other values: give arrays "
                "that are not the same other names, or save them from one of the ranks"
            )


def _elements(kind: Kind) -> int:
    return sum(math.prod(sizes) for _, sizes in kind[1])


def _table(digests: bytes) -> Array:
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST)


def decide(words: Iterable[tuple[int, bytes]], names: Sequence[str], timestamp: str) -> Verdict:
    """The verdict on the words of all ranks, rank 0's first; ``names`` are those of its leaves.

    Raises what keeps them from saving together: a rank's own error, ``ConfigError`` naming ranks.
    """
    tally: Tally | None = None
    for rank, word in words:
        try:
            hello = read_hello(word)
        except S3dlioError as error:
            raise type(error)(f"rank {rank} failed, so no rank saves: {error}") from error
        if tally is None:
            tally = Tally(hello, names)
        else:
            tally.add(rank, hello)
    assert tally is not None
    return tally.decide(timestamp)


def owners(sizes: Sequence[int], world_size: int) -> list[int]:
    """Which rank stores each leaf that all hold: the largest first, each to the rank that has least so far."""
    loads = [(0, rank) for rank in range(world_size)]
    owner = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        load, rank = heapq.heappop(loads)
        owner[index] = rank
        heapq.heappush(loads, (load + sizes[index], rank))
    return owner
