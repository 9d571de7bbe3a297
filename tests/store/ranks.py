"""Helpers of the tests of the bytes level: shards of several ranks, and their commit."""

from __future__ import annotations

from typing import Any

from s3dlio import PyCheckpointStore

Record = dict[str, Any]


def save_world(store: PyCheckpointStore, world: int, step: int = 1) -> list[Record]:
    """A record of each rank, whose bytes are its number, 100 times."""
    return [
        store.writer(world, rank).save_distributed_shard(step, 2, "pytorch", bytes([rank]) * 100)
        for rank in range(world)
    ]


def commit(store: PyCheckpointStore, records: list[Record], **changed: Any) -> str:
    given = {"step": 1, "epoch": 2, "framework": "pytorch", "shard_metas": records, "world_size": 2, **changed}
    world = given.pop("world_size")
    return store.writer(world, 0).finalize_distributed_checkpoint(**given)
