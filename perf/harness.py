"""Runs cases in turn, so that all see the same machine, and turns what they measured into tables.

Owns the clock, the order of cases and the arithmetic; knows nothing of checkpoints. Benchmarks call it.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import machine, meter

GB = 1e9
GIB = 1 << 30

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose: ``size`` of the state in bytes, ``folder`` for data and the peers' environments."""

    size: int
    repeat: int
    folder: Path
    requests: int
    peers: bool


@dataclass(frozen=True, slots=True)
class Timed:
    """A case that measured itself: its numbers replace the harness's."""

    numbers: Numbers


def nothing() -> None:
    """The default of what comes before and after a case."""


@dataclass(frozen=True, slots=True)
class Case:
    """``run`` is measured, ``before`` and ``after`` are not; what it returns lives until after the clock."""

    name: str
    run: Callable[[], object]
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text and numbers under ``columns``."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


@dataclass(slots=True)
class Report:
    """What a benchmark found: tables to read, samples to compute with.

    Tables are shown as they are added, so that a run that is cut short has not been for nothing.
    """

    name: str
    options: dict[str, object]
    tables: list[Table] = field(default_factory=list)
    samples: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, *tables: Table) -> None:
        """Take in tables, and print them."""
        for table in tables:
            self.tables.append(table)
            print("", table.title, *_columns(table), sep="\n", flush=True)

    def take(self, found: Mapping[str, Results]) -> None:
        """Keep what was measured, and a note of every case that failed."""
        for part, results in found.items():
            self.samples[part] = results.as_json()
            self.notes += [f"{part}: {name} failed: {why}" for name, why in results.failures.items()]

    def as_json(self) -> dict[str, object]:
        """Everything, with the facts of the machine."""
        return {"machine": machine.facts(), **asdict(self)}


class Results:
    """The numbers of every case in every round; a case that failed has the reason instead."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Numbers]] = []
        self.failures: dict[str, str] = {}

    def median(self, case: str, key: str = "seconds") -> float | None:
        """Median over the rounds."""
        found = [numbers[case][key] for numbers in self.rounds if key in numbers.get(case, {})]
        return statistics.median(found) if found else None

    def ratio(self, case: str, other: str, key: str = "seconds") -> float | None:
        """Median over the rounds of this case's number over the other's of the same round."""
        pairs = [
            numbers[case][key] / numbers[other][key]
            for numbers in self.rounds
            if key in numbers.get(case, {}) and numbers.get(other, {}).get(key)
        ]
        return statistics.median(pairs) if pairs else None

    def add(self, other: Results) -> None:
        """Take in the other cases of as many rounds."""
        for mine, theirs in zip(self.rounds, other.rounds, strict=True):
            mine.update(theirs)
        self.failures.update(other.failures)

    def as_json(self) -> dict[str, object]:
        """Raw rounds and failures."""
        return {"rounds": self.rounds, "failures": self.failures}


def alternate(cases: Sequence[Case], repeat: int, *, warm_up: bool = True) -> Results:
    """Run every case ``repeat`` times, in turn, each round beginning with another case; ``warm_up`` is one round more.

    A case that raises is left out from then on and its reason kept: a peer that cannot run must not hide the others.
    Says the medians at once: tables come later, and a run may be cut short.
    """
    results = Results()
    for number in range(0 if warm_up else 1, repeat + 1):
        turn = number % len(cases)
        numbers: dict[str, Numbers] = {}
        for case in [*cases[turn:], *cases[:turn]]:
            if case.name in results.failures:
                continue
            try:
                numbers[case.name] = _measure(case)
            except Exception as error:  # noqa: BLE001 - a case that cannot run must not hide the others
                results.failures[case.name] = f"{type(error).__name__}: {error}"
                say(f"  {case.name} failed: {results.failures[case.name]}")
        if number:
            results.rounds.append(numbers)
        say(f"  round {number} of {repeat}{'' if number else ' (warming up)'}")
    medians = ((case.name, results.median(case.name)) for case in cases)
    say("  " + ", ".join(f"{name}: {median:.3g} s" for name, median in medians if median is not None))
    return results


def _measure(case: Case) -> Numbers:
    case.before()
    gc.collect()
    try:
        cpu = meter.cpu_seconds()
        started = time.perf_counter()
        kept = case.run()
        seconds = time.perf_counter() - started
        cpu = meter.cpu_seconds() - cpu
        numbers: Numbers = {"seconds": seconds, "cpu": cpu}
        if isinstance(kept, Timed):
            numbers.update(kept.numbers)
        del kept
        return numbers
    finally:
        case.after()


def say(text: str) -> None:
    """Progress, on the terminal's error stream: the tables alone go to its output."""
    print(text, file=sys.stderr, flush=True)


def title(name: str) -> str:
    """What a benchmark's tables stand under: its name and the machine."""
    facts = machine.facts()
    return f"{name}: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']:.0f} GiB"


def _columns(table: Table) -> Iterable[str]:
    rows = [list(table.columns), *([_cell(value) for value in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for first, *rest in rows:
        yield "  ".join([first.ljust(widths[0]), *(text.rjust(w) for text, w in zip(rest, widths[1:], strict=True))])


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def gb_per_s(nbytes: int, seconds: float | None) -> float | None:
    """Rate in GB/s (10^9 bytes)."""
    return nbytes / seconds / GB if seconds else None


def scaled(value: float | None, factor: float) -> float | None:
    """``value`` × ``factor`` where there is a value."""
    return None if value is None else value * factor
