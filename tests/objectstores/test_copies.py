"""A copy between a folder and an object store is killed in the middle: nothing half-copied is taken for a checkpoint,
the next copy takes over what is there, and what is left is cleaned up.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.scripts import Script
from tests.faults.waiting import until
from tests.objectstores.checks import old
from tests.objectstores.conftest import Scripting
from tests.objectstores.places import MIB, SMALL, Place, Which
from tests.servers.faults import Hold
from tests.store.live import contents, open_store, random_bytes

pytestmark = pytest.mark.slow

COPY = """
    from s3dlio.copying import copy_checkpoint

    def opened(uri):
        options = {} if uri.startswith("file:") else {"options": ARGS["options"]}
        return CheckpointStore(uri, **ARGS["settings"], **options)

    source, target = map(opened, ARGS["ends"])
    copy_checkpoint(source, target)
    source.close()
    target.close()
"""
SIZES = (1 * MIB, 11 * MIB)
"""Of the shards of the ranks: the second goes in three parts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 2 of two ranks."""
    where = tmp_path_factory.mktemp("source")
    with open_store(where, **SMALL) as store:
        records = [
            store.writer(len(SIZES), rank).save_distributed_shard(2, 0, "torch", random_bytes(size, rank))
            for rank, size in enumerate(SIZES)
        ]
        store.writer(len(SIZES), 0).finalize_distributed_checkpoint(2, 0, "torch", records)
    return where


def shard(rank: int, method: str, query: str | None = None) -> Which:
    return {"path": rf"ckpt-2-.*rank-{rank}\.bin$", "method": method, "query": query}


def copy(place: Place, script: Scripting, *ends: str) -> Script:
    place.proxy.clear()
    return script(place, COPY, ends=ends, settings=SMALL)


def kill(copying: Script) -> None:
    """With its workers, as by the machine's end."""
    copying.signal_group(signal.SIGKILL)
    copying.all_gone()


def test_to_an_object_store(place: Place, script: Scripting, folder: Path) -> None:
    copying = copy(place, script, f"file://{folder}", place.uri)
    held = place.proxy.rule(Hold(), skip=1, times=None, **shard(1, "PUT", place.part()["query"]))
    held.wait()
    until(place.uploads, "a part of rank 1 to be stored")
    kill(copying)
    with place.open() as store:
        assert store.list() == []
        assert copy(place, script, f"file://{folder}", place.uri).end() == 0
        assert place.proxy.requests(**shard(0, "PUT")) == []  # it was there, and verified
        assert place.proxy.requests(**shard(1, "PUT")) != []
        assert store.verify(2).shards == len(SIZES)
        left = place.uploads()
        store.save(3, old())
        assert store.cleanup(min_age=0) == len(left) == (1 if place.kind == "s3" else 0)  # Azure's commit drops blocks
        assert place.uploads() == []
        for rank, size in enumerate(SIZES):
            assert bytes(store.load(2, rank=rank)) == random_bytes(size, rank)


def test_from_an_object_store(place: Place, script: Scripting, folder: Path, tmp_path: Path) -> None:
    assert copy(place, script, f"file://{folder}", place.uri).end() == 0
    back = tmp_path / "back"
    copying = copy(place, script, place.uri, f"file://{back}")
    held = place.proxy.rule(Hold(), times=None, **shard(1, "GET"))
    held.wait()
    kill(copying)
    with open_store(back, **SMALL) as store:
        assert store.list() == []
        assert copy(place, script, place.uri, f"file://{back}").end() == 0
        assert place.proxy.requests(**shard(0, "GET")) == []
        assert store.verify(2).shards == len(SIZES)
    assert contents(back) == contents(folder)
