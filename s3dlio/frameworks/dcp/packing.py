"""One rank's items as one shard: which tree, which leaves, which bytes.

Pure but for reading the caller's tensors. A shard here is an ordinary state of the store, a dict of items by name:
tensors by their bytes, all else as typed nodes of the tree. Objects come first, so that leaving tensors out leaves
the numbers of their leaves as they are. ``writer`` packs what a plan asks for, ``staging`` all that a rank has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...content import Content, width_runs
from ...engine.errors import UnsupportedError
from ...engine.source import Source
from ...tensors import Flattened, Layout, Leaves, ShardImage, dump_json_pieces, dump_tree, flatten, plan_layout
from ...tensors.layout import moves as layout_moves

Node = Any
Nodes = dict[str, Node]


@dataclass(frozen=True, slots=True)
class Packed:
    """Items laid out as a shard: the tree's ``nodes`` by key, the ``leaves`` with their ``aliases``, the ``layout``.

    ``fixed``: how many leaves, the first ones, are those of objects.
    """

    nodes: Nodes
    leaves: Leaves
    aliases: dict[str, int]
    layout: Layout
    fixed: int

    def place(self, key: str) -> tuple[int, int]:
        """First byte and number of bytes of a tensor in the shard."""
        index = self.nodes[key]
        return self.layout.offsets[index], self.leaves.specs[index].nbytes

    def source(self) -> Source:
        """The shard's bytes, read from the tensors when they are copied."""
        return _Image(self)

    def content(self) -> Content:
        """The shard for ``ShardWriter``."""
        nodes, table = self.nodes, self.layout.table
        return Content(
            self.source(),
            width_runs(self.layout.width_runs),
            lambda: dump_tree({"dict": nodes}),
            lambda: dump_json_pieces(table),
        )

    def without_arrays(self) -> Packed:
        """The same, keeping no array of the caller's alive: for when the bytes were copied."""
        leaves = self.leaves.bare(range(len(self.leaves)))
        return Packed(self.nodes, leaves, self.aliases, self.layout, self.fixed)


def pack(objects: Mapping[str, Any], tensors: Mapping[str, Any]) -> Packed:
    """Lay items out by name; no name is in both.

    ``UnsupportedError``, with the path, for an object that cannot be stored without pickle, or such a tensor.
    """
    try:
        fixed = len(flatten(dict(objects)).leaves)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; or pass pickle=True, to the writer and to the reader") from error
    flat = flatten({**objects, **tensors})
    nodes = flat.tree.get("dict")
    if nodes is None:
        raise UnsupportedError("a name of the state is no valid text: " + repr(next(iter({**objects, **tensors}))))
    for key in tensors:
        if type(nodes[key]) is not int:
            raise UnsupportedError(f"{key}: a sparse tensor cannot be saved through DCP here; store its components")
    return Packed(nodes, flat.leaves, flat.aliases, plan_layout(flat), fixed)


def subset(packed: Packed, keys: Iterable[str]) -> Packed:
    """The items ``keys`` alone; the arrays of all objects stay, in the table at least."""
    wanted = set(keys)
    nodes = {key: node for key, node in packed.nodes.items() if key in wanted}
    kept = {node for node in nodes.values() if type(node) is int}
    order = [index for index in range(len(packed.leaves)) if index < packed.fixed or index in kept]
    number = {old: new for new, old in enumerate(order)}
    nodes = {key: number[node] if type(node) is int else node for key, node in nodes.items()}
    leaves = packed.leaves.bare(order)
    aliases = {name: number[index] for name, index in packed.aliases.items() if index in number}
    return Packed(nodes, leaves, aliases, plan_layout(Flattened({"dict": nodes}, leaves, aliases)), packed.fixed)


def moves(before: Packed, after: Packed) -> Iterator[tuple[int, int, int]]:
    """Where bytes of ``before`` go for ``after``, a subset of it; as ``layout.moves``."""
    kept = _kept(before, after)
    return layout_moves(after.leaves.specs, [before.layout.offsets[index] for index in kept], after.layout)


def _kept(before: Packed, after: Packed) -> list[int]:
    """Index in ``before`` of each leaf of ``after``, by their names, which are unique."""
    numbers = {name: index for index, name in enumerate(before.leaves.names)}
    return [numbers[name] for name in after.leaves.names]


class _Image:
    threads = 1

    def __init__(self, packed: Packed) -> None:
        image = ShardImage(packed.leaves, packed.layout)
        self.total = image.size
        self.fill = image.copy_to
