"""From a shard back to a state: whole, in place, or some arrays.

Owns the three ways of ``CheckpointStore.load``, which calls it; the reader brings verified bytes, ``tensors`` gives
them shape.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .engine.errors import ConfigError, ManifestError
from .engine.source import buffer_address
from .index import ShardIndex
from .reader import ShardReader, Wanted, copy_to_memory
from .records import ShardRecord


def load_whole(reader: ShardReader, record: ShardRecord) -> Any:
    """The state, its arrays views of one memory; for a payload the bytes."""
    index = reader.index(record)
    memory = reader.whole(record, index)
    if index is None or index.table is None:  # the tree of the state `None` is None
        return memory
    from .tensors import parse_table, restore

    with _naming(record):
        return restore(index.tree, parse_table(index.table, index.raw_size), memory)


def load_into(reader: ShardReader, record: ShardRecord, target: Any) -> Any:
    """Fill the arrays of ``target``; the state with them in place."""
    index = _state_index(reader, record, "into=")
    from .tensors import parse_table, plan_into

    with _naming(record):
        table = parse_table(index.table, index.raw_size)
        plan = plan_into(index.tree, table, target)
    wanted = []
    for each in plan.targets:
        start, stop = table.range(each.index)
        if stop > start:
            wanted.append(Wanted(start, stop, each.copy_from))
    reader.pieces(record, index, wanted)
    return plan.finish()


def load_named(reader: ShardReader, record: ShardRecord, names: str | Iterable[str]) -> dict[str, Any]:
    """The arrays whose names match; only the chunks that hold them are read."""
    index = _state_index(reader, record, "names=")
    from .tensors import parse_table, restore_named, select

    with _naming(record):
        table = parse_table(index.table, index.raw_size)
    selection = select(table, names)
    memory = mmap.mmap(-1, max(selection.size, 1))
    base = buffer_address(memoryview(memory))
    wanted = [
        Wanted(piece.start, piece.stop, copy_to_memory(base + piece.landing))
        for piece in selection.pieces
        if piece.stop > piece.start
    ]
    reader.pieces(record, index, wanted)
    return restore_named(table, selection, memory)


def _state_index(reader: ShardReader, record: ShardRecord, what: str) -> ShardIndex:
    index = reader.index(record)
    if index is None or index.table is None:
        raise ConfigError(f"{record.key} is a payload of bytes, not a state with names: load it without {what}")
    return index


@contextmanager
def _naming(record: ShardRecord) -> Iterator[None]:
    """Say whose tree or table is malformed."""
    try:
        yield
    except ManifestError as error:
        key = record.key if record.index is None else record.index.key
        raise ManifestError(f"{key}: {error}; load another checkpoint") from error
