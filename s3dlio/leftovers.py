"""What saves that never committed left behind: shards without a manifest, and open uploads.

``find_leftovers`` looks, ``remove_leftovers`` acts; nothing runs by itself, only ``CheckpointStore.cleanup``. A save in
progress looks just like a dead one, so both the age in the store and the order protect it: only what was last written
``min_age`` ago, by a save that started before the newest committed checkpoint, is a leftover. An upload to a pointer,
which belongs to no one save, is judged by its age alone: whoever loses it moves a hint no further.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from .catalog import Each, list_ids, read_manifest
from .engine.contract import Control, ObjectInfo, UploadInfo
from .engine.errors import ConfigError, ManifestError, NotFoundError
from .ids import CheckpointId
from .manifest import Manifest
from .pointer import POINTERS
from .removal import shard_keys
from .strategy import SHARDS, parse_shard_key

DAY = 86400.0

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


def find_leftovers(control: Control, *, min_age: float = DAY, now: float | None = None) -> Leftovers:
    """Leftovers last written ``min_age`` seconds or longer before ``now`` (seconds since 1970; the clock by default).

    Raises ``ManifestError`` while a damaged manifest is there: which shards are its own cannot be known.
    """
    if not min_age >= 0:
        raise ConfigError(f"min_age must be 0 seconds or more, not {min_age!r}")
    before = (time.time() if now is None else now) - min_age
    # The shards are listed before the manifests: what commits in between is then seen as committed.
    objects = [item for item in control.list(SHARDS) if item.modified <= before]
    uploads = [item for item in control.uploads() if item.started <= before]
    ids = list_ids(control)
    owned: set[str] = set()
    newest: CheckpointId | None = None
    for id_ in ids:
        manifest = _read(control, id_)
        if manifest is not None:
            owned |= _keys(manifest)
            newest = id_ if manifest.is_complete else newest
    if newest is None:
        return Leftovers((), ())
    return Leftovers(
        tuple(item for item in objects if item.key not in owned and _is_older(item.key, newest)),
        tuple(item for item in uploads if item.key in POINTERS or _is_older(item.key, newest)),
    )


def remove_leftovers(control: Control, leftovers: Leftovers, each: Each = map) -> int:
    """Abort the uploads and delete the objects, unless a manifest has come to list them since; how many are gone.

    Azure cannot drop what was uploaded and never committed, and lets it expire within a week: that is logged.
    """
    for upload in leftovers.uploads:
        control.abort(upload.key, upload.upload)
    asked = {(upload.key, upload.upload) for upload in leftovers.uploads}
    kept = len(asked & {(upload.key, upload.upload) for upload in control.uploads()}) if asked else 0
    if kept:
        _log.warning("%d unfinished uploads cannot be dropped here: the store lets them expire", kept)
    owned: set[str] = set()
    for id_ in list_ids(control):
        manifest = _read(control, id_)
        owned |= set() if manifest is None else _keys(manifest)
    keys = [item.key for item in leftovers.objects if item.key not in owned]
    for _ in each(control.delete, keys):
        pass
    return len(asked) - kept + len(keys)


def _read(control: Control, id_: CheckpointId) -> Manifest | None:
    try:
        return read_manifest(control, id_)
    except NotFoundError:  # deleted since the listing
        return None
    except ManifestError as error:
        raise ManifestError(f"{error}; delete this checkpoint ({id_.name}) before cleaning up") from error


def _keys(manifest: Manifest) -> set[str]:
    return shard_keys(manifest) | {shard.key for shard in manifest.shards}


def _is_older(key: str, newest: CheckpointId) -> bool:
    name = parse_shard_key(key)
    id_ = CheckpointId.of_manifest_key(key) if name is None else name.id
    return id_ is not None and id_.order < newest.order
