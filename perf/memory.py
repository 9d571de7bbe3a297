"""Memory of all processes beyond the state: while saving, and while loading.

Each case runs in a process of its own, which samples the PSS of its tree every 20 ms. A save is measured against the
process with its state before the saver was opened, a load against a process without a state, and of a load the payload
is taken off once. "opened" is after ``warmup()``, which touches the arena, called where ``memory=`` is given.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import meter, state
from .harness import Case, Options, Report, Results, Table, Timed, alternate
from .savers import Dcp, Ours, Safetensors, Saver, TorchSave, open_store, touched

MIB = 1 << 20
LIMITED = 512 * MIB

_CHILD = "import sys; from perf.memory import child; child(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class _Way:
    """How to open a saver of a state in a folder, and how to load from that folder in another process."""

    save: Callable[[Path, Any], Saver]
    load: Callable[[Path, int], object]


def _ours(memory: int | None) -> _Way:
    def load(folder: Path, _size: int) -> object:
        with open_store(f"file://{folder}", memory=memory) as store:
            return store.load()

    return _Way(lambda folder, tree: Ours(folder, tree, "file", memory=memory, warm=memory is not None), load)


def _dcp(mode: str) -> _Way:
    def load(folder: Path, size: int) -> object:
        from torch.distributed.checkpoint.state_dict_loader import load

        into = state.reference(size)
        load(into, checkpoint_id=folder / "1", no_dist=True)
        return into

    return _Way(lambda folder, tree: Dcp(folder, tree, mode), load)


def _torch_load(folder: Path, _size: int) -> object:
    import torch

    return torch.load(folder / TorchSave.file, weights_only=False)  # our own file


def _safetensors_load(folder: Path, _size: int) -> object:
    from safetensors.torch import load_file

    return touched(load_file(folder / Safetensors.file))


SAVERS = {
    "s3dlio": _ours(None),
    "s3dlio memory=512 MiB": _ours(LIMITED),
    "torch.save": _Way(TorchSave, _torch_load),
    "safetensors": _Way(Safetensors, _safetensors_load),
    "torch DCP thread": _dcp("thread"),
    "torch DCP process": _dcp("process"),
}


def run(options: Options) -> Report:
    """Measure every saver."""
    names = [name for name in SAVERS if options.peers or name.startswith("s3dlio")]
    folder = options.folder / "data"
    cases = [Case(name, lambda name=name: _ask(name, options.size, folder)) for name in names]  # type: ignore[misc]
    try:
        results = alternate(cases, options.repeat, warm_up=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = Report("memory", {"bytes": options.size, "repeat": options.repeat})
    report.add(_table(names, results, options.size))
    report.take({"memory": results})
    return report


def _table(names: list[str], results: Results, size: int) -> Table:
    def mib(name: str, key: str) -> float | None:
        found = results.median(name, key)
        return None if found is None else found / MIB

    keys = ("opened", "save", "save private", "load")
    rows = [(name, *(mib(name, key) for key in keys), results.median(name, "processes")) for name in names]
    columns = ("case", "opened", "save peak", "of it private", "load peak", "processes")
    return Table(f"MiB beyond the state of {size / (1 << 30):.2f} GiB, all processes", columns, rows)


def _ask(name: str, size: int, folder: Path) -> Timed:
    numbers: dict[str, float] = {}
    for action in ("save", "load"):
        command = [sys.executable, "-c", _CHILD, action, name, str(size), str(folder)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        numbers |= json.loads(answer.splitlines()[-1])
    return Timed(numbers)


def child(action: str, name: str, size: str, folder: str) -> None:
    """In a process of its own: save, or load what was saved, and print what it took."""
    act = _save if action == "save" else _load
    print(json.dumps(act(name, int(size), Path(folder) / "memory")))


def _save(name: str, size: int, folder: Path) -> dict[str, float]:
    tree = state.reference(size)
    meter.settle()
    before = meter.memory()
    saver = SAVERS[name].save(folder, tree)
    opened = meter.memory()
    with meter.Peak() as peak:
        if isinstance(saver, Dcp):
            saver.begin().result()
        else:
            saver.save()
        processes = len(meter.tree())
    saver.close()
    return {
        "opened": opened.total - before.total,
        "save": peak.peak.total - before.total,
        "save private": peak.peak.private - before.private,
        "processes": processes,
    }


def _load(name: str, size: int, folder: Path) -> dict[str, float]:
    state.reference(1 << 20)  # what torch itself takes on first use is nobody's load
    meter.settle()
    before = meter.memory()
    with meter.Peak() as peak:
        loaded = SAVERS[name].load(folder, size)
        payload = state.size(loaded)
    return {"load": peak.peak.total - before.total - payload}
