"""The layout of a state's logical shard: a valid safetensors file.

Owns the order of the leaves, the header and the runs of equal width; a pure function of the leaves. Never touches their
bytes (``image`` does). Called by ``s3dlio.content`` after ``flatten``. The shard is described in ``s3dlio/FORMAT.md``
(State): falling widths keep every leaf aligned and bytes of one width together, which is what grouping lives on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain
from json.encoder import encode_basestring_ascii
from typing import Any

from .leaf import Leaves, Spec
from .table import ALIGNMENT, ELSEWHERE, as_json
from .tree import Flattened

HEADER_LIMIT = 100_000_000
"""Longest header, in bytes, that safetensors reads."""

_WIDTHS = (16, 8, 4, 2, 1)
_GROUPED = 8  # widest component that grouping knows; the 16 bytes of a long double are grouped as two of 8
_BATCH = 8192  # header entries joined in one call

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in the shard; all numbers are bytes from its start.

    ``header``: the first ``header_size`` bytes in pieces; ``total``: the shard's size; ``order``: indices of the leaves
    as they lie; ``offsets``: the first byte of each leaf, by index (or ``ELSEWHERE``); ``width_runs``: (start, stop,
    width) without gaps over [0, total), width 1, 2, 4 or 8 (the header counts as 1); ``table``: JSON for the index;
    ``named``: whether the header names each leaf.
    """

    header: tuple[bytes, ...]
    header_size: int
    total: int
    order: list[int]
    offsets: list[int]
    width_runs: tuple[tuple[int, int, int], ...]
    table: dict[str, Any]
    named: bool


def plan_layout(
    state: Flattened,
    *,
    header_limit: int = HEADER_LIMIT,
    owners: Sequence[int | None] | None = None,
    left_out: AbstractSet[int] = frozenset(),
    named: bool = True,
) -> Layout:
    """The layout of a flattened state. Logs a warning if the header is too long to name every leaf.

    ``owners``: of a state that several ranks hold, the rank whose shard has each leaf for all of them, ``None`` where
    each has its own; ``left_out``: leaves that lie in other ranks' shards only. Not ``named``: as if the header were
    too long, as that of the whole state is: a longer one would push leaves behind where they were (``moves``).
    """
    leaves = state.leaves
    order = _order(leaves)
    if left_out:
        order = [index for index in order if index not in left_out]
    starts, size = _starts(leaves, order)
    kind = "pt" if any(spec.framework == "torch" for spec in leaves.specs) else "np"
    pieces = _header(leaves, order, starts, kind, header_limit - ALIGNMENT) if named else None
    if named and pieces is None:
        _log.warning(
            "the names of %d arrays exceed the %d bytes of a safetensors header: they stand in the index only",
            len(leaves), header_limit,
        )  # fmt: skip
    named = pieces is not None
    if pieces is None:
        pieces = [json.dumps({"data": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()]
    length = sum(map(len, pieces))
    begin = -(-(8 + length) // ALIGNMENT) * ALIGNMENT
    header = ((begin - 8).to_bytes(8, "little"), *pieces, b" " * (begin - 8 - length))
    offsets = [start if start == ELSEWHERE else begin + start for start in starts]
    runs = _width_runs(leaves, order, offsets, begin)
    table = as_json(leaves, offsets, state.aliases, owners)
    return Layout(header, begin, begin + size, order, offsets, runs, table, named)


def moves(specs: Sequence[Spec], before: Sequence[int], after: Layout) -> Iterator[tuple[int, int, int]]:
    """Where the leaves of ``after`` go from their offsets ``before``: (target, source, length), upwards.

    ``after`` leaves some of the leaves out: the others keep their order and the header only shrinks, so none goes
    behind where it was.
    """
    target, source, length = 0, 0, 0
    for index in after.order:
        start, old, nbytes = after.offsets[index], before[index], specs[index].nbytes
        if start == target + length and old == source + length:
            length += nbytes
            continue
        if length:
            yield target, source, length
        target, source, length = start, old, nbytes
    if length:
        yield target, source, length


def _order(leaves: Leaves) -> list[int]:
    """Indices by falling width, else as they come; one pass, since a sort of a million holds the interpreter."""
    groups: dict[int, list[int]] = {width: [] for width in _WIDTHS}
    for index, spec in enumerate(leaves.specs):
        groups[spec.width].append(index)
    return list(chain.from_iterable(groups.values()))


def _starts(leaves: Leaves, order: list[int]) -> tuple[list[int], int]:
    """First byte of each leaf counted from the data's start, by index, and the size of all."""
    starts = [ELSEWHERE] * len(leaves)
    at = 0
    for index in order:
        starts[index] = at
        at += leaves.specs[index].nbytes
    return starts, at


def _header(leaves: Leaves, order: list[int], starts: list[int], kind: str, limit: int) -> list[bytes] | None:
    """The JSON in pieces; None if it is longer than ``limit``."""
    pieces: list[bytes] = []
    held = 0
    for text in _texts(leaves, order, starts, kind):
        pieces.append(text.encode("ascii"))
        held += len(text)
        if held > limit:
            return None
    return pieces


def _texts(leaves: Leaves, order: list[int], starts: list[int], kind: str) -> Iterator[str]:
    yield f'{{"__metadata__":{{"format":"{kind}"}}'
    middles: dict[int, str] = {}  # the text between name and offsets, by the identity of the spec
    batch: list[str] = []
    for index in order:
        spec = leaves.specs[index]
        middle = middles.get(id(spec))
        if middle is None:
            middle = middles[id(spec)] = _middle(spec)
        start = starts[index]
        batch.append(f",{encode_basestring_ascii(leaves.names[index])}{middle}{start},{start + spec.nbytes}]}}")
        if len(batch) == _BATCH:
            yield "".join(batch)
            batch.clear()
    batch.append("}")
    yield "".join(batch)


def _middle(spec: Spec) -> str:
    shape = list(spec.shape) if spec.code else [spec.nbytes]
    return f':{{"dtype":"{spec.code or "U8"}","shape":{json.dumps(shape, separators=(",", ":"))},"data_offsets":['


def _width_runs(leaves: Leaves, order: list[int], offsets: list[int], begin: int) -> tuple[tuple[int, int, int], ...]:
    runs = [(0, begin, 1)]
    for index in order:
        spec = leaves.specs[index]
        width = min(spec.width, _GROUPED)
        start, stop = offsets[index], offsets[index] + spec.nbytes
        if width == runs[-1][2]:
            runs[-1] = (runs[-1][0], stop, width)
        elif stop > start:
            runs.append((start, stop, width))
    return tuple(runs)
