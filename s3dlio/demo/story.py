"""The story of the demo: an uninterrupted run, a killed run, a resumed run, and whether the first and last agree.

Owns starting the three trainer processes, listening to them, and looking into the store after the kill; never trains
and never prints (``report`` does). The command line calls ``run``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from s3dlio.engine.errors import ConfigError, DependencyError, S3dlioError

from .events import Event, read_events
from .options import SIZES, DemoOptions
from .place import Place, choose_place
from .processes import Process, wait_gone
from .report import DemoReport

SILENCE = 120.0
"""Seconds a trainer may say nothing: a step takes 0.2 s, and importing torch from a cold disk some 20 s."""
WORKERS_GONE = 10.0
TRAINER = (sys.executable, "-m", "s3dlio.demo.trainer")
Watch = Callable[[str, Event, int], None]
"""Called with the phase, the event and the last step for each event of a trainer."""


@dataclass(slots=True)
class _Heard:
    """Everything one trainer said, by event, and how it ended."""

    code: int = 0
    events: dict[str, list[Event]] = field(default_factory=dict)

    def all(self, name: str) -> list[Event]:
        return self.events.get(name, [])

    def one(self, name: str) -> Event:
        return self.events[name][-1]


def check_options(options: DemoOptions) -> None:
    """``ConfigError`` for sizes and counts that cannot tell the story; ``DependencyError`` without torch."""
    if options.size not in SIZES:
        raise ConfigError(f"unknown size {options.size!r}: choose one of {', '.join(SIZES)}")
    if options.save_every < 1 or options.keep < 0:
        raise ConfigError("--save-every must be at least 1 and --keep at least 0")
    if options.steps < 3 * options.save_every:
        raise ConfigError(
            f"{options.steps} steps with a save every {options.save_every} leave no room to die and resume: "
            f"take --steps {3 * options.save_every} or more"
        )
    if importlib.util.find_spec("torch") is None:
        raise DependencyError("the demo trains with PyTorch, which is not installed: pip install 's3dlio[torch]'")


def death_step(steps: int, save_every: int) -> int:
    """The step in whose save the trainer dies: past half of the run, with a save before it and steps after it."""
    return max(2, round(0.6 * steps / save_every)) * save_every


def run(
    options: DemoOptions,
    *,
    open_store: Callable[[str], Any],
    watch: Watch = lambda phase, event, steps: None,
    trainer: Sequence[str] = TRAINER,
) -> DemoReport:
    """Tell the whole story and return its numbers; a trainer that fails raises ``S3dlioError`` with its last words.

    ``open_store(uri)`` gives the store to look into after the kill. No process started here outlives the call.
    """
    check_options(options)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    with _made(choose_place(options.uri, stamp, Path.cwd())) as place:
        return _tell(options, place, open_store, watch, trainer)


def _tell(
    options: DemoOptions, place: Place, open_store: Callable[[str], Any], watch: Watch, trainer: Sequence[str]
) -> DemoReport:
    begin = time.perf_counter()
    common = [*trainer, "--size", options.size, "--steps", str(options.steps), "--save-every", str(options.save_every)]
    blocking = place.folder / "blocking.pt"
    saving = [*common, "--store", place.store, "--keep", str(options.keep), "--blocking", str(blocking)]
    dying = [*saving, "--die-at", str(death_step(options.steps, options.save_every))]

    def listen(phase: str, command: list[str]) -> _Heard:
        return _listen(command, place.folder, lambda event: watch(phase, event, options.steps))

    reference = listen("uninterrupted", common)
    killed = listen("killed", dying)
    if killed.code != -signal.SIGKILL or not killed.all("dying"):
        raise S3dlioError("the trainer never caught a save in the middle: every one was committed at the first look")
    left = wait_gone([Process(**worker) for worker in killed.one("dying")["workers"]], WORKERS_GONE)
    with open_store(place.store) as store:
        committed = tuple(int(info.step) for info in store.list())
    resumed = listen("resumed", saving)
    blocking.unlink(missing_ok=True)

    runs = (reference, killed, resumed)
    return _numbers(options, place, runs, committed, len(left), time.perf_counter() - begin)


def _numbers(
    options: DemoOptions,
    place: Place,
    runs: tuple[_Heard, _Heard, _Heard],
    committed: tuple[int, ...],
    workers_left: int,
    seconds: float,
) -> DemoReport:
    reference, killed, resumed = runs
    death, start, end = killed.one("dying"), resumed.one("start"), resumed.one("final")
    saves = [*killed.all("committed"), *resumed.all("committed")]
    return DemoReport(
        store=place.store,
        steps=options.steps,
        save_every=options.save_every,
        parameters=int(start["parameters"]),
        state_bytes=int(end["state_bytes"]),
        first_loss=float(reference.all("step")[0]["loss"]),
        last_loss=float(reference.all("step")[-1]["loss"]),
        held_out_loss=float(end["held_out"]),
        died_at=int(death["step"]),
        died_stored=int(death["stored"]),
        died_total=int(death["total"]),
        workers=len(death["workers"]),
        workers_left=workers_left,
        committed_after_death=committed,
        resumed_from=start["resumed_from"],
        load_seconds=start["load_seconds"],
        reference=dict(reference.one("final")["digests"]),
        resumed=dict(end["digests"]),
        stalls=_seconds([*killed.all("stall"), *resumed.all("stall")]),
        blocking=_seconds([*killed.all("blocking"), *resumed.all("blocking")]),
        commits=_seconds(saves),
        step_alone=_seconds(reference.all("step")),
        step_saving=_seconds([*killed.all("step"), *resumed.all("step")]),
        blocking_elsewhere=place.temporary,
        seconds=seconds,
    )


def _seconds(events: list[Event]) -> tuple[float, ...]:
    return tuple(float(event["seconds"]) for event in events if event["seconds"] is not None)


def _listen(command: list[str], folder: Path, hear: Callable[[Event], None]) -> _Heard:
    """Run one trainer to its end and collect what it says; death by SIGKILL is an end like any other."""
    heard = _Heard()
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, cwd=folder, env=_environment()
        )
        try:
            assert process.stdout is not None
            for event in read_events(process.stdout.fileno(), silence=SILENCE):
                heard.events.setdefault(event["event"], []).append(event)
                hear(event)
            heard.code = process.wait(timeout=SILENCE)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if heard.code not in (0, -signal.SIGKILL):
            words.seek(0)
            raise S3dlioError(f"a trainer of the demo failed with code {heard.code}: {_last_words(words.read())}")
    return heard


def _last_words(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _environment() -> dict[str, str]:
    """This environment, such that the trainer finds this very package although it runs in another folder.

    MKL may otherwise pick another number of threads under load, and with it another rounding.
    """
    package = importlib.util.find_spec("s3dlio")
    roots = (
        []
        if package is None
        else [str(Path(root).resolve().parent) for root in package.submodule_search_locations or ()]
    )
    inherited = [str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = os.pathsep.join([*inherited, *roots])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_DYNAMIC": "FALSE"}


@contextmanager
def _made(place: Place) -> Iterator[Place]:
    try:
        yield place
    finally:
        if place.temporary:
            shutil.rmtree(place.folder, ignore_errors=True)
