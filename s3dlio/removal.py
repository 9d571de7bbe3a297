"""Deleting checkpoints on purpose: ``delete`` of a step, ``prune`` to the newest. Nothing else removes a manifest.

Called by ``store``, on request and, with ``keep_last``, after a commit.

The pointers leave first, then the manifest goes, then the shards: a checkpoint is never listed half-deleted, and a
death in between leaves at most shards without a manifest, which ``leftovers`` finds.

Only keys that are exactly a shard or an index of the manifest's own step and rank are removed, and none that a
remaining manifest of that step lists: a hostile manifest cannot take another checkpoint with it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from .catalog import Each, list_ids, read_manifest
from .engine.contract import Control
from .engine.errors import ConfigError, ManifestError, NotFoundError
from .ids import CheckpointId, check_step
from .manifest import MANIFEST_MAX, Manifest, is_newer_format
from .pointer import advance, retreat
from .strategy import SHARDS, index_key, parse_shard_key

_log = logging.getLogger(__name__)


def delete(control: Control, step: int, each: Each = map) -> bool:
    """Remove all saves of ``step``; whether there was one. ``ManifestError``, nothing removed, for a newer format."""
    step = check_step(step)
    everything = list_ids(control)
    doomed = [id_ for id_ in everything if id_.step == step]
    if doomed:
        _remove(control, doomed, everything, each)
    return bool(doomed)


def prune(control: Control, keep_last: int, *, protect: Collection[str] = (), each: Each = map) -> list[CheckpointId]:
    """Remove all but the ``keep_last`` (>= 1) newest readable checkpoints and those whose id names are in ``protect``.

    Returns what was removed, oldest first. A damaged manifest neither counts as kept nor is removed, and older ones go
    only once ``keep_last`` good newer ones were read.
    """
    if type(keep_last) is not int or keep_last < 1:
        raise ConfigError(f"keep_last must be 1 or more, not {keep_last!r}: the latest checkpoint is never pruned")
    everything = list_ids(control)
    kept = 0
    doomed: list[CheckpointId] = []
    for id_ in reversed(everything):
        manifest = _try_read(control, id_)
        if manifest is None or not manifest.is_complete:
            continue
        if kept >= keep_last and id_.name not in protect:
            doomed.insert(0, id_)
        kept += 1
    if doomed:
        _remove(control, doomed, everything, each)
    return doomed


def _remove(control: Control, doomed: list[CheckpointId], everything: list[CheckpointId], each: Each) -> None:
    """Remove the checkpoints ``doomed`` of ``everything`` that the store holds."""
    gone = set(doomed)
    stay = [id_ for id_ in everything if id_ not in gone]
    keys = _keys_of(control, doomed)
    for step in {id_.step for id_ in doomed}:
        beside = [id_ for id_ in stay if id_.step == step]
        keys -= _keys_of(control, beside)
    retreat(control, gone, stay[-1] if stay else None)
    for id_ in doomed:
        control.delete(id_.manifest_key)
    for _ in each(control.delete, sorted(keys)):
        pass
    if not stay and (since := list_ids(control)):
        advance(control, since[-1])  # committed while the pointers were removed


def _keys_of(control: Control, ids: Iterable[CheckpointId]) -> set[str]:
    """Keys of the shards and indexes of these checkpoints."""
    keys: set[str] = set()
    for id_ in ids:
        manifest = _try_read(control, id_, refuse_newer=True)
        keys |= shard_keys(manifest) if manifest is not None else _keys_under(control, id_)
    return keys


def shard_keys(manifest: Manifest) -> set[str]:
    """Keys that the manifest may call its own: shards that it lists, of its own step and ranks, and their indexes."""
    keys = set()
    for shard in manifest.shards:
        name = parse_shard_key(shard.key)
        if name is not None and name.id.step == manifest.step and name.rank == shard.rank and not name.index:
            keys |= {shard.key, index_key(shard.key)}
    return keys


def _keys_under(control: Control, id_: CheckpointId) -> set[str]:
    """What lies in the folders of an id whose manifest is damaged."""
    names = ((item.key, parse_shard_key(item.key)) for item in control.list(SHARDS))
    return {key for key, name in names if name is not None and name.id == id_}


def _try_read(control: Control, id_: CheckpointId, *, refuse_newer: bool = False) -> Manifest | None:
    """The manifest, or ``None`` where it is damaged or gone; with ``refuse_newer`` a newer format raises."""
    try:
        return read_manifest(control, id_)
    except NotFoundError:
        return None
    except ManifestError as error:
        if refuse_newer and is_newer_format(control.read(id_.manifest_key, limit=MANIFEST_MAX)[0]):
            raise
        _log.warning("%s", error)
        return None
