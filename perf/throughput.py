"""Save to durable, cold and warm load: this package beside the disk itself and beside its peers.

Three tables, each of cases that alternate: saves; loads of files that are in no cache; loads of files that are.
Ratios are to the first row, of the same round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import limits, state
from .harness import Case, Options, Report, Results, Table, alternate, gb_per_s, say, scaled
from .savers import Dcp, Ours, Plain, Safetensors, Saver, TorchSave, Wheel, opened, roomy

_PAST = ", past the cache"
_COLUMNS = ("case", "GB/s", "of the first", "CPU s/GB", "seconds")


def run(options: Options) -> Report:
    """Measure all three."""
    tree = state.reference(options.size)
    nbytes = state.size(tree)
    state.warm_machine(3 * nbytes)
    report = Report("throughput", {"bytes": nbytes, "repeat": options.repeat, "requests": options.requests})
    savers, report.notes = opened(_makers(options, tree, nbytes))

    def show(title: str, results: Results) -> None:
        report.add(_table(title, results, nbytes))
        report.take({title: results})

    try:
        say("saves")
        saves = alternate([_save(s) for s in savers], options.repeat)
        show("save to durable", saves)
        savers = [s for s in savers if s.name not in saves.failures]
        for saver in savers:
            saver.save()
        say("cold loads")
        show("load, cold", _loads(savers, tree, options.repeat, cold=True))
        say("warm loads")
        show("load, warm", _loads(savers, tree, options.repeat, cold=False))
    finally:
        for saver in savers:
            saver.clear()
            saver.close()
    return report


def _makers(options: Options, tree: object, nbytes: int) -> list[Callable[[], Saver]]:
    folder = options.folder / "data"
    memory = roomy(nbytes)
    makers: list[Callable[[], Saver]] = [
        lambda: Plain(folder / "direct", nbytes, options.requests, direct=True),
        lambda: Plain(folder / "buffered", nbytes, options.requests, direct=False),
        lambda: Ours(folder / "ours-direct", tree, "direct", memory=memory),
        lambda: Ours(folder / "ours-file", tree, "file", memory=memory),
        lambda: Ours(folder / "ours-grouped", tree, "file", "zstd-grouped", memory=memory),
    ]
    if options.peers:
        makers += [
            lambda: TorchSave(folder / "torch", tree),
            lambda: Safetensors(folder / "safetensors", tree),
            lambda: Dcp(folder / "dcp", tree),
            lambda: Wheel(folder / "wheel", nbytes, options.folder),
        ]
    return makers


def _save(saver: Saver) -> Case:
    def before() -> None:
        limits.cool(limits.files(saver.folder))
        saver.clear()

    return Case(saver.name, saver.save, before)


def _loads(savers: list[Saver], tree: object, repeat: int, *, cold: bool) -> Results:
    """Loads of files that are in no cache, or of those in the page cache: what reads past it is left out there."""

    def case(name: str, folder: Path, load: Callable[[], object]) -> Case:
        def before() -> None:
            (limits.cool if cold else limits.heat)(limits.files(folder))
            state.warm_machine(state.size(tree))  # a virtual machine's host takes free memory back within seconds

        return Case(name, load, before)

    cases: list[Case] = []
    target = state.empty_like(tree)  # one for all: memory that is short costs whoever makes new pages
    loop = None
    plain = next((s for s in savers if isinstance(s, Plain)), None)
    if plain:
        loop = limits.Loop(plain.file.path, direct=cold)
        cases.append(case(f"bare loop of 2: read, CRC-32C, new memory{_PAST if cold else ''}", plain.folder, loop.read))
    for saver in savers:
        if not cold and (isinstance(saver, Plain) or saver.name.startswith("s3dlio direct")):
            continue
        cases.append(case(saver.name, saver.folder, saver.load))
        if isinstance(saver, Ours):
            cases.append(case(f"{saver.name}, into= existing tensors", saver.folder, partial(saver.load_into, target)))
    try:
        return alternate(cases, repeat)
    finally:
        if loop:
            loop.close()


def _table(title: str, results: Results, nbytes: int) -> Table:
    names = list(dict.fromkeys(name for numbers in results.rounds for name in sorted(numbers)))
    rows = []
    first = _first(title, names)
    for name in sorted(names, key=lambda n: (n != first, results.median(n) or 0)):
        seconds, slower = results.median(name), results.ratio(name, first)
        cpu = scaled(results.median(name, "cpu"), 1e9 / nbytes)
        rows.append((name, gb_per_s(nbytes, seconds), 1 / slower if slower else None, cpu, seconds))
    return Table(f"{title}, {nbytes / (1 << 30):.2f} GiB", _COLUMNS, rows)


def _first(title: str, names: list[str]) -> str:
    prefix = "bare loop" if title == "load, warm" else "plain O_DIRECT"
    return next((name for name in names if name.startswith(prefix)), names[0] if names else "")
