"""Storing one rank's shard: from its items, read now or captured before, to a durable object with its index.

Owns what becomes of a shard that cannot be stored. Called by ``writer``; ``s3dlio.writer`` does the work.
"""

from __future__ import annotations

from ...content import Content
from ...engine.capture import CapturedJob
from ...engine.job import SaveJob
from ...records import ShardRecord
from ...writer import Shard, ShardWriter
from .items import RankShard


def store_shard(shards: ShardWriter, shard: Shard, mine: RankShard) -> ShardRecord:
    """Store a shard and its index; on an error nothing of it stays."""
    content = mine.packed.content()
    job = _begin(shards, shard, mine, content)
    try:
        if isinstance(job, CapturedJob):
            job.hand_over()
        else:
            job.stage(content.source)
        assert content.tree is not None
        assert content.table is not None
        return shards.finish(shard, job.future.result(), tree=content.tree(), table=content.table())
    except BaseException:
        job.cancel()
        job.future.exception()  # once it has ended nobody writes any more
        shards.discard(shard)
        raise


def _begin(shards: ShardWriter, shard: Shard, mine: RankShard, content: Content) -> SaveJob:
    """A job for the shard; what was captured for it goes back if there can be none."""
    if mine.capture is None:
        return shards.start(shard, content.source.total, content.runs)
    try:
        return shards.start_captured(shard, mine.capture, content.runs)
    except BaseException:
        mine.capture.release()
        raise
