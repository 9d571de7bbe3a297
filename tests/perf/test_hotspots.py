"""The simulated store and its ranks: limits, splits, and that a run is the same every time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf import hotspots, prefix_store
from perf.hotspots import Cluster
from perf.prefix_ranks import PARTS, commit_stages, load_stages, save_stages
from perf.prefix_store import READS, WRITES, PrefixStore, VirtualTime, separator
from s3dlio.ids import CheckpointId
from s3dlio.records import IndexRef, ShardRecord
from s3dlio.strategy import Strategy, index_key, shard_key

ID = CheckpointId(1, "20260101T000000.000000Z-00000000")


def advance(time: VirtualTime, seconds: float) -> None:
    time.after(seconds, lambda: None)
    time.run()


def burst(store: PrefixStore, keys: list[str], count: int, *, write: bool = True) -> int:
    """Requests of this moment that were let in."""
    return sum(store.admit(keys[number % len(keys)], write) for number in range(count))


# the store


def test_events_come_in_order_of_time_and_then_of_asking() -> None:
    time, seen = VirtualTime(), []
    for name, seconds in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        time.after(seconds, lambda name=name: seen.append((time.now, name)))  # type: ignore[misc]
    time.run()
    assert seen == [(1.0, "first"), (1.0, "second"), (2.0, "late")]


def test_a_partition_takes_its_limit_and_refuses_the_rest() -> None:
    time = VirtualTime()
    store = PrefixStore(time, patience=None)
    assert burst(store, ["a", "b"], 10_000) == WRITES
    assert burst(store, ["a", "b"], 10_000, write=False) == READS
    advance(time, 0.5)
    assert burst(store, ["a"], 10_000) == WRITES / 2
    advance(time, 100.0)
    assert burst(store, ["a"], 10_000) == WRITES
    assert (store.requests, store.partitions) == (40_000, 1)
    assert store.refused == 40_000 - 2.5 * WRITES - READS


def test_a_partition_splits_after_its_overloaded_seconds() -> None:
    time = VirtualTime()
    store = PrefixStore(time, patience=3)
    keys = [f"p/{number % 10}/{number}" for number in range(100)]
    for second in range(3):
        assert store.partitions == 1, second
        burst(store, keys, 4_000)
        advance(time, 5.0)
    assert store.boundaries == ("p/5",)
    advance(time, 5.0)
    assert burst(store, keys, 10_000) == 2 * WRITES


def test_within_its_limit_it_never_splits() -> None:
    time = VirtualTime()
    store = PrefixStore(time, patience=1)
    for _ in range(50):
        assert burst(store, ["a", "b", "c"], int(WRITES)) == WRITES
        advance(time, 1.0)
    assert store.partitions == 1


def test_one_key_cannot_be_divided() -> None:
    time = VirtualTime()
    store = PrefixStore(time, patience=1)
    for _ in range(5):
        burst(store, ["manifests/"], 10_000)
        advance(time, 1.0)
    assert store.partitions == 1
    assert separator(["a"] * 9) is None
    assert separator([]) is None


def test_the_boundary_is_the_shortest_near_the_middle() -> None:
    assert separator(["a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "b/4"]) == "b"
    assert separator(["a", *["b"] * 8]) == "b"  # nothing near the middle
    assert separator(["rank", "rank-1"]) == "rank-"


@given(keys=st.lists(st.text("ab/", min_size=1, max_size=6), max_size=40).map(sorted))
def test_a_boundary_leaves_keys_on_both_sides(keys: list[str]) -> None:
    boundary = separator(keys)
    assert (boundary is None) == (len(set(keys)) < 2)
    if boundary is not None:
        assert keys[0] < boundary <= keys[-1]


# what ranks ask for


@pytest.mark.parametrize("strategy", Strategy)
def test_the_requests_are_those_of_a_shard(strategy: Strategy) -> None:
    key = shard_key(strategy, ID, 5, "none")
    saved = [request for stage in save_stages(key, first=False) for request in stage]
    assert [request.key for request in saved] == [key] * (PARTS + 2) + [index_key(key)]
    assert all(request.write for request in saved)
    assert save_stages(key, first=True)[0][0].key == "manifests/"
    loaded = [request for stage in load_stages(key, ID.manifest_key) for request in stage]
    assert [request.key for request in loaded] == ["manifests/", ID.manifest_key, index_key(key), *[key] * PARTS]
    assert not any(request.write for request in loaded)


def _records(strategy: Strategy, ids: list[CheckpointId]) -> list[ShardRecord]:
    records = []
    for rank, id_ in enumerate(ids):
        key = shard_key(strategy, id_, rank, "none")
        index = IndexRef(index_key(key), 1, "crc32c:00000000")
        records.append(ShardRecord(rank, key, 1, id_.step, 0, id_.timestamp, index=index))
    return records


def test_a_commit_of_few_ranks_asks_for_every_object() -> None:
    ids = [CheckpointId(1, f"20260101T000000.{number:06d}Z-00000000") for number in range(3)]
    heads, *alone = commit_stages(_records(Strategy.FLAT, ids), ids[0], None)
    assert len(heads) == len({request.key for request in heads}) == 6
    assert [(request.key, request.write) for (request,) in alone] == [
        (ids[0].manifest_key, True),
        ("manifests/latest.json", False),
        ("manifests/latest.json", True),
        ("latest.json", False),
        ("latest.json", True),
    ]


@pytest.mark.parametrize("own", [False, True])
def test_a_commit_of_many_ranks_lists_the_saves_of_the_step(own: bool) -> None:
    ids = [CheckpointId(ID.step, f"20260101T000000.{number:06d}Z-00000000") if own else ID for number in range(1024)]
    stages = commit_stages(_records(Strategy.FLAT, ids), ID, CheckpointId(0, "20250101-000000"))
    asked = [request for (request,) in stages]
    assert [request.write for request in asked[:4]] == [False, False, False, True]  # 2048 objects: three pages
    assert asked[3].key == ID.manifest_key
    spread = commit_stages(_records(Strategy.BINARY, ids), ID, None)
    assert len([request for (request,) in spread if request.key.startswith("shards/bin/")]) == 16


# whole runs, of a tenth of the ranks on a tenth of the limits


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_store, "WRITES", WRITES / 10)
    monkeypatch.setattr(prefix_store, "READS", READS / 10)


@pytest.mark.parametrize("strategy", Strategy)
def test_few_ranks_meet_no_limit(strategy: Strategy) -> None:
    cluster = Cluster(strategy, 64)
    save, commit, load = cluster.save(), cluster.commit(), cluster.load()
    assert {(each.refused, each.failed, each.partitions) for each in (save, commit, load)} == {(0, 0, 1)}
    assert save.requests == 64 * (4 + PARTS)
    assert commit.requests == (1 if strategy is Strategy.FLAT else 16) + 5
    assert load.requests == 64 * (3 + PARTS)
    assert save.seconds < 2


@pytest.mark.usefixtures("small")
def test_a_run_is_the_same_every_time() -> None:
    def once(seed: int) -> list[object]:
        cluster = Cluster(Strategy.BINARY, 200, seed=seed)
        return [cluster.save(), cluster.load(), cluster.store.boundaries]

    assert once(1) == once(1)
    assert once(1) != once(2)


@pytest.mark.usefixtures("small")
def test_no_rank_is_faster_than_the_limits_allow() -> None:
    ranks = 400
    cluster = Cluster(Strategy.FLAT, ranks, patience=None)
    save = cluster.save()
    assert save.failed == 0
    assert save.refused > 0
    assert save.seconds >= ranks * (3 + PARTS) / (WRITES / 10) - 1  # a second's worth of tokens is there at the start
    assert save.requests == ranks * (4 + PARTS) + save.refused


@pytest.mark.usefixtures("small")
def test_prefixes_partitioned_beforehand_take_the_load_that_one_refuses() -> None:
    ranks = 400
    spread = Cluster(Strategy.ROUND_ROBIN, ranks, patience=None, boundaries=hotspots.prefixes(Strategy.ROUND_ROBIN))
    assert spread.store.partitions == 17
    save = spread.save()
    assert save.refused == 0
    assert save.seconds < Cluster(Strategy.ROUND_ROBIN, ranks, patience=None).save().seconds


@pytest.mark.usefixtures("small")
def test_splits_of_a_spread_layout_serve_the_next_checkpoint_and_those_of_flat_do_not() -> None:
    """Why the prefix stands before the part of the key that changes."""
    refused = {}
    for strategy in (Strategy.FLAT, Strategy.BINARY):
        cluster = Cluster(strategy, 400, patience=1)
        refused[strategy] = [cluster.save().refused for _ in range(3)]
    assert refused[Strategy.BINARY][-1] < refused[Strategy.BINARY][0] / 2
    assert refused[Strategy.FLAT][-1] > refused[Strategy.BINARY][-1]


@pytest.mark.parametrize("strategy", [Strategy.ROUND_ROBIN, Strategy.BINARY])
def test_the_prefix_stands_before_what_changes_with_each_checkpoint(strategy: Strategy) -> None:
    prefixes = hotspots.prefixes(strategy)
    assert len(prefixes) == 16
    for rank in range(32):
        assert re.sub("ckpt-.*", "", shard_key(strategy, ID, rank, "none")) in prefixes


def test_a_store_that_lets_in_nothing_fails_its_ranks_and_tells_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PrefixStore, "admit", lambda self, key, write: False)
    cluster = Cluster(Strategy.FLAT, 3)
    save = cluster.save()
    assert save.failed == 3
    assert save.seconds <= 120 + 25
    assert caplog.text == ""


def test_the_report_says_simulated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pathlib import Path

    from perf.harness import Options

    monkeypatch.setattr(hotspots, "RANKS", (2, 20))
    report = hotspots.run(Options(1, 1, Path(), 1, False))
    assert all("simulated" in table.title for table in report.tables)
    assert [len(table.rows) for table in report.tables] == [12, 12, 6, 3]
    assert "round_robin" in capsys.readouterr().out
