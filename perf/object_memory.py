"""Memory of all our processes while a shard far larger than the arena goes to an object store and back.

Each round runs in processes of its own, which sample the PSS of their tree; the server is no part of it. A save is
measured against the process with its state before the store was opened, a load against a process without a state, and
of a load the payload is taken off once. ``s3`` calls ``table``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import meter, state
from .harness import Case, Options, Results, Table, Timed, alternate
from .object_cases import WORKERS, gib
from .object_peers import Ours

MIB = 1 << 20
ARENA = 256 * MIB
ALLOWED = 64 * MIB
A_WORKER = 80 * MIB

_CHILD = "from perf.object_memory import child; child()"


def table(options: Options, size: int, server: str, uri: str, access: Mapping[str, str]) -> tuple[Table, Results]:
    """Measure; the first column but the name is what the save may take, by this module's numbers."""
    name = f"s3dlio, memory={ARENA // MIB} MiB"
    told = {"uri": uri, "access": dict(access), "size": size}
    case = Case(name, lambda: Timed({**_ask("save", told), **_ask("load", told)}))
    results = alternate([case], options.repeat, warm_up=False)
    found = [results.median(name, key) for key in ("opened", "save", "save private", "load")]
    mib = [None if value is None else value / MIB for value in found]
    row = (name, (ARENA + ALLOWED + WORKERS * A_WORKER) / MIB, *mib, results.median(name, "processes"))
    columns = ("case", "allowed", "opened", "save peak", "of it private", "load peak", "processes")
    return Table(f"MiB beyond a payload of {gib(size)}, all our processes, {server}", columns, [row]), results


def _ask(work: str, told: Mapping[str, Any]) -> dict[str, float]:
    """A process of its own; what it is told, credentials among it, goes by its input."""
    answer = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps({"work": work, **told}),
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    ).stdout
    numbers: dict[str, float] = json.loads(answer.splitlines()[-1])
    return numbers


def child() -> None:
    """Save, or load what was saved, and print what it took."""
    told = json.loads(sys.stdin.read())
    act: Callable[..., dict[str, float]] = _save if told["work"] == "save" else _load
    print(json.dumps(act(told["uri"], told["access"], told["size"])))


def _save(uri: str, access: Mapping[str, str], size: int) -> dict[str, float]:
    tree = state.reference(size)
    meter.settle()
    before = meter.memory()
    ours = Ours(uri, access, tree, memory=ARENA)
    opened = meter.memory()
    ours.clear()
    with meter.Peak() as peak:
        ours.save()
        processes = len(meter.tree())
    ours.close()
    return {
        "opened": opened.total - before.total,
        "save": peak.peak.total - before.total,
        "save private": peak.peak.private - before.private,
        "processes": processes,
    }


def _load(uri: str, access: Mapping[str, str], size: int) -> dict[str, float]:
    tree = state.reference(1 << 20)  # what torch itself takes on first use is nobody's load
    meter.settle()
    before = meter.memory()
    ours = Ours(uri, access, tree, memory=ARENA)
    with meter.Peak() as peak:
        loaded = ours.load()
        payload = state.size(loaded)
    ours.clear()
    ours.close()
    if abs(payload - size) > size // 20:
        raise ValueError(f"{payload} bytes came back of about {size}")
    return {"load": peak.peak.total - before.total - payload}
