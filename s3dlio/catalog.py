"""Which checkpoints a store holds: listing, finding, and the latest. Reads only; ``store`` and all that removes ask it.

The manifests are the truth. The latest is found by one listing of ``manifests/`` (names alone give the order) and one
read; the pointers are for other programs and are never consulted, so a torn or stale one cannot matter.

A manifest is stored whole or not at all, so one that cannot be read is damage, not a save in progress: asking for that
checkpoint raises ``ManifestError`` with its key, and so does asking for the latest if it is the newest. Going silently
back to an older one would throw training away unseen; the error says how to choose it.
"""

from __future__ import annotations

import logging

from .engine.contract import Control
from .engine.errors import CheckpointNotFoundError, ConfigError, ManifestError, NotFoundError, StorageError
from .engine.threads import Each
from .ids import MANIFESTS, CheckpointId, check_step
from .info import UNREADABLE, CheckpointInfo
from .manifest import MANIFEST_MAX, Manifest

_log = logging.getLogger(__name__)


def list_ids(control: Control, step: int | None = None) -> list[CheckpointId]:
    """Ids of all manifests, or those of one step, in order of saving. Names alone: nothing is read."""
    prefix = MANIFESTS if step is None else f"{MANIFESTS}ckpt-{step}-"
    ids = (CheckpointId.of_manifest_key(item.key) for item in control.list(prefix))
    return sorted((id_ for id_ in ids if id_ is not None), key=lambda id_: id_.order)


def read_manifest(control: Control, id_: CheckpointId) -> Manifest:
    """One manifest. ``NotFoundError`` if it is gone, ``ManifestError`` if it is damaged or of a newer format."""
    key = id_.manifest_key
    try:
        data, _ = control.read(key, limit=MANIFEST_MAX)
    except StorageError as error:
        if error.transient or control.head(key).size <= MANIFEST_MAX:
            raise
        raise ManifestError(f"{key} is larger than a manifest can be ({MANIFEST_MAX} bytes)") from error
    return Manifest.decode(data, key)


def resolve_latest(control: Control, ids: list[CheckpointId] | None = None) -> Manifest | None:
    """The newest committed checkpoint, by (save-start time, step); ``None`` for a store without one.

    ``ids``: the result of ``list_ids`` where it is known already. Raises ``ManifestError`` if the newest manifest is
    damaged.
    """
    return _newest(control, list_ids(control) if ids is None else ids)


def find(control: Control, step: int) -> Manifest:
    """The newest save of ``step``; ``CheckpointNotFoundError`` if there is none."""
    manifest = _newest(control, list_ids(control, step))
    if manifest is None:
        steps = sorted({id_.step for id_ in list_ids(control)})
        known = ", ".join(map(str, steps[-10:])) or "none"
        raise CheckpointNotFoundError(f"no committed checkpoint of step {step}; the newest steps there: {known}")
    return manifest


def resolve(control: Control, uri: str, step: int | None = None, id: str | None = None) -> Manifest:
    """The newest committed checkpoint of the store at ``uri``, or ``step``'s newest save, or the one of this ``id``.

    ``CheckpointNotFoundError`` if there is none, ``ConfigError`` for what is no step or no id of this step.
    """
    if id is not None:
        return _by_id(control, uri, step, id)
    if step is not None:
        return find(control, check_step(step))
    manifest = resolve_latest(control)
    if manifest is None:
        raise CheckpointNotFoundError(f"{uri} holds no committed checkpoint")
    return manifest


def _by_id(control: Control, uri: str, step: int | None, id: str) -> Manifest:
    found = CheckpointId.parse(id)
    if found is None or step not in (None, found.step):
        raise ConfigError(f"id={id!r} is not the id of a checkpoint{'' if step is None else f' of step {step}'}")
    try:
        return read_manifest(control, found)
    except NotFoundError as error:
        raise CheckpointNotFoundError(f"{uri} holds no committed checkpoint {id}") from error


def list_checkpoints(control: Control, each: Each = map) -> list[CheckpointInfo]:
    """Every checkpoint in order of saving; a damaged manifest is listed as ``unreadable`` and logged, not left out."""
    found = each(lambda id_: _describe(control, id_), list_ids(control))
    return [info for info in found if info is not None]


def _newest(control: Control, ids: list[CheckpointId]) -> Manifest | None:
    for id_ in reversed(ids):
        try:
            manifest = read_manifest(control, id_)
        except NotFoundError:  # deleted since the listing
            continue
        except ManifestError as error:
            raise ManifestError(f"{error}; name another step to load, or delete this one ({id_.name})") from error
        if manifest.is_complete:
            return manifest
        _log.info("%s has status %r: not taken for a checkpoint", id_.manifest_key, manifest.status)
    return None


def _describe(control: Control, id_: CheckpointId) -> CheckpointInfo | None:
    try:
        return CheckpointInfo.of(read_manifest(control, id_))
    except NotFoundError:  # deleted since the listing
        return None
    except ManifestError as error:
        _log.warning("%s", error)
        return CheckpointInfo(
            step=id_.step,
            epoch=0,
            framework="",
            timestamp=id_.timestamp,
            id=id_.name,
            world_size=0,
            status=UNREADABLE,
            total_size=0,
            raw_size=None,
            manifest_key=id_.manifest_key,
        )
