"""The tables against a real server: saves and loads of one state by this package and by its peers.

Owns their order and the checks of what they give back; ``object_bench`` calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import object_cases as objects
from .harness import Report, alternate, say
from .object_peers import Saver


def run(report: Report, server: str, pid: int, nbytes: int, repeat: int, makers: Sequence[Callable[[], Saver]]) -> None:
    """Saves in turn, then loads in turn; ``makers[0]`` makes ours, to which the others are compared."""
    savers = _made(report, makers)
    try:
        names = [saver.name for saver in savers]
        say(f"saves, {server}")
        saves = alternate([objects.case(s.name, s.save, pid, before=s.clear) for s in savers], repeat)
        left = [saver for saver in savers if saver.name not in saves.failures]
        for saver in left:
            saver.clear()
            saver.save()
            objects.attempt(report, f"comparing what {saver.name} gives back", saver.check)
        say(f"loads, {server}")
        loads = alternate([objects.load_case(saver.name, saver.load, pid, nbytes) for saver in left], repeat)
        for saver in left:
            saver.clear()
    finally:
        for saver in savers:
            saver.close()
    found = {
        f"{title}, {objects.gib(nbytes)}, {server}": results for title, results in (("save", saves), ("load", loads))
    }
    tables = [objects.peer_table(title, results, nbytes, names, server) for title, results in found.items()]
    report.add(*tables)
    report.take(found)


def _made(report: Report, makers: Sequence[Callable[[], Saver]]) -> list[Saver]:
    """Every saver that can be made here, and a note for each that cannot."""
    savers: list[Saver] = []
    for make in makers:
        objects.attempt(report, "opening a saver", lambda make=make: savers.append(make()))  # type: ignore[misc]
    return savers
