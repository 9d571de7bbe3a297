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

from ..engine import errors
from ..engine.errors import ConfigError, S3dlioError
from .council import name_ranks

DIGEST = 12
"""Bytes of a digest: CRC-64/NVME and CRC-32C of the leaf, which differ for any two leaves that differ by chance."""

Boxes = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""(offsets, sizes) of each box that a rank has of an array."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A rank has its state: the ``step`` and ``world_size`` it saves for, a digest of the names, dtypes and shapes of
    its leaves, ``digests`` of their bytes, ``DIGEST`` each, and ``parts``, by leaf what it has of which shape."""

    step: int
    world_size: int
    structure: str
    digests: bytes
    parts: Mapping[int, tuple[tuple[int, ...], Boxes]] = field(default_factory=dict)

    def encode(self) -> bytes:
        parts = [[index, shape, boxes] for index, (shape, boxes) in self.parts.items()]
        head = {"step": self.step, "world_size": self.world_size, "structure": self.structure, "parts": parts}
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


def encode_error(error: BaseException, *, clean: bool = True) -> bytes:
    """The word of a rank that gives up; ``clean``: nothing can have been committed."""
    kind = type(error).__name__ if isinstance(error, S3dlioError) else "S3dlioError"
    text = str(error) if isinstance(error, S3dlioError) else f"{type(error).__name__}: {error}"
    return json.dumps({"error": kind, "text": text, "clean": clean}).encode()


def read_word(word: bytes) -> dict[str, Any]:
    """The JSON of a word; raises the error that it holds."""
    value: dict[str, Any] = json.loads(word.partition(b"\n")[0])
    if "error" in value:
        raise _error_of(value)
    return value


def _error_of(value: Mapping[str, Any]) -> S3dlioError:
    cls: Any = getattr(errors, value["error"], S3dlioError)
    error: S3dlioError = cls(value["text"])
    return error


def read_hello(word: bytes) -> Hello:
    """A rank's hello; raises the error that it says instead."""
    value = read_word(word)
    parts = {index: (tuple(shape), _boxes(boxes)) for index, shape, boxes in value["parts"]}
    return Hello(value["step"], value["world_size"], value["structure"], word.partition(b"\n")[2], parts)


def _boxes(rows: Any) -> Boxes:
    return tuple((tuple(offsets), tuple(sizes)) for offsets, sizes in rows)


def read_verdict(word: bytes) -> Verdict:
    """What was announced; raises the error that it says instead."""
    value = read_word(word)
    storing = tuple((tuple(ranks), tuple(leaves)) for ranks, leaves in value["storing"])
    return Verdict(value["timestamp"], tuple(value["differing"]), storing)


class Tally:
    """The hellos of the ranks, taken one after the other, rank 0's first: no more is held than what they add up to."""

    def __init__(self, first: Hello, names: Sequence[str]) -> None:
        self._first = first
        self._names = names
        self._others: dict[str, dict[int, Any]] = {"step": {}, "world size": {}, "structure": {}}
        self._digests = _table(first.digests)
        self._differing = np.zeros(len(self._digests), bool)
        # By leaf: who has which boxes; each set of boxes with its digest and the ranks that have it.
        self._parts: dict[int, dict[Boxes, tuple[bytes, list[int]]]] = {index: {} for index in first.parts}
        self._clashes: list[str] = []
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
                self._differing |= (self._digests != _table(hello.digests)).any(axis=1)
            self._take_parts(rank, hello)

    def _take_parts(self, rank: int, hello: Hello) -> None:
        for index, (_, boxes) in hello.parts.items():
            if not any(math.prod(sizes) for _, sizes in boxes):
                continue
            digest = hello.digests[index * DIGEST : (index + 1) * DIGEST]
            known, ranks = self._parts[index].setdefault(boxes, (digest, []))
            ranks.append(rank)
            if known != digest:
                self._clashes.append(
                    f"ranks {ranks[0]} and {rank} have the same part of {self._names[index]} with other values"
                )

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
        self._check_parts()
        parts = self._first.parts
        differing = tuple(int(index) for index in np.flatnonzero(self._differing) if int(index) not in parts)
        return Verdict(timestamp, differing, self._storing())

    def _check_parts(self) -> None:
        if self._clashes:
            more = f" (and {len(self._clashes) - 1} more)" if len(self._clashes) > 1 else ""
            raise ConfigError(
                f"{self._clashes[0]}{more}: give arrays that are not the same other names, or save them from one of "
                "the ranks"
            )
        for index, (shape, _) in self._first.parts.items():
            held = sum(math.prod(sizes) for boxes in self._parts[index] for _, sizes in boxes)
            if held != math.prod(shape):
                raise ConfigError(
                    f"the parts of {self._names[index]} on all ranks hold {held} elements, the array "
                    f"{math.prod(shape)}: its mesh does not span the ranks that save it"
                )

    def _storing(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Of each part that several have, one stores it: another one from leaf to leaf, so that all have as much."""
        leaves: dict[tuple[int, ...], list[int]] = {}
        for index, parts in self._parts.items():
            if any(len(ranks) > 1 for _, ranks in parts.values()):
                chosen = tuple(sorted(ranks[index % len(ranks)] for _, ranks in parts.values()))
                leaves.setdefault(chosen, []).append(index)
        return tuple((ranks, tuple(indices)) for ranks, indices in leaves.items())


def _table(digests: bytes) -> np.ndarray[Any, Any]:
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
