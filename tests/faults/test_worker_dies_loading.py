"""A worker is SIGKILLed at every stage of a load: the load succeeds, and what it gives is right.

The four ways of loading move bytes on different roads: ``load`` into new memory, ``into=`` and ``names=`` through
slots, ``verify`` nowhere. Shards of the published package have no index and take a road of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import WorkerDiedError
from tests.faults import states
from tests.faults.conftest import Open, Sabotaging
from tests.faults.folders import contents
from tests.faults.injected import Rule
from tests.faults.processes import kill_workers

PUBLISHED = Path(__file__).parents[1] / "store" / "data" / "published"
STATE = states.make(1)


def whole(store: CheckpointStore) -> bool:
    return states.same(store.load(), STATE)


def into(store: CheckpointStore) -> bool:
    target = states.zeroed(STATE)
    loaded = store.load(into=target)
    return states.same(loaded, STATE) and states.same(target["model"], STATE["model"])


def names(store: CheckpointStore) -> bool:
    found = store.load(names="model*")
    return len(found) == 2 and all(
        np.array_equal(array, STATE["model"]["weight" if "weight" in name else "half"]) for name, array in found.items()
    )


def verify(store: CheckpointStore) -> bool:
    return store.verify().ok


LOADS = [whole, into, names, verify]
FETCHES = [Rule("Fetch", at=at, skip=skip) for at, skip in [("start", 0), ("io", 0), ("io", 2), ("end", 1)]]
SMALL = [
    Rule("Call.list_page", key="manifests/"),
    Rule("Call.read", key="manifests/ckpt-1-", at="end"),
    Rule("Call.read", key="rank-0.idx"),
]
CASES = (
    [(load, None, rule) for load in LOADS for rule in FETCHES]
    + [(load, codec, Rule("Fetch", at="codec")) for load in LOADS for codec in ("zstd", "zstd-grouped")]
    + [(whole, None, rule) for rule in SMALL]
)


def told(value: object) -> str:
    if isinstance(value, Rule):
        return "-".join([value.task, value.at, str(value.skip)])
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("load", "codec", "rule"), CASES, ids=told)
def test_of_a_load(
    sabotage: Sabotaging, open_store: Open, load: Callable[[CheckpointStore], bool], codec: str | None, rule: Rule
) -> None:
    """The saves meet no rule: each names what loads alone do, or another step's manifest."""
    struck = sabotage(rule)
    with open_store(compression=codec) as store:
        if rule.task == "Call.list_page":
            assert store.list() == []  # the rule strikes here
        store.save(1, STATE)
        assert load(store)
    assert struck.struck() == 1


@pytest.mark.parametrize("at", ["start", "io", "end"])
def test_of_a_stream_without_an_index(sabotage: Sabotaging, at: str) -> None:
    struck = sabotage(Rule("Inflate", at=at))
    with CheckpointStore(f"file://{PUBLISHED / 'round_robin_zstd'}", workers=2, memory=32 << 20) as store:
        found = [store.load(rank=shard) for shard in range(store.list()[-1].world_size)]
        plain = [bytes(each) for each in found]
        assert all(plain)
        assert struck.struck() == 1
        assert plain == [bytes(store.load(rank=shard)) for shard in range(len(plain))]


def test_idle_workers(open_store: Open) -> None:
    with open_store() as store:
        store.save(1, STATE)
        assert len(kill_workers()) == 2
        assert whole(store)


@pytest.mark.parametrize("load", LOADS, ids=told)
def test_all_workers_at_once(sabotage: Sabotaging, open_store: Open, load: Callable[[CheckpointStore], bool]) -> None:
    """Each lane dies in the middle of a read; a lane is struck once, so the workers die one after the other too."""
    struck = sabotage(Rule("Fetch", at="io", times=4))
    with open_store() as store:
        store.save(1, STATE)
        assert load(store)
    assert struck.struck() >= 2


def test_a_chunk_that_kills_every_worker(sabotage: Sabotaging, open_store: Open, folder: Path) -> None:
    """The load fails and names the shard; the next one finds everything as it was."""
    sabotage(Rule("Fetch", at="io", times=5))
    with open_store() as store:
        store.save(1, b"a shard of one chunk")
        before = contents(folder)
        with pytest.raises(WorkerDiedError, match=r"Fetch of shards/ckpt-1-.*: 5 workers died on it"):
            store.load()
        assert store.load() == b"a shard of one chunk"
        assert contents(folder) == before
