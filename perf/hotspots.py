"""Simulated: saves and loads of many ranks at once on a store that limits requests by key range, for each strategy.

Nothing is stored or sent and no time passes: ``prefix_store`` is the store, its clock jumps, and every run gives the
same numbers. The keys are the real ones (``strategy``, ``ids``), and so are the commit and the waiting after a 503
(``prefix_ranks``); each rank has a pace of its own, as it has a pool of its own.

A save as at the bytes level: each rank lists the manifests once, to mint an id behind them, opens its upload, sends its
parts at once, completes it and puts its index; then rank 0 checks every object and publishes. A load: each rank lists
the manifests, reads the newest, then its index and its chunks at once. Checkpoints follow each other ten minutes apart,
so that the last one meets the partitions that the ones before it left; only the first and the last are committed and
loaded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from s3dlio.engine.backends.retry import REMOTE
from s3dlio.ids import CheckpointId, format_timestamp
from s3dlio.records import IndexRef, ShardRecord
from s3dlio.strategy import SHARDS, Strategy, index_key, shard_key

from .harness import Options, Report, Table, say
from .prefix_ranks import PARTS, WIDTH, Rank, Stages, commit_stages, load_stages, save_stages
from .prefix_store import READS, WRITES, PrefixStore, VirtualTime

RANKS = (64, 1024, 16384)
CHECKPOINTS = 5
PATIENCE = 10
_BETWEEN = 600.0
_STARTED = 0.5  # seconds within which the ranks come out of the training step
_EPOCH_US = 1_767_225_600_000_000

Row = tuple[str | float | None, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a save, a commit or a load came to; ``failed`` ranks have given up."""

    seconds: float
    requests: int
    refused: int
    partitions: int
    failed: int


class Cluster:
    """Ranks and their store over some checkpoints."""

    def __init__(
        self,
        strategy: Strategy,
        ranks: int,
        *,
        own_ids: bool = True,
        patience: int | None = PATIENCE,
        boundaries: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self._strategy = strategy
        self._own_ids = own_ids
        self._chance = random.Random(seed)
        self._time = VirtualTime()
        self.store = PrefixStore(self._time, patience=patience, boundaries=boundaries)
        self._ranks = [Rank(self._time, self.store, self._chance) for _ in range(ranks)]
        self._ids: list[CheckpointId] = []
        self._keys: list[str] = []
        self._saves = 0
        self._latest: CheckpointId | None = None

    def save(self) -> Outcome:
        """The ranks store their shards of the next checkpoint."""
        self._saves += 1
        delays = [self._chance.uniform(0, _STARTED) for _ in self._ranks]
        self._name(delays)
        return self._run([save_stages(key, first=self._saves == 1) for key in self._keys], delays)

    def commit(self) -> Outcome:
        """Rank 0 commits what was saved."""
        if not self._keys:
            self._name([0.0] * len(self._ranks))
        records = [_record(rank, key, id_) for rank, (key, id_) in enumerate(zip(self._keys, self._ids, strict=True))]
        before, self._latest = self._latest, self._ids[0]
        return self._run([commit_stages(records, self._latest, before)], [0.0])

    def load(self) -> Outcome:
        """All ranks load the newest checkpoint."""
        stages = [load_stages(key, self._ids[0].manifest_key) for key in self._keys]
        return self._run(stages, [self._chance.uniform(0, _STARTED) for _ in self._ranks])

    def _run(self, stages: Sequence[Stages], delays: Sequence[float]) -> Outcome:
        """Start the ranks and let time pass until all have ended; then the pause before what comes next."""
        store, began = self.store, self._time.now
        requests, refused = store.requests, store.refused
        ended = [0.0]

        def note() -> None:
            ended.append(self._time.now)

        for rank, mine, delay in zip(self._ranks, stages, delays, strict=False):
            self._time.after(delay, partial(rank.start, mine, note))
        self._time.run()
        failed = sum(rank.failed for rank, _ in zip(self._ranks, stages, strict=False))
        seconds = max(ended) - began
        self._time.after(_BETWEEN, lambda: None)
        self._time.run()
        return Outcome(seconds, store.requests - requests, store.refused - refused, store.partitions, failed)

    def _name(self, delays: Sequence[float]) -> None:
        """New ids and keys of all ranks, which begin after ``delays``."""
        self._ids = [self._mint(delay) for delay in delays]
        if not self._own_ids:
            self._ids = self._ids[:1] * len(self._ids)
        self._keys = [shard_key(self._strategy, id_, rank, "none") for rank, id_ in enumerate(self._ids)]

    def _mint(self, delay: float) -> CheckpointId:
        start = _EPOCH_US + int((self._time.now + delay) * 1e6)
        return CheckpointId(1000 * self._saves, format_timestamp(start, f"{self._chance.getrandbits(32):08x}"))


def _record(rank: int, key: str, id_: CheckpointId) -> ShardRecord:
    index = IndexRef(index_key(key), 1, "crc32c:00000000")
    return ShardRecord(rank, key, 1, id_.step, 0, id_.timestamp, index=index)


def prefixes(strategy: Strategy) -> list[str]:
    """Boundaries that give each prefix of the strategy a partition of its own."""
    return sorted({f"{SHARDS}{strategy.prefix(rank)}" for rank in range(RANKS[-1])})


def run(options: Options) -> Report:
    """Simulate all tables; none of the options matters."""
    report = Report("hotspots", {"ranks": RANKS, "parts": PARTS, "patience": PATIENCE, "retry": asdict(REMOTE)})
    saves: list[Row] = []
    loads: list[Row] = []
    ready: list[Row] = []
    for ranks in RANKS:
        for strategy in Strategy:
            say(f"{strategy.value}, {ranks:,} ranks")
            _series(strategy, ranks, report, saves, loads)
            ready.append(_ready(strategy, ranks, report))
    limits = f"{WRITES:,.0f} writes and {READS:,.0f} reads a second and partition"
    splitting = f"simulated; {limits}; a partition splits after {PATIENCE} overloaded seconds"
    case, counts = ("strategy", "ranks", "checkpoint"), ("503s", "requests", "partitions")
    report.add(
        Table(f"save, {splitting}", (*case, "shards, s", "commit, s", *counts), saves),
        Table(f"load, {splitting}", (*case, "s", *counts), loads),
        Table(
            f"simulated; {limits}; each prefix of the strategy a partition from the start, no splits",
            ("strategy", "ranks", "save, s", "503s", "load, s", "503s", "partitions"),
            ready,
        ),
        _commits(report),
    )
    report.notes = [
        f"Each rank: a shard of {PARTS} parts of 16 MiB and its index. s: until the last has ended; -: one gave up.",
        "A simulation under the assumptions of perf/prefix_store.py, not a measurement of S3.",
    ]
    return report


def _series(strategy: Strategy, ranks: int, report: Report, saves: list[Row], loads: list[Row]) -> None:
    """Rows of the first and the last of some checkpoints in a row."""
    cluster = Cluster(strategy, ranks)
    case = f"{strategy.value}, {ranks} ranks"
    for number in range(1, CHECKPOINTS + 1):
        save = cluster.save()
        report.samples[f"{case}, save {number}"] = asdict(save)
        if number not in (1, CHECKPOINTS):
            continue
        row = (strategy.value, f"{ranks:,}", str(number))
        commit, load = cluster.commit(), cluster.load()
        report.samples[f"{case}, commit {number}"] = asdict(commit)
        report.samples[f"{case}, load {number}"] = asdict(load)
        both = replace(save, refused=save.refused + commit.refused, requests=save.requests + commit.requests)
        seconds, *counts = _cells(both)
        saves.append((*row, seconds, None if save.failed else _cells(commit)[0], *counts))
        loads.append((*row, *_cells(load)))


def _ready(strategy: Strategy, ranks: int, report: Report) -> Row:
    """What a store does that was partitioned by the strategy's prefixes beforehand."""
    cluster = Cluster(strategy, ranks, patience=None, boundaries=prefixes(strategy))
    save, load = cluster.save(), cluster.load()
    report.samples[f"{strategy.value}, {ranks} ranks, partitioned"] = {"save": asdict(save), "load": asdict(load)}
    return (strategy.value, f"{ranks:,}", *_cells(save)[:2], *_cells(load)[:2], str(save.partitions))


def _commits(report: Report) -> Table:
    """What the layout of the keys asks of rank 0."""
    rows: list[Row] = []
    for strategy in Strategy:
        cells: list[str | float | None] = []
        for own_ids in (True, False):
            found = Cluster(strategy, RANKS[-1], own_ids=own_ids, patience=None).commit()
            report.samples[f"{strategy.value}, commit, {'own ids' if own_ids else 'one id'}"] = asdict(found)
            cells += [f"{found.requests:,}", _cells(found)[0]]
        rows.append((strategy.value, *cells))
    columns = ("strategy", "an id of each rank: requests", "s", "one id of all: requests", "s")
    return Table(f"simulated; commit of {RANKS[-1]:,} ranks by rank 0, {WIDTH} requests at once", columns, rows)


def _cells(found: Outcome) -> Row:
    seconds = None if found.failed else found.seconds
    return seconds, f"{found.refused:,}", f"{found.requests:,}", str(found.partitions)
