"""One stored object by its full URI, as the published package names it, without opening its store first.

Owns the way from a URI to a store and a key, and from a shard's key to the manifest that lists it. ``compat`` reads
with it.
"""

from __future__ import annotations

from . import catalog
from .engine.contract import Control
from .engine.errors import CheckpointNotFoundError, ConfigError, CorruptError, ManifestError, NotFoundError
from .records import ShardRecord
from .strategy import SHARDS, parse_shard_key

_SHARDS = "/" + SHARDS


def split_shard_uri(uri: str) -> tuple[str, str]:
    """URI of the store and key of the shard; ``ConfigError`` for what is no shard of a checkpoint."""
    base, found, rest = _text(uri).rpartition(_SHARDS)
    name = parse_shard_key(SHARDS + rest)
    if found and name is not None and not name.index:
        return base + "/", SHARDS + rest
    raise ConfigError(
        f"{uri!r} is no shard of a checkpoint, so no manifest tells whether it is whole: a shard's URI is the store's, "
        "/, and the key in its record; pass validate_integrity=False to read any object unverified"
    )


def split_object_uri(uri: str) -> tuple[str, str]:
    """URI of the folder and name of the object in it; ``ConfigError`` for what names no object."""
    base, found, name = _text(uri).rpartition("/")
    if not found or not name or base.endswith(":/"):
        raise ConfigError(f"{uri!r} names no object: write file:///folder/name")
    return base + "/", name


def _text(uri: object) -> str:
    if isinstance(uri, str):
        return uri
    raise ConfigError(f"a URI must be a string such as file:///folder/name, not {type(uri).__name__}")


def listed_record(control: Control, key: str) -> ShardRecord:
    """The record of a shard in the newest manifest that lists it.

    Raises ``CheckpointNotFoundError`` for a shard that no manifest lists, ``CorruptError`` for one that was recorded
    without a checksum, ``ManifestError`` if a manifest of its step is damaged and no other lists it.
    """
    name = parse_shard_key(key)
    ids = [] if name is None else catalog.list_ids(control, name.id.step)
    damaged: ManifestError | None = None
    for id_ in reversed(ids):
        try:
            manifest = catalog.read_manifest(control, id_)
        except NotFoundError:  # deleted since the listing
            continue
        except ManifestError as error:
            damaged = error
            continue
        record = next((shard for shard in manifest.shards if shard.key == key), None)
        if record is not None and manifest.is_complete:
            if record.checksum is None:
                raise CorruptError(f"{id_.manifest_key} recorded no checksum of {key}: it cannot be verified")
            return record
    if damaged is not None:
        raise damaged
    raise CheckpointNotFoundError(f"no manifest lists {key}: its checkpoint was never committed, or was deleted")
