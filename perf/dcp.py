"""torch DCP over two ranks on a local disk, with this package's storage and with torch's own.

Time until a save is durable, the stall of ``async_save``, the memory that a background save takes, and loads by three
ranks of what two have saved. The state is sharded by rows (DTensor), half of it on each rank; a number is that of the
slowest rank. ``dcp_rank`` is a rank.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import limits, state
from .harness import Case, Numbers, Options, Report, Results, Table, Timed, alternate, gb_per_s, say, scaled

MIB = 1 << 20
OURS, STOCK = "s3dlio", "torch"
THREAD, PROCESS = "thread", "process"
_BACKGROUND = tuple(f"{who} {how}" for who in (OURS, STOCK) for how in (THREAD, PROCESS))


class Ranks:
    """``count`` processes with a state of ``nbytes`` between them; they do what ``ask`` says, all at once."""

    def __init__(self, count: int, folder: Path, nbytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        meet = f"file://{folder}/{uuid.uuid4().hex}.meet"
        command = [sys.executable, "-W", "ignore", "-m", "perf.dcp_rank", meet, str(folder), str(nbytes)]
        self._steps = 0
        self._folder = folder
        self._processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(rank, count)
            )
            for rank in range(count)
        ]
        try:
            self._answers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, do: str, **what: object) -> list[Numbers]:
        """Have every rank do it; their answers. ``RuntimeError`` with the first error of any."""
        for process in self._processes:
            assert process.stdin
            process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            process.stdin.flush()
        return self._answers()

    def step(self) -> int:
        """The next step's number."""
        self._steps += 1
        return self._steps

    def clear(self, who: str) -> None:
        """Remove what ``who`` has saved."""
        shutil.rmtree(self._folder / who.replace(" ", "-"), ignore_errors=True)

    def close(self) -> None:
        """End all ranks; one that does not end is killed."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout
            process.stdout.close()

    def _answers(self) -> list[Numbers]:
        answers: list[dict[str, Any]] = []
        for rank, process in enumerate(self._processes):
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"rank {rank} ended with code {process.wait()}")
            answers.append(json.loads(line))
        errors = [answer["error"] for answer in answers if "error" in answer]
        if errors:
            raise RuntimeError(errors[0])
        return answers


def run(options: Options) -> Report:
    """Measure all four tables."""
    folder = options.folder / "data" / "dcp"
    shutil.rmtree(folder, ignore_errors=True)
    state.warm_machine(4 * options.size)
    report = Report("dcp", {"bytes": options.size, "repeat": options.repeat, "ranks": 2})
    names = [name for name in _BACKGROUND if options.peers or name.startswith(OURS)]
    savers = [OURS, STOCK] if options.peers else [OURS]
    say("saves and stalls, two ranks")
    with Ranks(2, folder, options.size) as two:
        saves = alternate([_saving(two, who) for who in savers], options.repeat)
        report.add(_speeds("save until durable, two ranks", saves, options.size))
        stalls = alternate([_background(two, name) for name in names], options.repeat)
        report.add(_stalls(stalls))
        for who in savers:
            two.ask("save", who=who, step=0)
    limits.heat(limits.files(folder))
    say("loads, three ranks")
    with Ranks(3, folder, options.size) as three:
        loads = alternate([_loading(three, who) for who in savers], options.repeat)
        for who in savers:
            three.ask("load", who=who, step=0)
            three.ask("check")
    report.add(_speeds("load of two ranks' checkpoint by three, from the page cache", loads, options.size))
    say("memory, two ranks for each")
    peaks = alternate([Case(name, _peak(folder, options.size, name)) for name in names], 1, warm_up=False)
    report.add(_memory(peaks))
    report.take({"save": saves, "stall": stalls, "load": loads, "memory": peaks})
    return report


def _slowest(ranks: Ranks, do: str, **what: object) -> Timed:
    """The number of the slowest rank."""
    return Timed({"seconds": max(answer["seconds"] for answer in ranks.ask(do, **what))})


def _saving(ranks: Ranks, who: str) -> Case:
    return Case(
        f"{who} save",
        lambda: _slowest(ranks, "save", who=who, step=ranks.step()),
        after=lambda: ranks.clear(who),
    )


def _loading(ranks: Ranks, who: str) -> Case:
    return Case(f"{who} load", lambda: _slowest(ranks, "load", who=who, step=0))


def _background(ranks: Ranks, who: str) -> Case:
    """Measures the start; ends what it began outside of the clock."""

    def after() -> None:
        ranks.ask("end")
        ranks.clear(who)

    return Case(who, lambda: _slowest(ranks, "begin", who=who, step=ranks.step()), after=after)


def _peak(folder: Path, nbytes: int, who: str) -> Callable[[], Timed]:
    """A case in fresh processes, which hold nothing of an earlier one."""

    def measure() -> Timed:
        with Ranks(2, folder, nbytes) as ranks:
            answers = ranks.ask("peak", who=who, step=ranks.step())
            ranks.clear(who)
        return Timed({name: max(answer[name] for answer in answers) for name in ("bytes", "memory")})

    return measure


def _speeds(title: str, results: Results, nbytes: int) -> Table:
    rows = [
        (name, results.median(name), gb_per_s(nbytes, results.median(name)), _of_stock(results, name))
        for name in _names(results)
    ]
    return Table(title, ("case", "s", "GB/s", "of torch's"), rows)


def _of_stock(results: Results, name: str) -> float | None:
    return results.ratio(name, name.replace(OURS, STOCK)) if name.startswith(OURS) else None


def _stalls(results: Results) -> Table:
    rows = [
        (
            name,
            scaled(results.median(name), 1e3),
            results.ratio(name, f"{STOCK} {THREAD}"),
            results.ratio(name, f"{STOCK} {PROCESS}"),
        )
        for name in _names(results)
    ]
    return Table("stall of async_save, two ranks", ("case", "ms", "of torch thread", "of torch process"), rows)


def _memory(results: Results) -> Table:
    rows = [
        (name, *(scaled(results.median(name, key), 1 / MIB) for key in ("bytes", "memory"))) for name in _names(results)
    ]
    return Table(
        "memory of a rank and its processes beyond the state, while saving", ("case", "MiB", "memory= MiB"), rows
    )


def _names(results: Results) -> Sequence[str]:
    return list({name: None for numbers in results.rounds for name in numbers})


def _environment(rank: int, count: int) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    root = str(Path(__file__).parents[1])
    return {
        **os.environ,
        **{name: str(value) for name, value in ranks.items()},
        "MASTER_ADDR": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
    }
