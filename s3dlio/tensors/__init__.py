"""State trees: from nested containers of arrays to bytes with a table, and back, without pickle.

Owns the public names of this package. Saving: ``flatten`` a state, ``plan_layout`` of it, ``ShardImage`` for its bytes,
``dump_json_pieces`` for tree and table. Loading: ``parse_table``, then ``restore``, or ``select`` and ``restore_named``
for some arrays, or ``plan_into`` for existing ones. Knows nothing of storage, workers or manifests.
"""

from .image import ShardImage
from .into import Into, plan_into
from .jsonpieces import dump_json_pieces, dump_tree
from .layout import Layout, plan_layout
from .leaf import Leaf, Leaves, Spec, Target
from .restore import restore, restore_named
from .table import Piece, Selection, Table, parse_table, select
from .tree import Flattened, flatten

__all__ = [
    "Flattened",
    "Into",
    "Layout",
    "Leaf",
    "Leaves",
    "Piece",
    "Selection",
    "ShardImage",
    "Spec",
    "Table",
    "Target",
    "dump_json_pieces",
    "dump_tree",
    "flatten",
    "parse_table",
    "plan_into",
    "plan_layout",
    "restore",
    "restore_named",
    "select",
]
