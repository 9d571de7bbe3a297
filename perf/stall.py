"""What a background save costs the training loop: the time until ``save_async`` returns.

The first table compares it with one warm copy of the same tensors, which is the least a copying save can cost, and with
torch DCP's ``async_save``; the second shows how it grows with the number of leaves. Every case waits, outside the
clock, until its save is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from . import limits, state
from .harness import Case, Options, Report, Results, Table, alternate, gb_per_s, say, scaled
from .savers import Dcp, Ours, emptied, opened, roomy

LEAVES = (10, 100, 1_000, 10_000)


class _Pending(Protocol):
    def result(self, timeout: float | None = None) -> object: ...


def run(options: Options) -> Report:
    """Measure both tables."""
    tree = state.reference(options.size)
    nbytes = state.size(tree)
    state.warm_machine(4 * nbytes)
    report = Report("stall", {"bytes": nbytes, "repeat": options.repeat})
    say("one state")
    whole = _whole(options, tree, nbytes, report)
    report.add(_whole_table(whole, nbytes))
    say("by leaves")
    leaves = _leaves(options)
    report.add(_leaves_table(leaves))
    report.take({"stall": whole, "leaves": leaves})
    return report


def _whole(options: Options, tree: Any, nbytes: int, report: Report) -> Results:
    folder = options.folder / "data"
    ours = Ours(folder / "ours", tree, "file", memory=roomy(nbytes))
    makers: list[Callable[[], Any]] = []
    if options.peers:
        makers = [lambda: Dcp(folder / "thread", tree, "thread"), lambda: Dcp(folder / "process", tree, "process")]
    peers, notes = opened(makers)
    report.notes += notes
    copy = limits.WarmCopy(tree)
    cases = [
        Case("one warm copy, one thread", copy.copy),
        _background("s3dlio save_async", ours.begin, ours.clear),
        _background("s3dlio save_async(defer_staging=True)", partial(ours.begin, defer_staging=True), ours.clear),
        *(_background(f"{peer.name}: async_save", peer.begin, peer.clear) for peer in peers if isinstance(peer, Dcp)),
    ]
    try:
        return alternate(cases, options.repeat)
    finally:
        for saver in (ours, *peers):
            saver.clear()
            saver.close()


def _leaves(options: Options) -> Results:
    folder = options.folder / "data"
    cases: list[Case] = []
    opened_here: list[Ours] = []
    for count in LEAVES:
        ours = Ours(emptied(folder / f"leaves-{count}"), state.many(count), "file", memory=256 << 20)
        opened_here.append(ours)
        cases.append(_background(f"{count}", ours.begin, ours.clear))
        cases.append(_background(f"{count} deferred", partial(ours.begin, defer_staging=True), ours.clear))
    try:
        return alternate(cases, options.repeat)
    finally:
        for ours in opened_here:
            ours.clear()
            ours.close()


def _background(name: str, begin: Callable[[], _Pending], clear: Callable[[], None]) -> Case:
    """Measures ``begin``; ends what it began outside the clock."""
    pending: list[_Pending] = []

    def after() -> None:
        while pending:
            pending.pop().result(timeout=600)
        clear()

    return Case(name, lambda: pending.append(begin()), after=after)


def _whole_table(results: Results, nbytes: int) -> Table:
    first = "one warm copy, one thread"
    rows = []
    for name in {name: None for numbers in results.rounds for name in numbers}:
        seconds = results.median(name)
        rows.append((name, scaled(seconds, 1e3), results.ratio(name, first), gb_per_s(nbytes, seconds)))
    rows.sort(key=lambda row: (row[0] != first, row[1] or 0))
    return Table(f"stall of one save, {nbytes / (1 << 30):.2f} GiB", ("case", "ms", "of one copy", "GB/s"), rows)


def _leaves_table(results: Results) -> Table:
    rows = []
    for count in LEAVES:
        plain, deferred = results.median(f"{count}"), results.median(f"{count} deferred")
        rows.append((f"{count}", scaled(plain, 1e3), scaled(deferred, 1e3), scaled(deferred, 1e6 / count)))
    return Table("stall by number of leaves of 1 KiB", ("leaves", "ms", "deferred ms", "deferred µs a leaf"), rows)
