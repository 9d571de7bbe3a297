"""Where shards lie: the key of a shard for each strategy, and back from a key to what it holds.

Pure. The aim of a strategy is to spread the request rate of many ranks over key prefixes, which object stores split by.
The layouts are the published package's, with one change: its ``binary`` takes rank // 16, which puts ranks 0 to 15, and
so most jobs, under one prefix. Here the four low bits of the rank are reversed, so that neighbours lie far apart.
Readers never compute a key: they take it from the manifest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from .engine.errors import ConfigError
from .ids import CheckpointId

SHARDS = "shards/"
RANKS_MAX = 1 << 17
"""Most ranks of a checkpoint: bounds a manifest, which names each one."""

BY = "by/"
"""Below ``shards/``: prefixes of the user's own, in folders of letters, digits, ``_``, ``=``, ``-`` and ``.``."""

_FOLDERS = r"(?:[0-9A-Za-z_=-][0-9A-Za-z_=.-]{0,63}/){1,8}"
_KEY = re.compile(
    rf"shards/(?:rr/[0-9a-f]{{1,8}}/|bin/[01]{{1,32}}/|{BY}{_FOLDERS})?"
    r"(ckpt-[^/]+)/rank-(0|[1-9][0-9]{0,8})(\.bin|\.bin\.zst|\.idx)",
    re.ASCII,
)


class Strategy(Enum):
    """How shard keys are spread over prefixes."""

    FLAT = "flat"
    ROUND_ROBIN = "round_robin"
    BINARY = "binary"

    @classmethod
    def parse(cls, value: Strategy | str | None) -> Strategy:
        """A strategy from its name in any case (``roundrobin`` too), ``None`` for flat; ``ConfigError`` otherwise."""
        if value is None:
            return cls.FLAT
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            plain = value.strip().lower().replace("-", "_")
            for strategy in cls:
                if plain in (strategy.value, strategy.value.replace("_", "")):
                    return strategy
        raise ConfigError(f"unknown strategy {value!r}: choose one of {', '.join(s.value for s in cls)}")

    def prefix(self, rank: int) -> str:
        """What stands between ``shards/`` and the checkpoint's name: empty, or ends with a slash."""
        if self is Strategy.ROUND_ROBIN:
            return f"rr/{rank % 16:02x}/"
        if self is Strategy.BINARY:
            return f"bin/{f'{rank % 16:04b}'[::-1]}/"
        return ""


@dataclass(frozen=True, slots=True)
class ShardName:
    """What a key below ``shards/`` holds: the shard of a rank of a checkpoint, or (``index``) that shard's index."""

    id: CheckpointId
    rank: int
    index: bool


def check_rank(rank: int, world_size: int) -> int:
    """``rank``; ``ConfigError`` unless 0 <= rank < world_size <= RANKS_MAX."""
    for name, value in (("rank", rank), ("world_size", world_size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} must be an integer, not {value!r}")
    if not 1 <= world_size <= RANKS_MAX:
        raise ConfigError(f"world_size must be 1 to {RANKS_MAX}, not {world_size}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is outside the world: it must be 0 to {world_size - 1}")
    return rank


def shard_key(strategy: Strategy, id_: CheckpointId, rank: int, codec: str) -> str:
    """The key of a shard; a ``zstd`` shard is a standard zstd stream and its key says so."""
    return f"{SHARDS}{strategy.prefix(rank)}{id_.name}/rank-{rank}{'.bin.zst' if codec == 'zstd' else '.bin'}"


def spread_key(key: str, prefix: str) -> str:
    """A ``flat`` shard key moved below a prefix of the user's own, ``a/b``; ``ConfigError`` if it cannot be one."""
    spread = f"{SHARDS}{BY}{prefix}/{key.removeprefix(SHARDS)}"
    if parse_shard_key(spread) is None:
        raise ConfigError(
            f"{prefix!r} is no prefix: up to 8 folders of 1 to 64 letters, digits, '_', '=', '-' and '.', none of "
            "which begins with a '.'"
        )
    return spread


def index_key(key: str) -> str:
    """The key of the index beside the shard ``key``."""
    folder, _, name = key.rpartition("/")
    stem = name.removesuffix(".zst").removesuffix(".bin")
    return f"{folder}/{stem}.idx"


def parse_shard_key(key: str) -> ShardName | None:
    """What ``key`` holds; ``None`` unless it is exactly a key that a writer of either package makes."""
    match = _KEY.fullmatch(key)
    id_ = CheckpointId.parse(match[1]) if match else None
    if match is None or id_ is None or int(match[2]) >= RANKS_MAX:
        return None
    return ShardName(id_, int(match[2]), match[3] == ".idx")
