"""What saves that never committed left behind: shards without a manifest, open uploads, and probes of the store.

``find_leftovers`` looks, ``remove_leftovers`` acts; nothing runs by itself, only ``CheckpointStore.cleanup``. A save in
progress looks just like a dead one, so both the age in the store and the order protect it: only what was last written
``min_age`` ago, by a save that started before the newest committed checkpoint, is a leftover. What belongs to no one
save is judged by its age alone: an upload to a pointer, since whoever loses it moves a hint no further, what a process
left that was killed while it asked the store what it can do (``PROBE``), and the words that ranks have left for each
other in the store (``COORDINATION``). Who is asking now must find there what it stored, so these are never taken before
ten minutes have passed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from .catalog import list_ids, read_manifest
from .coordination.store_board import COORDINATION
from .engine.contract import PROBE, Control, ObjectInfo, UploadInfo
from .engine.errors import ConfigError, ManifestError, NotFoundError
from .engine.threads import Each
from .ids import CheckpointId
from .manifest import Manifest
from .pointer import POINTERS
from .removal import shard_keys
from .strategy import SHARDS, parse_shard_key

T = TypeVar("T")
DAY = 86400.0
_ASKING = 600.0
"""Seconds that no process asks a store: after five minutes without progress a worker is killed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Objects and uploads of saves that never committed."""

    objects: tuple[ObjectInfo, ...]
    uploads: tuple[UploadInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of the objects."""
        return sum(item.size for item in self.objects)


def find_leftovers(control: Control, *, min_age: float = DAY, now: float | None = None, each: Each = map) -> Leftovers:
    """Leftovers last written ``min_age`` seconds or longer before ``now`` (seconds since 1970; the clock by default).

    Raises ``ManifestError`` while a damaged manifest is there: which shards are its own cannot be known.
    """
    if not min_age >= 0:
        raise ConfigError(f"min_age must be 0 seconds or more, not {min_age!r}")
    now = time.time() if now is None else now
    before, asked_before = now - min_age, now - max(min_age, _ASKING)

    def limit(key: str) -> float:
        return asked_before if key.startswith((PROBE, COORDINATION)) else before

    # The shards are listed before the manifests: what commits in between is then seen as committed.
    listed = each(lambda prefix: list(control.list(prefix)), (SHARDS, PROBE, COORDINATION))
    stored = [item for items in listed for item in items if item.modified <= limit(item.key)]
    begun = [item for item in control.uploads() if item.started <= limit(item.key)]
    manifests = _manifests(control, each)
    newest = max((id_ for id_, manifest in manifests if manifest.is_complete), key=lambda id_: id_.order, default=None)
    owned = _owned(manifests)
    lost = [item for item in begun if _is_lost(item.key, newest)]
    # Listings tell when an upload began; that of a long save may receive bytes still.
    written = each(lambda item: control.written(item.key, item.upload), lost)
    return Leftovers(
        tuple(item for item in stored if item.key not in owned and _is_lost(item.key, newest)),
        tuple(item for item, at in zip(lost, written, strict=True) if at <= limit(item.key)),
    )


def remove_leftovers(control: Control, leftovers: Leftovers, each: Each = map) -> int:
    """Abort the uploads and delete the objects, unless a manifest has come to list them since; how many are gone.

    Azure cannot drop what was uploaded and never committed, and lets it expire within a week: that is logged.
    """
    asked = {(upload.key, upload.upload) for upload in leftovers.uploads}
    _do(each, lambda upload: control.abort(*upload), sorted(asked))
    kept = len(asked & {(upload.key, upload.upload) for upload in control.uploads()}) if asked else 0
    if kept:
        _log.warning("%d unfinished uploads cannot be dropped here: the store lets them expire", kept)
    owned = _owned(_manifests(control, each))
    keys = [item.key for item in leftovers.objects if item.key not in owned]
    _do(each, control.delete, keys)
    return len(asked) - kept + len(keys)


def _do(each: Each, action: Callable[[T], None], items: Iterable[T]) -> None:
    for _ in each(action, items):
        pass


def _manifests(control: Control, each: Each) -> list[tuple[CheckpointId, Manifest]]:
    """All manifests, but for those that are deleted meanwhile."""
    ids = list_ids(control)
    read = each(lambda id_: _read(control, id_), ids)
    return [(id_, manifest) for id_, manifest in zip(ids, read, strict=True) if manifest is not None]


def _owned(manifests: list[tuple[CheckpointId, Manifest]]) -> set[str]:
    """The keys that belong to checkpoints."""
    return {key for _, manifest in manifests for key in shard_keys(manifest) | {s.key for s in manifest.shards}}


def _read(control: Control, id_: CheckpointId) -> Manifest | None:
    try:
        return read_manifest(control, id_)
    except NotFoundError:  # deleted since the listing
        return None
    except ManifestError as error:
        raise ManifestError(f"{error}; delete this checkpoint ({id_.name}) before cleaning up") from error


def _is_lost(key: str, newest: CheckpointId | None) -> bool:
    """Whether what is old enough is a leftover: of no one save, or of one older than the checkpoint ``newest``."""
    if key in POINTERS or key.startswith((PROBE, COORDINATION)):
        return True
    name = parse_shard_key(key)
    id_ = CheckpointId.of_manifest_key(key) if name is None else name.id
    return id_ is not None and newest is not None and id_.order < newest.order
