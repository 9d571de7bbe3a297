"""The table of a shard: where each leaf lies and what it means, in columns.

Owns the JSON form (``as_json``), its validation (``parse_table``: it comes from untrusted storage) and the choice of
leaves by name (``select``). Never touches the shard's bytes. ``layout`` makes it, ``s3dlio.restoring`` parses it; its
JSON is described in ``s3dlio/FORMAT.md`` (Table).
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, ManifestError, S3dlioError
from .dtypes import TORCH
from .leaf import FORMS, MAX_DIMS, Leaves, Spec, make_spec

ALIGNMENT = 64
_MAX_SIDE = (1 << 63) - 1
_RAW_FORMS = ("bytes", "bytearray", "str")


@dataclass(frozen=True, slots=True)
class Table:
    """Columns over the leaves, by index. ``offsets`` are bytes from the start of the shard, which has ``total``."""

    names: list[str]
    specs: list[Spec]
    offsets: list[int]
    aliases: dict[str, int]
    total: int

    def __len__(self) -> int:
        return len(self.names)

    def range(self, index: int) -> tuple[int, int]:
        """Bytes [start, stop) of a leaf in the shard."""
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


def as_json(leaves: Leaves, offsets: Sequence[int], aliases: dict[str, int]) -> dict[str, Any]:
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
    return {
        "names": list(leaves.names),
        "specs": specs,
        "spec": column,
        "offsets": list(offsets),
        "aliases": dict(aliases),
    }


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
    _check_places(column, offsets, vocabulary, total)
    return Table(names, [vocabulary[row] for row in column], offsets, aliases, total)


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
    if len(shape) > MAX_DIMS or not all(type(side) is int and 0 <= side <= _MAX_SIDE for side in shape):
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
    sizes = [spec.nbytes for spec in vocabulary]
    if max(sizes) > total:
        raise ManifestError(f"table: a leaf of {max(sizes)} bytes in a shard of {total}")
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
