"""``CheckpointInfo``: what a listing tells about a checkpoint. Pure; built from a manifest by ``catalog``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .manifest import COMPLETE, Manifest

UNREADABLE = "unreadable"
"""Status of a checkpoint whose manifest is malformed or of a newer format: it is listed, but never loaded or pruned."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A committed checkpoint.

    ``id``: its unique name, ``ckpt-{step}-{timestamp}``; ``label``: the ``id=`` it was saved with, if any;
    ``total_size``: stored bytes of all shards; ``raw_size``: decoded bytes, ``None`` where the writer did not tell;
    ``verified``: by which checksums the store checked the shards as it received them (``crc64nvme``, ``md5``; "" where
    it checked some of them by none, as a file system does); ``status``: ``complete``, a foreign writer's word, or
    ``unreadable`` (then only the names are known).
    """

    step: int
    epoch: int
    framework: str
    timestamp: str
    id: str
    world_size: int
    status: str
    total_size: int
    raw_size: int | None
    manifest_key: str
    user_meta: Any = None
    wall_time: str = ""
    label: str | None = None
    verified: str = ""

    @property
    def size_mb(self) -> float:
        """``total_size`` in MiB, named as in the published package."""
        return self.total_size / (1 << 20)

    @property
    def size_gb(self) -> float:
        """``total_size`` in GiB, named as in the published package."""
        return self.total_size / (1 << 30)

    @property
    def is_complete(self) -> bool:
        return self.status == COMPLETE

    @property
    def is_single_rank(self) -> bool:
        return self.world_size == 1

    @classmethod
    def of(cls, manifest: Manifest) -> CheckpointInfo:
        """The info of a manifest that has a key."""
        return cls(
            step=manifest.step,
            epoch=manifest.epoch,
            framework=manifest.framework,
            timestamp=manifest.timestamp,
            id=manifest.id.name,
            world_size=manifest.world_size,
            status=manifest.status,
            total_size=manifest.total_size,
            raw_size=manifest.raw_size,
            manifest_key=manifest.id.manifest_key,
            user_meta=manifest.user_meta,
            wall_time=manifest.wall_time,
            label=manifest.label,
            verified=_verified(manifest),
        )


def _verified(manifest: Manifest) -> str:
    found = {shard.verified or "" for shard in manifest.shards}
    return "" if "" in found else " ".join(sorted(found))
