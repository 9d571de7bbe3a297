"""The shards of all ranks as one state: where each leaf, or each part of it, lies.

Pure: from the trees and tables of the shards to one tree, one set of specs and the places of their bytes. Reads
nothing. ``state_reader`` opens the shards and reads by what this says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .engine.errors import ConfigError, ManifestError
from .tensors import Table
from .tensors.box import Box
from .tensors.dtypes import element
from .tensors.leaf import Node, Spec, make_spec
from .tensors.table import ELSEWHERE

_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of one shard, from ``offset`` on, that are the image of ``box`` of a leaf."""

    shard: int
    offset: int
    box: Box


@dataclass(frozen=True, slots=True)
class Merged:
    """One state: ``tree``, columns over the leaves as in ``Table``, and where each leaf lies, by index.

    A leaf that lies in one piece stands in ``shards`` and ``offsets``; one that lies in several, in ``pieces``.
    """

    tree: Node
    names: list[str]
    specs: list[Spec]
    aliases: dict[str, int]
    shards: Sequence[int]
    offsets: Sequence[int]
    pieces: Mapping[int, tuple[Place, ...]]

    def places(self, index: int) -> tuple[Place, ...]:
        """Where a leaf lies."""
        found = self.pieces.get(index)
        if found is not None:
            return found
        return (Place(self.shards[index], self.offsets[index], Box.whole(self.specs[index].shape)),)


def merge(trees: Sequence[Node], tables: Sequence[Table], rank: int | None) -> Merged:
    """The state that ``rank`` sees of all ranks' shards, or that any process sees (``None``).

    Raises ``ConfigError`` listing what each rank has of its own, if no rank is given; ``ManifestError`` if the tables
    do not belong together.
    """
    base = tables[rank or 0]
    _check_alike(tables)
    if rank is None:
        own = [*_own_leaves(base), *_own_nodes(trees)]
        if own:
            shown = ", ".join(own[:_MOST_SHOWN]) + (f" and {len(own) - _MOST_SHOWN} more" if len(own) > 20 else "")
            raise ConfigError(
                f"each of the {len(tables)} ranks has saved its own {shown}: pass rank= to say whose state you want"
            )
    here = rank or 0
    owners = base.owners or [None] * len(base)
    shards = [here if owner is None else owner for owner in owners]
    if shards and max(shards) >= len(tables):
        raise ManifestError(f"a leaf is said to lie in the shard of rank {max(shards)} of {len(tables)}")
    offsets = [tables[shard].offsets[index] for index, shard in enumerate(shards)]
    specs = list(base.specs)
    pieces = {}
    for index in base.parts:
        specs[index] = make_spec(base.specs[index].form, base.specs[index].dtype, base.parts[index].shape)
        pieces[index] = tuple(_pieces(tables, index, specs[index]))
    for index, shard in enumerate(shards):
        if index not in pieces and (offsets[index] == ELSEWHERE or tables[shard].specs[index] != specs[index]):
            raise ManifestError(f"{base.names[index]} is not in the shard of rank {shard}, which is said to have it")
    return Merged(trees[here], base.names, specs, base.aliases, shards, offsets, pieces)


def of_one(tree: Node, table: Table) -> Merged:
    """The state of one rank that saved alone."""
    if table.parts or (table.owners is not None and ELSEWHERE in table.offsets):
        raise ManifestError("a part of a state that other ranks hold the rest of")
    return Merged(tree, table.names, table.specs, table.aliases, [0] * len(table), table.offsets, {})


def _check_alike(tables: Sequence[Table]) -> None:
    first = tables[0]
    for rank, table in enumerate(tables):
        if table.names != first.names or table.owners != first.owners or table.parts.keys() != first.parts.keys():
            raise ManifestError(f"the shards of rank 0 and rank {rank} are not of one state")


def _pieces(tables: Sequence[Table], index: int, whole: Spec) -> Iterator[Place]:
    size = element(whole.dtype).size
    seen: set[Box] = set()
    for shard, table in enumerate(tables):
        if table.offsets[index] == ELSEWHERE:  # a replica of what another rank has
            continue
        spec, part = table.specs[index], table.parts[index]
        if (spec.form, spec.dtype, part.shape) != (whole.form, whole.dtype, whole.shape):
            raise ManifestError(f"{table.names[index]} is another array on rank {shard} than on rank 0")
        offset = table.offsets[index]
        for box in part.boxes:
            if box.count and box not in seen:
                yield Place(shard, offset, box)
                seen.add(box)
            offset += box.count * size


def _own_leaves(table: Table) -> Iterator[str]:
    owners = table.owners or []
    return (table.names[index] for index, owner in enumerate(owners) if owner is None and index not in table.parts)


def _own_nodes(trees: Sequence[Node]) -> list[str]:
    """Where the values of the trees differ, as paths."""
    found: dict[str, None] = {}
    for tree in trees[1:]:
        found.update(dict.fromkeys(_differences(trees[0], tree, "state")))
    return list(found)


def _differences(one: Node, other: Node, path: str) -> Iterator[str]:
    if one == other and type(one) is type(other):
        return
    if type(one) is dict and type(other) is dict and one.keys() == other.keys():
        for key in one:
            inner = path if key in ("dict", "ordered", "tuple", "items") else f"{path}[{key!r}]"
            yield from _differences(one[key], other[key], inner)
    elif type(one) is list and type(other) is list and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(left, right, f"{path}[{number}]")
    else:
        yield path
