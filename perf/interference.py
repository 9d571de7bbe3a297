"""What a background save takes from the training loop beside it: steps lost, and the longest pauses.

A loop runs without a save and then during a save by each saver, in turn. Steps lost are those it would have made in the
time from the start of the save to its commit, the call itself included, less those it made; shown as milliseconds of
training per save. A pause is the duration of one step; the call that starts the save is shown apart, as stall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import loops, state
from .harness import Case, Options, Report, Results, Table, Timed, alternate, say, scaled
from .savers import Dcp, Ours, opened, roomy

_ALONE = "no save"
_ALONE_SECONDS = 3.0
_LIMIT = 60.0
"""Seconds of steps beside one save: a saver in the loop's own interpreter may get so little of it that a round would
take minutes. It is left out from then on, with a note."""
LOOPS: dict[str, Callable[[], loops.Step]] = {"python": loops.python_step, "torch": loops.torch_step}


@dataclass(slots=True)
class _Rate:
    """Steps a second of the loop alone, as last measured."""

    steps: float = 0.0


def run(options: Options) -> Report:
    """Measure both loops."""
    tree = state.reference(options.size)
    nbytes = state.size(tree)
    state.warm_machine(4 * nbytes)
    report = Report("interference", {"bytes": nbytes, "repeat": options.repeat})
    folder = options.folder / "data"
    ours = Ours(folder / "ours", tree, "file", memory=roomy(nbytes))
    makers: list[Callable[[], Any]] = []
    if options.peers:
        makers = [lambda: Dcp(folder / "thread", tree, "thread"), lambda: Dcp(folder / "process", tree, "process")]
    peers, report.notes = opened(makers)
    savers: dict[str, tuple[Callable[[], Any], Callable[[], None]]] = {
        "s3dlio": (ours.begin, ours.clear),
        "s3dlio, deferred": (lambda: ours.begin(defer_staging=True), ours.clear),
    }
    savers |= {peer.name: (peer.begin, peer.clear) for peer in peers if isinstance(peer, Dcp)}
    found: dict[str, Results] = {}
    try:
        for name, make in LOOPS.items():
            say(f"{name} loop")
            found[name] = _loop(make(), savers, options.repeat)
            report.add(_table(name, found[name], nbytes))
    finally:
        for saver in (ours, *peers):
            saver.clear()
            saver.close()
    report.take(found)
    return report


def _loop(step: loops.Step, savers: dict[str, tuple[Callable[[], Any], Callable[[], None]]], repeat: int) -> Results:
    rate = _Rate()

    def alone() -> Timed:
        until = time.perf_counter() + _ALONE_SECONDS
        found = loops.stretch(step, lambda: time.perf_counter() >= until)
        rate.steps = found.rate
        return Timed(_numbers(found, rate.steps, 0.0))

    def case(name: str, begin: Callable[[], Any], clear: Callable[[], None]) -> Case:
        def during() -> Timed:
            if not rate.steps:
                alone()
            started = time.perf_counter()
            pending = begin()
            stalled = time.perf_counter() - started
            late = started + _LIMIT
            found = loops.stretch(step, lambda: pending.done() or time.perf_counter() > late, started=started)
            in_time = pending.done()
            pending.result()
            if not in_time:
                raise TimeoutError(f"its save was not done after {_LIMIT:g} s beside the loop")
            return Timed(_numbers(found, rate.steps, stalled))

        return Case(name, during, after=clear)

    return alternate([Case(_ALONE, alone), *(case(name, *pair) for name, pair in savers.items())], repeat)


def _numbers(found: loops.Stretch, rate: float, stalled: float) -> dict[str, float]:
    return {
        "seconds": found.seconds,
        "lost": found.seconds - len(found.steps) / rate,
        "stall": stalled,
        "rate": found.rate,
        "p99.9": found.quantile(0.999),
        "longest": found.quantile(1.0),
    }


def _table(name: str, results: Results, nbytes: int) -> Table:
    names = list({name: None for numbers in results.rounds for name in sorted(numbers)})
    names.sort(key=lambda n: (n != _ALONE, not n.startswith("s3dlio"), n))
    columns = ("case", "steps/s", "training lost, ms", "stall, ms", "p99.9 pause, ms", "longest, ms", "save took, s")
    rows = [
        (
            case,
            results.median(case, "rate"),
            None if case == _ALONE else scaled(results.median(case, "lost"), 1e3),
            None if case == _ALONE else scaled(results.median(case, "stall"), 1e3),
            scaled(results.median(case, "p99.9"), 1e3),
            scaled(results.median(case, "longest"), 1e3),
            None if case == _ALONE else results.median(case),
        )
        for case in names
    ]
    return Table(f"{name} loop beside a save of {nbytes / (1 << 30):.2f} GiB", columns, rows)
