"""Save to durable, cold and warm load: this package beside the disk itself and beside its peers.

Three tables, each of cases that alternate: saves; loads of files that are in no cache; loads of files that are.
Ratios are to the first row, of the same round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import limits, state
from .harness import Case, Options, Report, Results, Table, alternate, failures, gb_per_s, say, scaled
from .savers import Dcp, Ours, Plain, Safetensors, Saver, TorchSave, Wheel, opened, roomy

_COLUMNS = ("case", "GB/s", "of the first", "CPU s/GB", "seconds")


def run(options: Options) -> Report:
    """Measure all three."""
    tree = state.reference(options.size)
    nbytes = state.size(tree)
    state.warm_machine(3 * nbytes)
    report = Report("throughput", {"bytes": nbytes, "repeat": options.repeat, "requests": options.requests})
    savers, report.notes = opened(_makers(options, tree, nbytes))
    found: dict[str, Results] = {}
    try:
        say("saves")
        found["save to durable"] = alternate([_save(s) for s in savers], options.repeat)
        savers = [s for s in savers if s.name not in found["save to durable"].failures]
        for saver in savers:
            saver.save()
        say("cold loads")
        found["load, cold"] = alternate([_load(s, limits.cool) for s in savers], options.repeat)
        say("warm loads")
        found["load, warm"] = _warm(savers, tree, options.repeat)
    finally:
        for saver in savers:
            saver.clear()
            saver.close()
    report.tables = [_table(name, results, nbytes) for name, results in found.items()]
    report.samples = {name: results.as_json() for name, results in found.items()}
    report.notes += failures(found)
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


def _load(saver: Saver, before: Callable[[list[Path]], None]) -> Case:
    return Case(saver.name, saver.load, lambda: before(limits.files(saver.folder)))


def _warm(savers: list[Saver], tree: object, repeat: int) -> Results:
    """Loads from the page cache; what reads with O_DIRECT has none and is left out."""
    plain = next((s for s in savers if isinstance(s, Plain)), None)
    cases: list[Case] = []
    loop = None
    if plain:
        loop = limits.WarmLoop(plain.file.path)
        cases.append(
            Case("bare loop of 2: read, CRC-32C, new memory", loop.read, lambda: limits.heat([plain.file.path]))
        )
    for saver in savers:
        if isinstance(saver, Plain) or saver.name.startswith("s3dlio direct"):
            continue
        cases.append(_load(saver, limits.heat))
        if isinstance(saver, Ours):
            target = state.empty_like(tree)
            heat = partial(_heat, saver)
            cases.append(Case(f"{saver.name}, into= existing tensors", partial(saver.load_into, target), heat))
    try:
        return alternate(cases, repeat)
    finally:
        if loop:
            loop.close()


def _heat(saver: Saver) -> None:
    limits.heat(limits.files(saver.folder))


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
