"""What a sabotaged worker does: it dies, waits or fails at an exact place of an exact task.

Runs in worker processes only, in front of the real bootstrap; nothing of the product is changed for it. ``sabotage``
writes the script that calls ``main`` and describes the places. Rules are taken once each over all workers: who creates
the rule's next file first has it, so a task that is sent again passes.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRNO, HOLD, KILL = "errno", "hold", "kill"


@dataclass(frozen=True, slots=True)
class Rule:
    """Strike at place ``at`` of a ``task``: ``do`` is ``kill``, ``hold`` or the number of an ``OSError``.

    ``task`` is a class of ``engine.messages``, ``Call.put`` for a control operation; ``key`` a part of the key (or
    prefix) that it names. The first ``skip`` such tasks pass, then ``times`` are struck. Places: ``start``; ``io`` when
    half of a read or write is done; ``codec`` when half of an encoding or decoding is written; ``named`` when the file
    has its name but the folder is not yet synced; ``end`` when all is done but the result is not sent.
    """

    task: str
    at: str = "start"
    do: str | int = KILL
    key: str = ""
    skip: int = 0
    times: int = 1


_here = threading.local()


def main(folder: str, rules: str) -> None:
    """Patch this process, then become the worker that the command line asks for."""
    _patch(Path(folder), [Rule(**rule) for rule in json.loads(rules)])
    bootstrap = sys.argv[3]  # [script, "-I", "-c", bootstrap, ...]
    sys.argv = ["-c", *sys.argv[4:]]
    exec(compile(bootstrap, "<bootstrap>", "exec"), {"__name__": "__main__"})  # as `python -c` would


def _patch(folder: Path, rules: Sequence[Rule]) -> None:
    from s3dlio.engine import codec, tasks

    plain = tasks.TaskRunner.run

    def run(self: tasks.TaskRunner, task: Any) -> object:
        _here.strike = _claim(folder, rules, task)
        try:
            _strike("start")
            result = plain(self, task)
            _strike("end")
        finally:
            _here.strike = None
        return result

    tasks.TaskRunner.run = run  # type: ignore[method-assign]
    codec.encode = _halved_codec(codec.encode, 2)
    codec.decode = _halved_codec(codec.decode, 2)
    os.pwritev = _halved_io(os.pwritev)
    os.preadv = _halved_io(os.preadv)
    os.link = _then_strike(os.link, "named")
    os.replace = _then_strike(os.replace, "named")


def _claim(folder: Path, rules: Sequence[Rule], task: Any) -> Callable[[str], None] | None:
    """The strike of the first rule that this task is to suffer."""
    kind, key = type(task).__name__, getattr(task, "key", "")
    if kind == "Call":
        kind, key = f"Call.{task.method}", task.args[0] if task.args else ""
    for number, rule in enumerate(rules):
        if rule.task != kind or rule.key not in key:
            continue
        turn = _next(folder / f"{number}.seen")
        if rule.skip <= turn < rule.skip + rule.times:
            return lambda place, rule=rule, number=number: _suffer(folder, number, rule, place)  # type: ignore[misc]
    return None


def _next(path: Path) -> int:
    """How many, in any process, came before."""
    turn = 0
    while True:
        try:
            path.with_name(f"{path.name}.{turn}").touch(exist_ok=False)
        except FileExistsError:
            turn += 1
            continue
        return turn


def _suffer(folder: Path, number: int, rule: Rule, place: str) -> None:
    if place != rule.at:
        return
    _here.strike = None
    _next(folder / f"{number}.struck")
    if rule.do == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif rule.do == HOLD:
        fd = os.open(folder / "gate", os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_SH)  # held by the test until it lets go, or dies
        os.close(fd)
    else:
        raise OSError(rule.do, os.strerror(int(rule.do)))


def _strike(place: str) -> None:
    strike = getattr(_here, "strike", None)
    if strike is not None:
        strike(place)


def _armed() -> bool:
    return getattr(_here, "strike", None) is not None


def _halved_io(plain: Callable[..., int]) -> Any:
    """A read or write of which half is done when the place ``io`` is reached."""

    def halved(fd: int, buffers: Sequence[memoryview], offset: int, *flags: int) -> int:
        if not _armed():
            return plain(fd, buffers, offset, *flags)
        half = len(buffers[0]) // 2
        half -= half % 4096  # what O_DIRECT takes
        done = plain(fd, [buffers[0][:half]], offset, *flags) if half else 0
        _strike("io")
        return done or plain(fd, buffers, offset, *flags)

    return halved


def _halved_codec(plain: Callable[..., Any], target: int) -> Any:
    """A codec that has scribbled over half of its target when the place ``codec`` is reached."""

    def halved(*args: Any) -> Any:
        if _armed():
            half = len(args[target]) // 2
            args[target][:half] = b"\xa5" * half
            _strike("codec")
        return plain(*args)

    return halved


def _then_strike(plain: Callable[..., None], place: str) -> Any:
    def done(*args: Any, **options: Any) -> None:
        plain(*args, **options)
        _strike(place)

    return done
