"""A far store and a narrow link, by the sink: whether requests in flight fill the one, and codecs widen the other.

The far store answers after 15 ms and moves 90 MB/s on each connection: rates against the sum of the connections, or
against what this machine reaches at the same sink without either, where that is less. Two processes of bare SDK calls
with as many connections show how much of that can be had: slow connections cost more CPU than fast ones. The link of
100 MB/s carries trained weights and moments with each codec; ``auto`` should encode there, and should not where the
link is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from . import object_cases as objects
from . import state
from .harness import GB, Case, Numbers, Options, Report, Results, Table, alternate, say
from .object_cases import WORKERS
from .object_loops import PROCESSES, Loop
from .object_peers import Ours
from .savers import roomy
from .sink import Sink, running_sink

LATENCY_MS = 15.0
RATE = 90.0  # MB/s of a connection
CONNECTIONS = (1, 2, 4, 8)
LINK_CONNECTIONS, LINK_RATE = 2, 25.0  # of each of two workers: 100 MB/s
CODECS = ("none", "zstd-grouped", "auto")
_CAP = "without latency and rate"


def run(options: Options) -> Report:
    """Measure both."""
    report = Report("latency", {"bytes": options.size, "repeat": options.repeat})
    state.warm_machine(6 * options.size)
    objects.attempt(report, "far store", lambda: _far(report, options, state.reference(options.size)))
    objects.attempt(report, "codecs", lambda: _codecs(report, options))
    return report


def _far(report: Report, options: Options, tree: Any) -> None:
    nbytes = state.size(tree)
    with ExitStack() as opened:
        far = opened.enter_context(running_sink("store", latency_ms=LATENCY_MS, mbps=RATE))
        near = opened.enter_context(running_sink("store"))
        places = [(_CAP, near, CONNECTIONS[-1]), *((_width(count), far, count) for count in CONNECTIONS)]
        savers: dict[str, tuple[Sink, Ours | _Bare]] = {
            name: (sink, _open(opened, sink, tree, nbytes, count)) for name, sink, count in places
        }
        loop = Loop("s3", far.s3_options, "bucket", objects.bytes_of(tree))
        opened.callback(loop.close)
        savers.update({_bare(count): (far, _Bare(loop, count)) for count in CONNECTIONS})
        say("saves")
        cases = [objects.case(name, saver.save, sink.pid, before=saver.clear) for name, (sink, saver) in savers.items()]
        saves = alternate(cases, options.repeat)
        say("loads")
        loads = alternate(
            [objects.load_case(name, saver.load, sink.pid, nbytes) for name, (sink, saver) in savers.items()],
            options.repeat,
        )
        for name, (_, saver) in savers.items():
            objects.attempt(report, f"comparing what {name} gives back", saver.check)
        label = far.label
    found = {f"save, {label}": saves, f"load, {label}": loads}
    report.add(_far_table(f"{objects.gib(nbytes)}, {label}", saves, loads, nbytes))
    report.take(found)


class _Bare:
    """The bare loop with so many connections of each process."""

    def __init__(self, loop: Loop, connections: int) -> None:
        self._loop, self._connections = loop, connections
        self.clear, self.check = loop.clear, loop.check

    def save(self) -> object:
        return self._as_wide().save()

    def load(self) -> object:
        return self._as_wide().load()

    def _as_wide(self) -> Loop:
        self._loop.threads = dict.fromkeys(self._loop.threads, self._connections)
        return self._loop


def _open(opened: ExitStack, sink: Sink, tree: Any, nbytes: int, connections: int) -> Ours:
    """All in one place of their sink, which then holds the newest save only."""
    ours = Ours("s3://bucket/far", sink.s3_options, tree, memory=roomy(nbytes), connections=connections)
    opened.callback(ours.close)
    return ours


def _width(connections: int) -> str:
    return f"{WORKERS} workers × {connections}"


def _bare(connections: int) -> str:
    return f"bare loop of {PROCESSES} × {connections}: boto3"


def _far_table(title: str, saves: Results, loads: Results, nbytes: int) -> Table:
    """Each rate beside what the connections allow, and as a share of that or of the machine's own, if less."""
    rows: list[Sequence[str | float | None]] = []
    caps = [_rate(results, _CAP, nbytes) for results in (saves, loads)]
    rows.append((_CAP, None, caps[0], None, caps[1], None))
    for name, count in [(name_of(count), count) for count in CONNECTIONS for name_of in (_width, _bare)]:
        link = WORKERS * count * RATE * 1e6 / GB
        cells: list[float | None] = []
        for results, cap in zip((saves, loads), caps, strict=True):
            rate = _rate(results, name, nbytes)
            cells += [rate, rate / min(link, cap) if rate and cap else None]
        rows.append((name, link, *cells))
    columns = ("connections", "their sum GB/s", "save GB/s", "of the least", "load GB/s", "of the least")
    return Table(title, columns, rows)


def _rate(results: Results, name: str, nbytes: int) -> float | None:
    seconds = results.median(name)
    return nbytes / seconds / GB if seconds else None


def _codecs(report: Report, options: Options) -> None:
    tree = trained(options.size)
    nbytes = state.size(tree)
    with running_sink("store", mbps=LINK_RATE) as narrow, running_sink("store") as fast:
        for name, sink, connections in (
            (f"a link of {WORKERS * LINK_CONNECTIONS * LINK_RATE:.0f} MB/s", narrow, LINK_CONNECTIONS),
            ("a fast link", fast, None),
        ):
            say(name)
            results = _each_codec(sink, tree, nbytes, connections, options.repeat)
            title = f"save to durable, {objects.gib(nbytes)} of trained weights and moments, {name}, {sink.label}"
            report.add(_codec_table(title, results, nbytes))
            report.take({title: results})


def _each_codec(sink: Sink, tree: Any, nbytes: int, connections: int | None, repeat: int) -> Results:
    with ExitStack() as opened:
        cases: list[Case] = []
        for codec in CODECS:
            ours = Ours(
                f"s3://bucket/{codec}",
                sink.s3_options,
                tree,
                memory=roomy(nbytes),
                connections=connections,
                compression=codec,
            )
            opened.callback(ours.close)
            cases.append(objects.case(codec, ours.save, sink.pid, before=ours.clear, then=lambda o=ours: _stored(o)))  # type: ignore[misc]
        return alternate(cases, repeat)


def _stored(ours: Ours) -> Numbers:
    stored, encoded = ours.stored()
    return {"saved %": 100 * (1 - stored), "encoded %": 100 * encoded}


def _codec_table(title: str, results: Results, nbytes: int) -> Table:
    rows = [
        (
            codec,
            results.median(codec),
            results.ratio(codec, CODECS[0]),
            _rate(results, codec, nbytes),
            results.median(codec, "saved %"),
            results.median(codec, "encoded %"),
        )
        for codec in CODECS
    ]
    columns = ("compression", "seconds", "time, × none", "GB/s", "bytes saved %", "chunks encoded %")
    return Table(title, columns, rows)


def trained(nbytes: int, steps: int | None = None) -> dict[str, torch.Tensor]:
    """About ``nbytes`` of weights and moments that were really trained, repeated as often as it takes."""
    from . import sample

    say("training a small transformer")
    data, ((_, moments, _), (_, end, _)) = sample.trained(sample.STEPS if steps is None else steps)
    whole = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    wide, narrow = whole[:moments].view(torch.float32), whole[moments:end].view(torch.bfloat16)
    tree: dict[str, torch.Tensor] = {}
    for number in range(max(1, round(nbytes / end))):
        tree[f"{number}.moments"], tree[f"{number}.weights"] = wide.clone(), narrow.clone()
    return tree
