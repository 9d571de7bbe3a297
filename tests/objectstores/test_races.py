"""Two processes commit one checkpoint at the same moment: one wins, and the other is told the truth."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.scripts import Script
from tests.objectstores.checks import old
from tests.objectstores.conftest import Scripting
from tests.objectstores.places import MANIFEST, Place, put
from tests.servers.faults import Hold

pytestmark = pytest.mark.slow

FINALIZE = """
    from s3dlio.engine.errors import PreconditionError
    with open_store(options=ARGS["options"], workers=1) as store:
        writer = store.writer(2, 0)
        try:
            say("won", writer.finalize_distributed_checkpoint(2, 0, "torch", ARGS["metas"]))
        except PreconditionError as error:
            say("lost", error)
"""
RANK_0, ONE, OTHER = b"rank 0", b"rank 1 of the one", b"rank 1 of the other!"


def shards(place: Place) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Records of rank 0's shard and of two shards of rank 1, in a store that holds step 1."""
    with place.open() as store:
        store.save(1, old())
        first = store.writer(2, 0).save_distributed_shard(2, 0, "torch", RANK_0)
        rank_1 = store.writer(2, 1)
        one, other = (rank_1.save_distributed_shard(2, 0, "torch", body) for body in (ONE, OTHER))
        return first, one, other


def race(place: Place, script: Scripting, *metas: list[dict[str, Any]]) -> list[str]:
    """Let each of ``metas`` be committed by a process of its own: all manifests leave together. What each says."""
    held = place.proxy.rule(Hold(), times=len(metas), **put(MANIFEST))
    runners: list[Script] = [script(place, FINALIZE, metas=each) for each in metas]
    held.wait(len(metas))
    held.release()
    said = [runner.line() for runner in runners]
    assert [runner.end() for runner in runners] == [0] * len(metas)
    return said


def test_of_different_shards(place: Place, script: Scripting) -> None:
    first, one, other = shards(place)
    said = race(place, script, [first, one], [first, other])
    (won,) = [text for text in said if text.startswith("won manifests/ckpt-2-")]
    (lost,) = [text for text in said if text.startswith("lost ")]
    key = won.removeprefix("won ")
    assert f"{key} is taken by another checkpoint: save again, under a new id" in lost
    winner = (one, ONE) if said.index(won) == 0 else (other, OTHER)
    manifest = json.loads(place.read(key))
    assert [shard["key"] for shard in manifest["shards"]] == [first["key"], winner[0]["key"]]
    with place.open() as store:
        assert bytes(store.load(2, rank=0)) == RANK_0
        assert bytes(store.load(2, rank=1)) == winner[1]
        assert [info.step for info in store.list()] == [1, 2]


def test_of_the_same_shards(place: Place, script: Scripting) -> None:
    """As after a finalizer that was thought dead: both are told that the checkpoint is there, which it is, once."""
    first, one, other = shards(place)
    said = race(place, script, [first, one], [first, one])
    assert said[0] == said[1]
    assert said[0].startswith("won manifests/ckpt-2-")
    with place.open() as store:
        assert bytes(store.load(2, rank=1)) == ONE
        assert place.keys(other["timestamp"])  # the shard that nobody committed
        store.save(3, old())
        store.cleanup(min_age=0)
        assert place.keys(other["timestamp"]) == []
        assert bytes(store.load(2, rank=1)) == ONE
        assert [info.step for info in store.list()] == [1, 2, 3]
