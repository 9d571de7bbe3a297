"""Rank 0 of jobs of up to 16,384 ranks with 10,000,000 tensors: agreeing, gathering and committing, simulated.

The code is that of a save, the words come from fakes and the payloads are a few bytes in a store in memory, so this is
what a save of a large job costs beside its bytes. Each number of ranks has a process of its own, ``ranks_one``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from .harness import Case, Options, Report, Results, Table, Timed, alternate, say, scaled

RANKS = (1_024, 4_096, 16_384)
TENSORS = 10_000_000
LEAVES = TENSORS // RANKS[-1]
MIB = 1 << 20
STAGES = ("agree", "gather", "commit")


def run(options: Options) -> Report:
    """Measure every number of ranks."""
    report = Report("ranks", {"ranks": RANKS, "leaves": LEAVES, "repeat": options.repeat})
    results = alternate([Case(f"{ranks:,}", partial(_one, ranks)) for ranks in RANKS], options.repeat)
    report.add(_table(results))
    report.take({"ranks": results})
    return report


def _one(ranks: int) -> Timed:
    say(f"{ranks:,} ranks")
    command = [sys.executable, "-m", "perf.ranks_one", str(ranks), str(LEAVES)]
    return Timed(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _table(results: Results) -> Table:
    rows = []
    for ranks in RANKS:
        name = f"{ranks:,}"
        seconds = [results.median(name, stage) for stage in STAGES]
        each = None if None in seconds else sum(second for second in seconds if second is not None) / ranks
        memory, manifest = results.median(name, "memory"), results.median(name, "manifest")
        rows.append(
            (
                name,
                f"{ranks * LEAVES:,}",
                *seconds,
                scaled(each, 1e6),
                scaled(memory, 1 / MIB),
                scaled(manifest, 1 / MIB),
            )
        )
    columns = ("ranks", "tensors", "agree, s", "gather, s", "commit, s", "µs a rank", "memory, MiB", "manifest, MiB")
    return Table("rank 0 of a save, payloads and other ranks simulated", columns, rows)
