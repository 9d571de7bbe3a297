"""The shards of all ranks as one state: where each leaf, or each part of it, lies.

Pure: from the trees and tables of the shards to one tree, one set of specs and the places of their bytes. Reads
nothing. ``state_reader`` opens the shards and reads by what this says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .engine.errors import ConfigError, ManifestError
from .tensors import Table
from .tensors.box import Box, tiles
from .tensors.dtypes import element
from .tensors.into import open_node
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

    A leaf that lies in one piece stands in ``shards`` and ``offsets``; one that lies in several, in ``pieces``. Seen
    from no rank: ``own`` are the leaves that each rank has its own of, ``values`` the paths of such values of the tree;
    those of rank 0 stand in their place.
    """

    tree: Node
    names: list[str]
    specs: list[Spec]
    aliases: dict[str, int]
    shards: Sequence[int]
    offsets: Sequence[int]
    pieces: Mapping[int, tuple[Place, ...]]
    own: frozenset[int] = frozenset()
    values: tuple[str, ...] = ()

    def require_shared(self, indices: Iterable[int] | None = None) -> None:
        """``ConfigError`` listing what of these leaves, or of the whole state, each rank has its own of."""
        own = [self.names[index] for index in sorted(self.own if indices is None else self.own.intersection(indices))]
        if indices is None:
            own += self.values
        if own:
            shown = ", ".join(own[:_MOST_SHOWN])
            more = f" and {len(own) - _MOST_SHOWN} more" if len(own) > _MOST_SHOWN else ""
            raise ConfigError(
                f"each rank has saved its own {shown}{more}: pass rank= to say whose state you want, or names= of what "
                "all have in common"
            )

    def places(self, index: int) -> tuple[Place, ...]:
        """Where a leaf lies."""
        found = self.pieces.get(index)
        if found is not None:
            return found
        return (Place(self.shards[index], self.offsets[index], Box.whole(self.specs[index].shape)),)


def merge(trees: Sequence[Node], tables: Sequence[Table], rank: int | None) -> Merged:
    """The state that ``rank`` sees of all ranks' shards, or that any process sees (``None``).

    ``ManifestError`` if the tables do not belong together.
    """
    base = tables[rank or 0]
    _check_alike(tables)
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
        if not tiles(specs[index].shape, (piece.box for piece in pieces[index])):
            raise ManifestError(f"the parts of {base.names[index]} in all shards do not make up the array")
    for index, shard in enumerate(shards):
        if index not in pieces and (offsets[index] == ELSEWHERE or tables[shard].specs[index] != specs[index]):
            raise ManifestError(f"{base.names[index]} is not in the shard of rank {shard}, which is said to have it")
    own: list[int] = []
    values: list[str] = []
    if rank is None:
        own = [index for index, owner in enumerate(owners) if owner is None and index not in pieces]
        values = _own_values(trees)
    return Merged(trees[here], base.names, specs, base.aliases, shards, offsets, pieces, frozenset(own), tuple(values))


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


def _own_values(trees: Sequence[Node]) -> list[str]:
    """Where the values of the trees differ, as paths."""
    found: dict[str, None] = {}
    try:
        for tree in trees[1:]:
            found.update(dict.fromkeys(_differences(trees[0], tree, "state")))
    except RecursionError:
        raise ManifestError("tree: too many levels") from None
    return list(found)


def _differences(one: Node, other: Node, path: str) -> Iterator[str]:
    if one == other:
        return
    left, right = open_node(one), open_node(other)
    if left is None or right is None or [key for key, _ in left[1]] != [key for key, _ in right[1]]:
        yield path
        return
    below = False
    for (key, child), (_, counterpart) in zip(left[1], right[1], strict=True):
        for difference in _differences(child, counterpart, f"{path}[{key!r}]"):
            below = True
            yield difference
    if not below:  # a container of another kind, or other metadata of a state dict
        yield path
