"""Commit: from gathered shard records to a published checkpoint. The only place that creates a manifest.

Called by ``store`` for a state and by ``bytes_level`` for the shards of all ranks; knows no tensors and no pool.

The steps, in this order, so that a death between any two leaves the store as it was or with the checkpoint whole:
1. ``check_records``: the records agree and are complete (pure).
2. ``check_stored``: every object that they list is there and has its size.
3. ``publish``: the manifest is created if absent. From here on the checkpoint exists.
4. the pointers are moved forward, which is only a hint to others and cannot fail the commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from . import fields
from .engine.contract import Control
from .engine.errors import (
    ConfigError,
    CorruptError,
    ManifestError,
    NotFoundError,
    PreconditionError,
    S3dlioError,
)
from .engine.threads import Each
from .ids import STEP_MAX, CheckpointId, check_label, check_step
from .manifest import MANIFEST_MAX, Manifest, check_world
from .pointer import advance
from .records import ShardRecord
from .strategy import check_rank, parse_shard_key

_LIST_FROM = 8  # objects under one prefix from which on a listing (1,000 a request) beats a head for each


@dataclass(frozen=True, slots=True)
class Committed:
    """A published checkpoint; ``pointed``: the pointers name it or a newer one."""

    manifest: Manifest
    manifest_key: str
    pointed: bool


def commit(
    control: Control,
    records: Sequence[ShardRecord],
    *,
    step: int,
    epoch: int,
    framework: str,
    world_size: int,
    user_meta: Any = None,
    label: str | None = None,
    require_checksums: bool = True,
    wall_time: str | None = None,
    each: Each = map,
) -> Committed:
    """Publish the checkpoint made of ``records``, one for each rank, under the id of rank 0's shard.

    ``require_checksums``: false at the bytes level, whose records may come without; ``wall_time``: RFC 3339, now by
    default; ``each``: how the objects are headed and the pointers moved. Committing the same records again
    gives the same checkpoint.

    Raises ``ConfigError`` for arguments, ``ManifestError`` for records that do not belong together, ``NotFoundError``
    and ``CorruptError`` for objects that are missing or of another size, ``PreconditionError`` if the id is taken by
    another checkpoint; then nothing is published.
    """
    manifest = build_manifest(
        records,
        step=step,
        epoch=epoch,
        framework=framework,
        world_size=world_size,
        user_meta=user_meta,
        label=label,
        require_checksums=require_checksums,
        wall_time=wall_time or datetime.now(timezone.utc).isoformat(),
    )
    check_stored(control, manifest.shards, each)
    published = publish(control, manifest)
    key = published.id.manifest_key
    return Committed(published, key, advance(control, published.id, each))


def check_meta(epoch: int, framework: str, user_meta: Any = None, label: str | None = None) -> None:
    """``ConfigError`` if a manifest cannot hold what a user says about a checkpoint: ask before anything is stored."""
    if type(epoch) is not int or not 0 <= epoch <= STEP_MAX:
        raise ConfigError(f"epoch must be an integer of 0 or more, not {epoch!r}")
    if type(framework) is not str or len(framework) > 256 or not framework.isprintable():
        raise ConfigError(f"framework must be at most 256 printable characters, not {framework!r:.80}")
    fields.check_user_meta(user_meta)
    if label is not None:
        check_label(label)


def build_manifest(
    records: Sequence[ShardRecord],
    *,
    step: int,
    epoch: int,
    framework: str,
    world_size: int,
    wall_time: str,
    user_meta: Any = None,
    label: str | None = None,
    require_checksums: bool = True,
) -> Manifest:
    """The manifest of ``records``, all of it checked; pure. Errors as in ``commit``."""
    step = check_step(step)
    check_meta(epoch, framework, user_meta, label)
    check_rank(0, world_size)
    shards = check_records(records, step=step, world_size=world_size, label=label, require_checksums=require_checksums)
    return Manifest(
        step=step,
        epoch=epoch,
        framework=framework,
        wall_time=wall_time,
        world_size=world_size,
        shards=tuple(replace(shard, epoch=epoch, label=None) for shard in shards),
        timestamp=shards[0].timestamp,
        user_meta=fields.check_user_meta(user_meta),
        label=label,
    )


def check_records(
    records: Iterable[ShardRecord],
    *,
    step: int,
    world_size: int,
    label: str | None = None,
    require_checksums: bool = True,
) -> tuple[ShardRecord, ...]:
    """The records in the order of ranks; ``ManifestError``, naming the rank, unless they make one checkpoint; pure."""
    what = f"checkpoint of step {step}"
    # Records are made by writers, but users hand them around as dicts: read each as if it came from outside.
    checked = [ShardRecord.from_dict(record.to_dict()) for record in records]
    for record in checked:
        if record.step != step:
            raise ManifestError(f"{what}: rank {record.rank} hands in metadata of step {record.step}")
        if parse_shard_key(record.key) is None:
            raise ManifestError(f"{what}: rank {record.rank} names {record.key!r}, which is no shard of a checkpoint")
        if require_checksums and record.checksum is None:
            raise ManifestError(f"{what}: rank {record.rank} hands in no checksum")
        if record.label != label:
            raise ManifestError(f"{what}: rank {record.rank} belongs to the save {record.label!r}, not {label!r}")
    return check_world(checked, world_size, what)


def check_stored(control: Control, shards: Sequence[ShardRecord], each: Each = map) -> None:
    """Every shard and index is there and has its size: ``NotFoundError`` or ``CorruptError``, naming rank and key."""
    wanted: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for shard in shards:
        # All saves of the step: at the bytes level each rank's shard lies under an id of its own.
        saves = shard.key[: shard.key.rindex(f"ckpt-{shard.step}-") + len(f"ckpt-{shard.step}-")]
        wanted[saves][shard.key] = (shard.rank, shard.size)
        if shard.index is not None:
            wanted[saves][shard.index.key] = (shard.rank, shard.index.size)
    few: list[str] = []
    found: dict[str, int] = {}
    for saves, keys in wanted.items():
        if len(keys) < _LIST_FROM:
            few.extend(keys)
        else:
            found.update((item.key, item.size) for item in control.list(saves) if item.key in keys)
    expected = {key: rank_size for keys in wanted.values() for key, rank_size in keys.items()}
    for key, size in zip(few, each(lambda key: _size(control, key), few), strict=True):
        if size is not None:
            found[key] = size
    for key, (rank, size) in expected.items():
        if key not in found:
            raise NotFoundError(f"rank {rank} listed {key}, which is not in the store: save that shard again")
        if found[key] != size:
            raise CorruptError(f"rank {rank} stored {size} bytes as {key}, the store holds {found[key]}: save it again")


def _size(control: Control, key: str) -> int | None:
    try:
        return control.head(key).size
    except NotFoundError:
        return None


def publish(control: Control, manifest: Manifest) -> Manifest:
    """Create the manifest; returns what is in the store, which is this one or its equal.

    A refused or failed request is not believed: its first sending may have created the manifest before the reply was
    lost, so what the store holds decides.
    """
    key = manifest.id.manifest_key
    data = manifest.encode()
    there = _create(control, key, data)
    if there == data:
        return manifest
    existing = _decode(there, key)
    if existing is not None and replace(existing, wall_time=manifest.wall_time) == manifest:
        return existing  # another rank, or an earlier try, committed the same records
    raise PreconditionError(f"{key} is taken by another checkpoint: save again, under a new id")


def publish_copy(control: Control, id_: CheckpointId, data: bytes) -> None:
    """Create the manifest of a copied checkpoint, of the very bytes it has elsewhere, and move the pointers to it.

    ``PreconditionError`` if the store holds another under this id; the same is fine.
    """
    if _create(control, id_.manifest_key, data) != data:
        raise PreconditionError(f"{id_.manifest_key} is taken by another checkpoint: delete it there before copying")
    advance(control, id_)


def _create(control: Control, key: str, data: bytes) -> bytes:
    """Put a manifest if absent; what the store holds then."""
    try:
        control.put(key, [memoryview(data)], if_absent=True)
    except S3dlioError:
        there = _read_back(control, key)
        if there is None:
            raise
        return there
    return data


def _read_back(control: Control, key: str) -> bytes | None:
    try:
        return control.read(key, limit=MANIFEST_MAX)[0]
    except S3dlioError:
        return None


def _decode(data: bytes, key: str) -> Manifest | None:
    try:
        return Manifest.decode(data, key)
    except S3dlioError:
        return None
