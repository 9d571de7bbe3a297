"""How saves and loads grow: with the bytes, from 1 GiB to ``--size``, and with the number of tensors, to a million.

Bytes: one state at a time, saved through an arena of 1 GiB, dropped, and loaded back; sizes that the machine has no
memory for are left out, with a note. Tensors: fp32 tensors of 1 KiB,
beside safetensors' own save (fsynced) and load; then a state of 100,000 leaves of many kinds, beside ``torch.save``.
"""

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Any

from s3dlio.engine.memory import headroom

from . import state
from .harness import GIB, Case, Options, Report, Results, Table, alternate, gb_per_s, say, scaled
from .savers import Ours, Safetensors, Saver, TorchSave

COUNTS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
MIXED = 100_000
ARENA = 1 << 30
BESIDE = 1 << 30
"""Bytes for the interpreters, torch and the buffers of loads."""


def run(options: Options) -> Report:
    """Measure all three tables."""
    state.warm_machine(2 * options.size)
    report = Report("scale", {"bytes": options.size, "repeat": options.repeat})
    sizes, report.notes = fitting(options.size, headroom())
    found = {f"{size / GIB:g} GiB": _bytes(options, size) for size in sizes}
    report.add(_bytes_table(found))
    counts = {f"{count:,}": _tensors(options, state.many(count), Safetensors) for count in COUNTS}
    report.add(_tensors_table("tensors of 1 KiB", counts, list(COUNTS), Safetensors.name, options.peers))
    mixed = {f"{MIXED:,}": _tensors(options, state.mixed(MIXED), TorchSave)}
    report.add(_tensors_table("leaves of many kinds", mixed, [MIXED], TorchSave.name, options.peers))
    report.take({**found, **counts, "mixed": mixed[f"{MIXED:,}"]})
    return report


def fitting(most: int, room: int) -> tuple[list[int], list[str]]:
    """The sizes, doubling from 1 GiB up to ``most`` bytes, that fit ``room`` bytes of memory; a note if some do not."""
    wanted = [size for size in (GIB << n for n in range(20)) if size <= most] or [most]
    sizes = [size for size in wanted if size + ARENA + BESIDE <= room]
    if sizes == wanted:
        return sizes, []
    left_out = ", ".join(f"{size / GIB:g}" for size in wanted if size not in sizes)
    return sizes, [f"left out: {left_out} GiB: {room / GIB:.1f} GiB of memory are free, the arena takes 1"]


def _bytes(options: Options, size: int) -> Results:
    say(f"{size / GIB:g} GiB")
    tree: dict[str, Any] = {"state": state.reference(size)}
    ours = Ours(options.folder / "data" / "scale", tree, "file", memory=ARENA)
    try:
        repeat = max(1, min(options.repeat, 4 * GIB // size))
        results = alternate([Case("save", ours.save, ours.clear)], repeat)
        tree.clear()  # the state and what is loaded of it would not fit side by side
        gc.collect()
        loads = alternate([Case("load", ours.load, before=partial(_await_memory, size))], repeat)
        results.add(loads)
        return results
    finally:
        ours.clear()
        ours.close()


def _await_memory(nbytes: int) -> None:
    """The kernel takes a while to free the pages of the load before (3 GB/s), and two do not fit side by side."""
    deadline = time.monotonic() + 60
    while headroom() < nbytes and time.monotonic() < deadline:
        time.sleep(0.1)


def _bytes_table(found: dict[str, Results]) -> Table:
    rows = []
    for name, results in found.items():
        size = int(float(name.split()[0]) * GIB)
        save, load = results.median("save"), results.median("load")
        rows.append((name, save, gb_per_s(size, save), load, gb_per_s(size, load)))
    return Table("one state, arena of 1 GiB", ("state", "save, s", "GB/s", "load, s", "GB/s"), rows)


def _tensors(options: Options, tree: Any, peer: type[Safetensors] | type[TorchSave]) -> Results:
    count = len(tree)
    say(f"{count:,} leaves")
    folder = options.folder / "data"
    savers: list[Saver] = [Ours(folder / "leaves", tree, "file", memory=ARENA)]
    if options.peers:
        savers.append(peer(folder / "peer", tree))
    repeat = max(1, min(options.repeat, 1_000_000 // count))
    cases = [Case(f"{saver.name} save", saver.save, saver.clear) for saver in savers]
    try:
        results = alternate(cases, repeat)
        loads = alternate([Case(f"{saver.name} load", saver.load) for saver in savers], repeat)
        results.add(loads)
        return results
    finally:
        for saver in savers:
            saver.clear()
            saver.close()


def _tensors_table(title: str, found: dict[str, Results], counts: list[int], peer: str, peers: bool) -> Table:
    rows: list[tuple[str | float | None, ...]] = []
    for (name, results), count in zip(found.items(), counts, strict=True):
        row: tuple[str | float | None, ...] = (name,)
        for action in ("save", "load"):
            ours, theirs = f"s3dlio file:// {action}", f"{peer} {action}"
            row += (scaled(results.median(ours), 1e3), scaled(results.median(ours), 1e6 / count))
            row += (scaled(results.median(theirs), 1e3), results.ratio(ours, theirs)) if peers else ()
        rows.append(row)
    columns: tuple[str, ...] = ("count",)
    for action in ("save", "load"):
        columns += (f"{action}, ms", "µs a leaf", *((f"{peer}, ms", "ratio") if peers else ()))
    return Table(title, columns, rows)
