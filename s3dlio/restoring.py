"""From the shards of a checkpoint back to a state: whole, in place, or some arrays.

Owns the three ways of ``CheckpointStore.load``, which calls it; ``state_reader`` brings verified bytes, ``tensors``
gives them shape. ``rank`` says whose state or payload, where several ranks have saved; ``None``, what is the same for
all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .engine.errors import ConfigError
from .manifest import Manifest, shard_of
from .reader import ShardReader
from .state_reader import StateReader, open_shard, state_of


def load_whole(reader: ShardReader, manifest: Manifest, rank: int | None) -> Any:
    """The state, its arrays views of one memory; for a payload the bytes."""
    first = open_shard(reader, shard_of(manifest, 0 if rank is None else rank))
    if first.table is None:
        return reader.whole(shard_of(manifest, rank), first.index)
    state = state_of(manifest, reader, first, rank)
    state.require_shared()
    return state.whole()


def load_into(reader: ShardReader, manifest: Manifest, rank: int | None, target: Any) -> Any:
    """Fill the arrays of ``target``; the state with them in place."""
    state = _state(reader, manifest, rank, "into=")
    from .tensors import plan_into

    state.require_shared()
    with state.naming():
        plan = plan_into(state.tree, state.table, target)
    state.fill((each.index, plan.boxes.get(number), each) for number, each in enumerate(plan.targets))
    return plan.finish()


def load_named(reader: ShardReader, manifest: Manifest, rank: int | None, names: str | Iterable[str]) -> dict[str, Any]:
    """The arrays whose names match; only the chunks that hold them are read."""
    state = _state(reader, manifest, rank, "names=")
    from .tensors import restore_named, select

    selection = select(state.table, names)
    landings = selection.landings()
    state.require_shared(landings)
    memory = state.landed(landings.items(), selection.size)
    return restore_named(state.table, selection, memory)


def _state(reader: ShardReader, manifest: Manifest, rank: int | None, what: str) -> StateReader:
    first = open_shard(reader, shard_of(manifest, 0 if rank is None else rank))
    if first.table is None:
        key = first.record.key
        raise ConfigError(f"{key} is a payload of bytes, not a state with names: load it without {what}")
    return state_of(manifest, reader, first, rank)
