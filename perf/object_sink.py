"""The tables against the sink: what a save and two kinds of load reach of the bare loop, and which CPU they take.

Owns the order of what is measured there, for S3 and for Azure alike; ``object_bench`` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import object_cases as objects
from . import state
from .harness import Options, Report, Results, Table, alternate, say
from .object_loops import Loop
from .object_peers import Ours
from .savers import roomy
from .sink import Sink, running_sink

_BUCKET = "bucket"


def run(report: Report, options: Options, scheme: str, tree: Any) -> None:
    """Everything against a sink that stores, then saves to one that discards: there the client alone is the limit."""
    objects.attempt(report, "sink that stores", lambda: _stored(report, options, scheme, tree))
    objects.attempt(report, "sink that discards", lambda: _discarded(report, options, scheme, tree))


def _stored(report: Report, options: Options, scheme: str, tree: Any) -> None:
    with running_sink("store") as sink, _Pair(sink, scheme, tree) as pair:
        pair.loop.tune()
        found = {"save": _saves(pair, sink, options.repeat)}
        pair.loop.save()
        pair.loop.check()
        pair.ours.save()
        pair.ours.check()
        target = state.empty_like(tree)
        load = {
            "loop": (pair.loop.load, pair.ours.load),
            "into": (pair.loop.load_into, lambda: pair.ours.load_into(target)),
        }
        for title, (bare, ours) in (
            ("load into new memory", load["loop"]),
            ("load into= existing tensors", load["into"]),
        ):
            say(title)
            cases = [
                objects.load_case(pair.loop.name, bare, sink.pid, pair.nbytes),
                objects.load_case(pair.ours.name, ours, sink.pid, pair.nbytes),
            ]
            found[title] = alternate(cases, options.repeat)
        objects.check_same(pair.ours.name, tree, target)
        tables = [pair.table(title, results, sink) for title, results in found.items()]
        report.add(*tables)
        report.take({f"{title}, {sink.label}": results for title, results in found.items()})
        threads = ", ".join(f"{count} to {work}" for work, count in pair.loop.threads.items())
        report.notes.append(
            f"{sink.label}: the bare loop was fastest with so many threads in each process: {threads}; "
            f"{pair.ours.name} has {pair.ours.connections} connections a worker, its bytes verified by "
            f"{pair.ours.verified or 'nothing'}"
        )


def _discarded(report: Report, options: Options, scheme: str, tree: Any) -> None:
    with running_sink("discard") as sink, _Pair(sink, scheme, tree) as pair:
        pair.loop.tune(("save",))
        found = _saves(pair, sink, options.repeat)
        report.add(pair.table("save", found, sink))
        report.take({f"save, {sink.label}": found})


def _saves(pair: _Pair, sink: Sink, repeat: int) -> Results:
    say("saves")
    cases = [objects.case(saver.name, saver.save, sink.pid, before=saver.clear) for saver in (pair.loop, pair.ours)]
    return alternate(cases, repeat)


class _Pair:
    """The bare loop and this package, with the same bytes at the same sink."""

    def __init__(self, sink: Sink, scheme: str, tree: Any) -> None:
        self.nbytes = state.size(tree)
        options = sink.s3_options if scheme == "s3" else sink.az_options
        place = f"s3://{_BUCKET}" if scheme == "s3" else f"az://sink/{_BUCKET}"
        self.loop = Loop(scheme, options, _BUCKET, objects.bytes_of(tree))
        try:
            self.ours = Ours(f"{place}/ours", options, tree, memory=roomy(self.nbytes))
        except BaseException:
            self.loop.close()
            raise

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.ours.close()
        finally:
            self.loop.close()

    @property
    def names(self) -> Sequence[str]:
        return self.loop.name, self.ours.name

    def table(self, title: str, results: Results, sink: Sink) -> Table:
        whole = f"{title}, {objects.gib(self.nbytes)}, {sink.label}"
        return objects.limit_table(whole, results, self.nbytes, self.names, "sink")
