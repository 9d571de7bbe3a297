"""The table of a shard: where each leaf lies and what it means, in columns.

Owns the JSON form (``as_json``), its validation (``parse_table``: it comes from untrusted storage) and the choice of
leaves by name (``select``). Never touches the shard's bytes. ``layout`` makes it, ``s3dlio.restoring`` parses it; its
JSON is described in ``s3dlio/FORMAT.md`` (Table).
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, ManifestError, S3dlioError
from .box import Box, Part
from .dtypes import TORCH
from .leaf import FORMS, MAX_DIMS, Leaves, Spec, make_spec

ALIGNMENT = 64
ELSEWHERE = -1
"""Offset of a leaf that lies in the shard of its owner."""
_MAX_SIDE = (1 << 63) - 1
_RAW_FORMS = ("bytes", "bytearray", "str")


@dataclass(frozen=True, slots=True)
class Table:
    """Columns over the leaves, by index. ``offsets`` are bytes from the start of the shard, which has ``total``.

    ``owners``, of a state that several ranks hold: the rank whose shard has the leaf for all of them, ``None`` where
    each rank has its own. A leaf that another rank owns is ``ELSEWHERE`` here. ``parts``: leaves that are this rank's
    part of an array, by index; their spec is that of the part.
    """

    names: list[str]
    specs: list[Spec]
    offsets: list[int]
    aliases: dict[str, int]
    total: int
    owners: list[int | None] | None = None
    parts: Mapping[int, Part] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def range(self, index: int) -> tuple[int, int]:
        """Bytes [start, stop) of a leaf that lies in the shard."""
        return self.offsets[index], self.offsets[index] + self.specs[index].nbytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, stop) of the shard, one leaf's, that land at ``landing`` in a compact memory."""

    index: int
    start: int
    stop: int
    landing: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen leaves: ``names`` (with aliases) to index, their ``pieces`` in shard order, ``size`` bytes when landed."""

    names: dict[str, int]
    pieces: list[Piece]
    size: int

    def landings(self) -> dict[int, int]:
        """Where each chosen leaf begins in the compact memory."""
        return {piece.index: piece.landing for piece in self.pieces}


def as_json(
    leaves: Leaves, offsets: Sequence[int], aliases: dict[str, int], owners: Sequence[int | None] | None = None
) -> dict[str, Any]:
    """The table's JSON; dump it with ``dump_json_pieces``."""
    rows: dict[int, int] = {}
    specs: list[list[Any]] = []
    column: list[int] = []
    for spec in leaves.specs:
        row = rows.get(id(spec))
        if row is None:
            row = rows[id(spec)] = len(specs)
            specs.append([spec.form, spec.dtype, list(spec.shape)])
        column.append(row)
    table: dict[str, Any] = {
        "names": list(leaves.names),
        "specs": specs,
        "spec": column,
        "offsets": list(offsets),
        "aliases": dict(aliases),
    }
    if owners is not None:
        table["owners"] = list(owners)
    if leaves.parts:
        table["parts"] = [
            [index, list(part.shape), [[list(box.offsets), list(box.sizes)] for box in part.boxes]]
            for index, part in leaves.parts.items()
        ]
    return table


def parse_table(raw: object, total: int) -> Table:
    """The table of a shard of ``total`` bytes from its JSON.

    Raises ``ManifestError`` unless every column fits, every leaf lies inside the shard at a multiple of its component's
    width, and no two leaves overlap.
    """
    if type(raw) is not dict:
        raise ManifestError("table: not an object")
    names, column = _list(raw, "names", str), _list(raw, "spec", int)
    offsets = _list(raw, "offsets", int)
    if not len(names) == len(column) == len(offsets):
        raise ManifestError(f"table: {len(names)} names, {len(column)} specs, {len(offsets)} offsets")
    vocabulary = [_spec(row) for row in _list(raw, "specs", list)]
    if column and not 0 <= min(column) <= max(column) < len(vocabulary):
        raise ManifestError("table: a leaf of a spec that does not exist")
    aliases = raw.get("aliases")
    if type(aliases) is not dict or not all(
        type(index) is int and 0 <= index < len(names) for index in aliases.values()
    ):
        raise ManifestError("table: malformed aliases")
    if len(set(names) | set(aliases)) != len(names) + len(aliases):
        raise ManifestError("table: a name occurs twice")
    owners = _owners(raw, len(offsets))
    here = [index for index, offset in enumerate(offsets) if offset != ELSEWHERE] if owners else None
    if here is None:
        _check_places(column, offsets, vocabulary, total)
    else:
        _check_places([column[index] for index in here], [offsets[index] for index in here], vocabulary, total)
    specs = [vocabulary[row] for row in column]
    parts = _parts(raw, specs)
    for index, owner in enumerate(owners or ()):
        if owner is None and offsets[index] == ELSEWHERE and index not in parts:
            raise ManifestError(f"table: no shard has the leaf {names[index][:100]}")
    return Table(names, specs, offsets, aliases, total, owners, parts)


def _owners(raw: dict[str, Any], count: int) -> list[int | None] | None:
    owners = raw.get("owners")
    if owners is not None and (
        type(owners) is not list
        or len(owners) != count
        or not all(owner is None or (type(owner) is int and owner >= 0) for owner in owners)
    ):
        raise ManifestError("table: owners is not a list of a rank or null for each leaf")
    return owners


def _parts(raw: dict[str, Any], specs: list[Spec]) -> dict[int, Part]:
    rows = _list(raw, "parts", list) if "parts" in raw else []
    parts: dict[int, Part] = {}
    for row in rows:
        if len(row) != 3 or type(row[0]) is not int or not 0 <= row[0] < len(specs) or row[0] in parts:
            raise ManifestError("table: a part of a leaf that does not exist, or two of one")
        if type(row[2]) is not list or not all(type(box) is list and len(box) == 2 for box in row[2]):
            raise ManifestError("table: a malformed part")
        if not all(_is_shape(sides) for sides in (row[1], *(sides for box in row[2] for sides in box))):
            raise ManifestError("table: a malformed part")
        shape = tuple(row[1])
        part = Part(shape, tuple(Box(tuple(offsets), tuple(sizes)) for offsets, sizes in row[2]))
        if not all(box.lies_in(shape) for box in part.boxes) or part.stored_shape != specs[row[0]].shape:
            raise ManifestError("table: a part that does not fit its array or its leaf")
        parts[row[0]] = part
    return parts


def _is_shape(sides: object) -> bool:
    return (
        type(sides) is list
        and len(sides) <= MAX_DIMS
        and all(type(side) is int and 0 <= side <= _MAX_SIDE for side in sides)
    )


def _list(raw: dict[str, Any], key: str, kind: type) -> list[Any]:
    value = raw.get(key)
    if type(value) is not list or not set(map(type, value)) <= {kind}:
        raise ManifestError(f"table: {key} is not a list of {kind.__name__}")
    return value


def _spec(row: list[Any]) -> Spec:
    if len(row) != 3 or type(row[1]) is not str or type(row[2]) is not list:
        raise ManifestError("table: a malformed spec")
    form, dtype, shape = row
    if form not in FORMS:
        raise ManifestError(f"table: unknown form {str(form)[:100]!r}; the checkpoint may be of a newer version")
    if not _is_shape(shape):
        raise ManifestError("table: a malformed shape")
    try:
        spec = make_spec(form, dtype, tuple(shape))
    except S3dlioError as error:
        raise type(error)(f"table: {error}") from error
    if spec.framework == "torch" and dtype not in TORCH:
        raise ManifestError(f"table: {form} of {dtype[:100]}")
    if form in _RAW_FORMS and (dtype != "uint8" or len(shape) != 1):
        raise ManifestError(f"table: {form} of {dtype} and {len(shape)} dimensions")
    if form in ("torch-grad", "param") and not dtype.startswith(("float", "bfloat", "complex")):
        raise ManifestError(f"table: a {dtype} that requires grad")
    return spec


def _check_places(column: list[int], offsets: list[int], vocabulary: list[Spec], total: int) -> None:
    if not column:
        return
    largest = max(vocabulary[row].nbytes for row in set(column))
    if largest > total:
        raise ManifestError(f"table: a leaf of {largest} bytes in a shard of {total}")
    sizes = [min(spec.nbytes, total) for spec in vocabulary]  # of leaves that lie elsewhere: any number
    if not 0 <= min(offsets) <= max(offsets) <= total:
        raise ManifestError("table: a leaf outside its shard")
    rows = np.array(column, np.int64)
    starts = np.array(offsets, np.int64)
    stops = starts + np.array(sizes, np.int64)[rows]
    if int(stops.max()) > total:
        raise ManifestError("table: a leaf outside its shard")
    if (starts % np.array([spec.width for spec in vocabulary], np.int64)[rows]).any():
        raise ManifestError("table: a leaf at an offset that is no multiple of its width")
    full = np.flatnonzero(stops > starts)
    order = full[np.argsort(starts[full], kind="stable")]
    if (starts[order][1:] < stops[order][:-1]).any():
        raise ManifestError("table: two leaves overlap")


def select(table: Table, names: str | Iterable[str]) -> Selection:
    """Leaves whose name or alias is one of ``names`` or matches it as a glob (``*`` crosses dots).

    Each leaf lands at a multiple of 64 in a compact memory. Raises ``ConfigError`` for a pattern that nothing matches.
    """
    patterns = [names] if isinstance(names, str) else list(names)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError("names= takes a glob or a list of globs")
    known = {name: index for index, name in enumerate(table.names)} | table.aliases
    chosen: dict[str, int] = {}
    for pattern in patterns:
        if pattern in known:
            chosen[pattern] = known[pattern]
            continue
        matches = re.compile(fnmatch.translate(pattern)).match
        found = [name for name in known if matches(name)]
        if not found:
            raise ConfigError(f"no array is named {pattern!r}{_near(pattern, known)}")
        chosen.update((name, known[name]) for name in found)
    pieces: list[Piece] = []
    landing = 0
    for index in sorted(set(chosen.values()), key=lambda index: table.offsets[index]):
        start, stop = table.range(index)
        pieces.append(Piece(index, start, stop, landing))
        landing += -(-(stop - start) // ALIGNMENT) * ALIGNMENT
    return Selection(chosen, pieces, landing)


def _near(pattern: str, known: Iterable[str]) -> str:
    few = [name for _, name in zip(range(5000), known, strict=False)]
    near = difflib.get_close_matches(pattern, few, n=3, cutoff=0.5)
    return (
        f"; near: {', '.join(near)}" if near else f"; there are {', '.join(few[:3])} ..." if few else "; there is none"
    )
