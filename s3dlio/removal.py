"""Deleting checkpoints on purpose: ``delete`` of a step, ``prune`` to the newest. Nothing else removes a manifest.

Called by ``store``, on request and, with ``keep_last``, after a commit.

The pointers leave first, then the manifest goes, then the shards: a checkpoint is never listed half-deleted, and a
death in between leaves at most shards without a manifest, which ``leftovers`` finds.

Only keys that are exactly a shard or an index of the manifest's own step and rank are removed, and none that a
remaining manifest of that step lists: a hostile manifest cannot take another checkpoint with it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from .catalog import list_ids, read_manifest
from .engine.contract import Control
from .engine.errors import ConfigError, ManifestError, NotFoundError
from .engine.threads import Each
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
    manifests = each(lambda id_: _try_read(control, id_), everything)
    good = [id_ for id_, found in zip(everything, manifests, strict=True) if found is not None and found.is_complete]
    doomed = [id_ for id_ in good[:-keep_last] if id_.name not in protect]
    if doomed:
        _remove(control, doomed, everything, each)
    return doomed


def _remove(control: Control, doomed: list[CheckpointId], everything: list[CheckpointId], each: Each) -> None:
    """Remove the checkpoints ``doomed`` of ``everything`` that the store holds."""
    gone = set(doomed)
    stay = [id_ for id_ in everything if id_ not in gone]
    steps = {id_.step for id_ in doomed}
    keys = _keys_of(control, doomed, each) - _keys_of(control, [id_ for id_ in stay if id_.step in steps], each)
    retreat(control, gone, stay[-1] if stay else None)
    for these in ([id_.manifest_key for id_ in doomed], sorted(keys)):
        for _ in each(control.delete, these):
            pass
    if not stay and (since := list_ids(control)):
        advance(control, since[-1])  # committed while the pointers were removed


def _keys_of(control: Control, ids: Sequence[CheckpointId], each: Each) -> set[str]:
    """Keys of the shards and indexes of these checkpoints."""
    manifests = [*each(lambda id_: _try_read(control, id_, refuse_newer=True), ids)]
    damaged = {id_ for id_, manifest in zip(ids, manifests, strict=True) if manifest is None}
    keys = _keys_under(control, damaged) if damaged else set()
    return keys.union(*(shard_keys(manifest) for manifest in manifests if manifest is not None))


def shard_keys(manifest: Manifest) -> set[str]:
    """Keys that the manifest may call its own: shards that it lists, of its own step and ranks, and their indexes."""
    keys = set()
    for shard in manifest.shards:
        name = parse_shard_key(shard.key)
        if name is not None and name.id.step == manifest.step and name.rank == shard.rank and not name.index:
            keys |= {shard.key, index_key(shard.key)}
    return keys


def _keys_under(control: Control, ids: Collection[CheckpointId]) -> set[str]:
    """What lies in the folders of ids whose manifests are damaged."""
    names = ((item.key, parse_shard_key(item.key)) for item in control.list(SHARDS))
    return {key for key, name in names if name is not None and name.id in ids}


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
