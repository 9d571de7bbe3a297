"""Rank 0 of a large job, in a process of its own: what it hears, decides and commits, with payloads that are fakes.

The words of the others are made when they are asked for, outside of the clock; from there on the code is that of a
save. Prints its numbers as JSON. ``ranks`` starts it for each number of ranks.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from itertools import chain

from s3dlio.commit import commit
from s3dlio.coordination.board import put_word
from s3dlio.coordination.council import Council
from s3dlio.coordination.verdict import DIGEST, Hello, decide
from s3dlio.coordination.words import read_word
from s3dlio.engine.backends.memory import MemoryBackend
from s3dlio.ids import IdClock
from s3dlio.records import IndexRef, ShardRecord
from s3dlio.strategy import Strategy, index_key, shard_key

STEP = 1000
SIDES = (1024, 4096, 11008)  # columns of the arrays: kinds of parts that a rank has
PAYLOAD = b"fake shard"


class FakeBoard:
    """The board of rank 0: ``make(rank)`` gives what that rank has said; the time this takes is in ``making``."""

    rank = 0

    def __init__(self, world_size: int, make: Callable[[int], bytes]) -> None:
        self.world_size = world_size
        self.making = 0.0
        self._make = make
        self._words: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        self._words[key] = value

    def get(self, key: str, timeout: float) -> bytes | None:
        if key not in self._words:
            begun = time.perf_counter()
            put_word(self, key, self._make(int(key.rpartition("/")[2])))
            self.making += time.perf_counter() - begun
        return self._words[key]

    def drop(self, key: str) -> None:
        self._words.pop(key, None)

    def close(self) -> None:
        return


def hello(rank: int, ranks: int, leaves: int) -> Hello:
    """What a rank says of ``leaves`` arrays sharded by rows."""
    kinds = [((ranks * 4, side), (((rank * 4, 0), (4, side)),)) for side in SIDES]
    digests = rank.to_bytes(4, "big") * (DIGEST // 4) * leaves
    return Hello(STEP, ranks, "structure", digests, {leaf: kinds[leaf % len(kinds)] for leaf in range(leaves)})


def measure(ranks: int, leaves: int) -> dict[str, float]:
    """Seconds of each stage, and the memory that they took beyond what the process and the fake store have."""
    id_ = IdClock().mint(STEP)
    store = MemoryBackend("ranks")

    def record(rank: int) -> ShardRecord:
        key = shard_key(Strategy.ROUND_ROBIN, id_, rank, "none")
        index = IndexRef(index_key(key), len(PAYLOAD), "crc32c:00000000")
        size = len(PAYLOAD)
        return ShardRecord(
            rank, key, size, STEP, 0, id_.timestamp, checksum="crc32c:00000000", raw_size=size, index=index
        )

    for rank in range(ranks):
        for key in (record(rank).key, index_key(record(rank).key)):
            store.put(key, [memoryview(PAYLOAD)])
    numbers: dict[str, float] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    others = range(1, ranks)
    own, names = hello(0, ranks, leaves).encode(), [f"layers.{leaf}" for leaf in range(leaves)]

    board = FakeBoard(ranks, lambda rank: hello(rank, ranks, leaves).encode())
    begun = time.perf_counter()
    decide(chain([(0, own)], Council(board, "ranks", 600.0).gather("hello", others)), names, id_.timestamp)
    numbers["agree"] = time.perf_counter() - begun - board.making
    board = FakeBoard(ranks, lambda rank: json.dumps({"record": record(rank).to_dict()}).encode())
    begun = time.perf_counter()
    words = Council(board, "ranks", 600.0).gather("stored", others)
    records = [record(0), *(ShardRecord.from_dict(read_word(word)["record"]) for _, word in words)]
    numbers["gather"] = time.perf_counter() - begun - board.making
    begun = time.perf_counter()
    committed = commit(store, records, step=STEP, epoch=0, framework="pytorch", world_size=ranks)
    numbers["commit"] = time.perf_counter() - begun
    numbers["manifest"] = store.head(committed.manifest_key).size
    numbers["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return numbers


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
