"""The commit of a DCP save: the metadata as the last shard, then the manifest.

Owns the order; ``s3dlio.commit`` checks and publishes. Called by the coordinator's writer once every rank's shard is
durable. What fails before the manifest leaves no checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from ... import loading, removal
from ...commit import commit
from ...content import Content
from ...engine.contract import Location
from ...engine.errors import ConfigError, S3dlioError
from ...engine.source import PiecesSource
from ...ids import CheckpointId
from ...shards import store_whole
from ...writer import Shard, ShardWriter
from .metadata import dump
from .stored import check_complete, gathered

_log = logging.getLogger("s3dlio")

FRAMEWORK = "torch.distributed.checkpoint"
FORMAT = 1


def commit_checkpoint(
    shards: ShardWriter,
    name: Callable[[int], Shard],
    id_: CheckpointId,
    metadata: Metadata,
    results: Sequence[Sequence[WriteResult]],
    *,
    location: Location,
    user_meta: Any,
    keep_last: int | None,
) -> None:
    """Publish what every rank has stored; ``metadata`` gets its ``storage_data``; ``name`` names a rank's shard."""
    records, items = gathered(results, id_.name)
    check_complete(metadata, items)
    metadata.storage_data = items
    shard = name(len(records))
    record = store_whole(shards, shard, Content(PiecesSource(dump(metadata, items))))
    control = shards.control
    try:
        commit(
            control,
            [*records, record],
            step=id_.step,
            epoch=0,
            framework=FRAMEWORK,
            world_size=len(records) + 1,
            user_meta={"dcp": {"format": FORMAT, "metadata": record.rank}, "user": user_meta},
            each=control.each,
        )
    except ConfigError:  # nothing was sent; of anything else the answer may have been lost
        shards.discard(shard)
        raise
    if keep_last is not None:
        try:
            removal.prune(control, keep_last, protect=loading.held(location), each=control.each)
        except S3dlioError as error:  # the checkpoint is there: that older ones stay longer must not make it fail
            _log.warning("older checkpoints were not pruned: %s", error)
