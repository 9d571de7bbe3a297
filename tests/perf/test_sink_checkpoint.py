"""Whole checkpoints of this package through the benchmark sink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from perf.sink import Sink, running_sink
from s3dlio import CheckpointStore
from tests.perf.sinks import BUCKET, MIB, s3

STATE: Mapping[str, np.ndarray[Any, Any]] = {"weights": np.arange(3 * MIB, dtype=np.float32), "bias": np.arange(1000)}


def place(scheme: str, sink: Sink, folder: str) -> tuple[str, Mapping[str, str]]:
    """A store's URI and options."""
    if scheme == "s3":
        return f"s3://{BUCKET}/{folder}", sink.s3_options
    return f"az://sink/container/{folder}", sink.az_options


def open_store(scheme: str, sink: Sink, folder: str) -> CheckpointStore:
    """A small store that sends its shards in parts."""
    uri, options = place(scheme, sink, folder)
    return CheckpointStore(
        uri, options=options, memory=32 * MIB, workers=1, chunk_size=5 * MIB, multipart_threshold=5 * MIB
    )


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_a_checkpoint_comes_back_from_a_storing_sink(store_sink: Sink, folder: str, scheme: str) -> None:
    with open_store(scheme, store_sink, folder) as store:
        saved = store.save(1, STATE)
        assert saved.verified == "crc64nvme"  # the client works as it does for a store that verifies
        store.save(2, STATE)
        loaded = store.load(1)
    assert all(np.array_equal(np.asarray(loaded[name]), STATE[name]) for name in STATE)


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_a_checkpoint_is_committed_to_a_discarding_sink(folder: str, scheme: str) -> None:
    with running_sink("discard") as sink, open_store(scheme, sink, folder) as store:
        assert store.save(1, STATE).verified == "crc64nvme"
        assert [info.step for info in store.list()] == [1]


def test_the_parts_arrive_as_parts(store_sink: Sink, folder: str) -> None:
    with open_store("s3", store_sink, folder) as store:
        store.save(1, STATE)
    with s3(store_sink) as client:
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/shards/")["Contents"]
        assert max(entry["Size"] for entry in found) > 12 * MIB
        assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET, Prefix=folder)
