"""What the benchmarks of object stores share: cases that tell the client's CPU seconds from the server's, and tables.

Owns the split of CPU time, the comparison of states and the form of the tables; knows no store. ``s3``, ``azure``,
``latency`` and the other ``object_…`` modules call it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch

from . import meter, state
from .harness import GIB, Case, Numbers, Report, Results, Table, Timed, gb_per_s, nothing, say, scaled

WORKERS = 2


def case(
    name: str,
    run: Callable[[], object],
    server: int,
    *,
    before: Callable[[], object] = nothing,
    then: Callable[[], Numbers] = dict,
) -> Case:
    """A case against the server of this process id: ``seconds``, CPU seconds of ``client`` and ``server``.

    ``then`` adds numbers, outside the clock.
    """

    def measured() -> Timed:
        theirs, all_of_us = tree_seconds(server), meter.cpu_seconds()
        started = time.perf_counter()
        kept = run()
        seconds = time.perf_counter() - started
        all_of_us, theirs = meter.cpu_seconds() - all_of_us, tree_seconds(server) - theirs
        del kept
        return Timed({"seconds": seconds, "client": all_of_us - theirs, "server": theirs, **then()})

    return Case(name, measured, before)


def load_case(name: str, run: Callable[[], object], server: int, nbytes: int) -> Case:
    """A case of a load of ``nbytes``, before which there is memory for it that the host has not taken back."""
    return case(name, run, server, before=lambda: state.warm_machine(nbytes))


def tree_seconds(pid: int) -> float:
    """CPU seconds so far of a process and all that descend from it."""
    root = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:4]) for process in [root, *root.children(recursive=True)])


def limit_table(title: str, results: Results, nbytes: int, names: Sequence[str], server: str) -> Table:
    """Rows against the first name, which is the limit; ``server`` is the word for the other side."""
    rows = []
    for name in _found(results, names):
        slower = results.ratio(name, names[0])
        rows.append((
            name,
            gb_per_s(nbytes, results.median(name)),
            1 / slower if slower else None,
            *(scaled(results.median(name, key), GIB / nbytes) for key in ("client", "server")),
        ))  # fmt: skip
    return Table(title, ("case", "GB/s", "of the first", "client CPU s/GiB", f"{server} CPU s/GiB"), rows)


def peer_table(title: str, results: Results, nbytes: int, names: Sequence[str], server: str) -> Table:
    """Rows against the first name, which is ours."""
    rows = []
    for name in _found(results, names):
        rows.append((
            name,
            results.median(name),
            gb_per_s(nbytes, results.median(name)),
            *(scaled(results.median(name, key), GIB / nbytes) for key in ("client", "server")),
            results.ratio(name, names[0]),
            results.ratio(name, names[0], "client"),
        ))  # fmt: skip
    columns = (
        "case", "seconds", "GB/s", "client CPU s/GiB", f"{server} CPU s/GiB", "time, × ours", "client CPU, × ours",
    )  # fmt: skip
    return Table(title, columns, rows)


def _found(results: Results, names: Sequence[str]) -> list[str]:
    return [name for name in names if results.median(name) is not None]


def attempt(report: Report, what: str, act: Callable[[], None]) -> None:
    """A part of a benchmark: one that cannot run must not hide the others."""
    say(what)
    try:
        act()
    except Exception as error:  # noqa: BLE001 - see above
        report.notes.append(f"left out: {what}: {type(error).__name__}: {error}")
        say(report.notes[-1])


def check_same(name: str, expected: object, loaded: object) -> None:
    """``ValueError`` unless both states hold the same tensors, bit for bit."""
    ours, theirs = state.flat(expected), state.flat(loaded)
    if ours.keys() != theirs.keys():
        raise ValueError(f"{name} gave back other tensors than it got")
    for key, tensor in ours.items():
        if not same_bits(tensor, theirs[key]):
            raise ValueError(f"{name} gave back another {key} than it got")


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(first.contiguous().view(-1).view(torch.uint8), second.contiguous().view(-1).view(torch.uint8))


def gib(nbytes: int) -> str:
    """A size as titles show it."""
    return f"{nbytes / GIB:.2f} GiB"


def bytes_of(tree: Any) -> torch.Tensor:
    """All tensors' bytes, end to end."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in state.tensors(tree)])
