"""``restore``: a checkpoint onto the devices of a target, each process reading what its devices hold.

Owns the order (match everything, read in batches, place) and the bound on host memory. Called by users and by
``Checkpointer``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from ...engine.errors import ConfigError
from ...reader import batches
from ...state_reader import StateReader, open_state
from ...store import CheckpointStore
from ...tensors.dtypes import element, numpy_dtype
from ...tensors.leaf import Spec
from .fit import Take, match
from .placing import Misfit, check_dtype, on_default_device
from .trees import stored_leaves, target_leaves

_BATCH = 1 << 30  # bytes in host memory at a time, or one leaf: devices are filled while the host holds little


def restore(store: CheckpointStore, target: Any = None, step: int | None = None, *, rank: int | None = None) -> Any:
    """The state of the newest checkpoint, or of ``step``'s newest save, as ``target`` wants it.

    ``target``: any pytree, of ``jax.ShapeDtypeStruct`` (with a ``sharding``, or for the default device), arrays of JAX
    (whose sharding it takes; their values do not matter, they may be donated), arrays of NumPy, numbers, strings. The
    result has its structure, and every process reads only what its own devices hold. Stored named tuples, dataclasses
    and other nodes match by field or key, lists and tuples by position. Nothing is cast, dropped or left as it was:
    ``ConfigError`` lists all leaves that are missing, extra, of another shape or dtype, before anything is read.

    ``rank``: whose own values, of a checkpoint of several ranks, as in ``CheckpointStore.load``.

    Without a target: the stored containers (other nodes than dicts, lists and tuples as dicts by field), with arrays of
    JAX whole on the default device and everything else as it was saved; ``store.load()`` gives them as NumPy arrays.
    """
    with store._open_agreed(step, None, "auto") as (manifest, reader, own):
        state = open_state(manifest, reader, own if rank is None else rank)
        if target is None:
            return _whole(state)
        leaves, treedef = target_leaves(target)
        takes = match(stored_leaves(state.tree, state.specs), state.specs, leaves)
        made: list[Any] = [None] * len(takes)
        for batch in _batches(takes, state.specs):
            for place, value in _read(state, [(place, takes[place]) for place in batch]):
                made[place] = value
    return jax.tree_util.tree_unflatten(treedef, made)


def _read(state: StateReader, takes: list[tuple[int, Take]]) -> Iterator[tuple[int, Any]]:
    """The leaves of a batch, with their places."""
    memory = [(place, take, [state.memory(take.index, box) for box in take.boxes]) for place, take in takes]
    state.read(each for _, _, reads in memory for each in reads)
    for place, take, reads in memory:
        yield place, take.make({each.box: state.array(each) for each in reads})


def _batches(takes: list[Take], specs: list[Spec]) -> Iterator[list[int]]:
    """Places of the target, in the order of the shard's bytes, which a chunk's neighbours share."""

    def nbytes(place: int) -> int:
        elements = sum(box.count for box in takes[place].boxes)
        return elements and elements * element(specs[takes[place].index].dtype).size

    order = sorted(range(len(takes)), key=lambda place: _position(takes[place], specs))
    return batches(order, nbytes, _BATCH)


def _position(take: Take, specs: list[Spec]) -> tuple[int, int]:
    return (-specs[take.index].width, take.index) if take.boxes else (0, 0)


def _whole(state: StateReader) -> Any:
    problems = []
    for name, spec in zip(state.names, state.specs, strict=True):
        try:
            if spec.framework == "jax":
                check_dtype(numpy_dtype(spec.dtype))
        except Misfit as misfit:
            problems.append(f"{name}: {misfit}")
    if problems:
        text = "\n  ".join(problems)
        raise ConfigError(f"not all arrays can be arrays of JAX here (store.load() gives NumPy's):\n  {text}")
    return state.whole(lambda array, spec: on_default_device(array, spec.form == "jax-weak"))
