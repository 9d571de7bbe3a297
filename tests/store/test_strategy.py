from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.errors import ConfigError
from s3dlio.ids import CheckpointId
from s3dlio.strategy import RANKS_MAX, ShardName, Strategy, check_rank, index_key, parse_shard_key, shard_key
from tests.store.fake import make_id

ID = CheckpointId(7, "20261123-203342")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        (None, Strategy.FLAT),
        ("flat", Strategy.FLAT),
        ("FLAT", Strategy.FLAT),
        ("round_robin", Strategy.ROUND_ROBIN),
        ("RoundRobin", Strategy.ROUND_ROBIN),
        ("round-robin", Strategy.ROUND_ROBIN),
        ("Binary", Strategy.BINARY),
        (Strategy.BINARY, Strategy.BINARY),
    ],
)
def test_a_strategy_has_its_names(name: str | None, strategy: Strategy) -> None:
    assert Strategy.parse(name) is strategy


@pytest.mark.parametrize("name", ["", "hash", 3, b"flat"])
def test_an_unknown_strategy_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="flat, round_robin, binary"):
        Strategy.parse(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategy", "rank", "codec", "key"),
    [
        (Strategy.FLAT, 0, "none", "shards/ckpt-7-20261123-203342/rank-0.bin"),
        (Strategy.FLAT, 3, "zstd", "shards/ckpt-7-20261123-203342/rank-3.bin.zst"),
        (Strategy.FLAT, 3, "zstd-grouped", "shards/ckpt-7-20261123-203342/rank-3.bin"),
        (Strategy.ROUND_ROBIN, 0, "none", "shards/rr/00/ckpt-7-20261123-203342/rank-0.bin"),
        (Strategy.ROUND_ROBIN, 26, "none", "shards/rr/0a/ckpt-7-20261123-203342/rank-26.bin"),
        (Strategy.BINARY, 0, "none", "shards/bin/0000/ckpt-7-20261123-203342/rank-0.bin"),
        (Strategy.BINARY, 1, "none", "shards/bin/1000/ckpt-7-20261123-203342/rank-1.bin"),
        (Strategy.BINARY, 18, "none", "shards/bin/0100/ckpt-7-20261123-203342/rank-18.bin"),
    ],
)
def test_keys_are_those_of_the_format(strategy: Strategy, rank: int, codec: str, key: str) -> None:
    assert shard_key(strategy, ID, rank, codec) == key


@pytest.mark.parametrize("strategy", [Strategy.ROUND_ROBIN, Strategy.BINARY])
def test_sixteen_ranks_spread_over_sixteen_prefixes(strategy: Strategy) -> None:
    assert len({strategy.prefix(rank) for rank in range(16)}) == 16


def test_binary_neighbours_differ_in_their_first_digit() -> None:
    assert all(Strategy.BINARY.prefix(rank)[4] != Strategy.BINARY.prefix(rank + 1)[4] for rank in range(64))


@given(
    st.sampled_from(Strategy),
    st.integers(0, 2**64 - 1),
    st.integers(0, RANKS_MAX - 1),
    st.sampled_from(["none", "zstd"]),
)
def test_a_key_tells_what_it_holds(strategy: Strategy, step: int, rank: int, codec: str) -> None:
    id_ = make_id(step)
    key = shard_key(strategy, id_, rank, codec)
    assert parse_shard_key(key) == ShardName(id_, rank, False)
    assert parse_shard_key(index_key(key)) == ShardName(id_, rank, True)


@pytest.mark.parametrize(
    "key",
    [
        "shards/ckpt-7-20261123-203342/rank-0.bin.tmp",
        "shards/ckpt-7-20261123-203342/rank-01.bin",
        "shards/ckpt-7-20261123-203342/rank-131072.bin",
        "shards/ckpt-7-20261123-203342/../rank-0.bin",
        "shards/xx/ckpt-7-20261123-203342/rank-0.bin",
        "shards/rank-0.bin",
        "manifests/ckpt-7-20261123-203342.json",
        "/shards/ckpt-7-20261123-203342/rank-0.bin",
    ],
)
def test_other_keys_hold_no_shard(key: str) -> None:
    assert parse_shard_key(key) is None


@pytest.mark.parametrize(
    ("rank", "world"), [(-1, 2), (2, 2), (0, 0), (0, RANKS_MAX + 1), (True, 2), (0, 2.0), ("0", 1)]
)
def test_a_rank_outside_its_world_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match=r"rank|world_size"):
        check_rank(rank, world)


def test_a_rank_inside_its_world_is_kept() -> None:
    assert check_rank(1, 2) == 1
