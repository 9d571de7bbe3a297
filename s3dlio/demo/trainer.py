"""One trainer process: ``python -m s3dlio.demo.trainer``.

Owns the training loop with its saves, as a user would write it, and its own death; never compares or prints for people:
it tells ``story`` what happened as ``events``. With a store it resumes from the newest committed checkpoint, which is
how a trainer that a scheduler restarts behaves.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s3dlio.engine.errors import DependencyError

from . import processes
from .events import emit
from .options import SIZES
from .text import load_corpus

MEMORY = 256 * 1024 * 1024
"""Bytes of staging memory: four states of the default size; warming half the machine's memory would be a poor demo."""
COMMIT_LIMIT = 300.0
POLL = 0.0002
"""Seconds between two looks at a save to die in: some twenty a part, and the store's thread gets its turn."""


def open_store(uri: str, keep: int | None) -> Any:
    """The store of the run; replaced in tests."""
    from s3dlio.store import CheckpointStore

    return CheckpointStore(uri, keep_last=keep, memory=MEMORY)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one trainer to its last step, or to its death in ``--die-at``'s save."""
    options = _parser().parse_args(argv)
    try:
        from .training import SEED, Training, fix_randomness
    except ImportError as error:
        raise DependencyError(f"the demo trains with PyTorch: pip install 's3dlio[torch]' ({error})") from error
    fix_randomness(SEED, threads=options.threads)
    training = Training(SIZES[options.size], load_corpus(), steps=options.steps)
    if options.store is None:
        return _Run(training, options, None).to_the_end()
    with open_store(options.store, options.keep or None) as store:
        return _Run(training, options, store).to_the_end()


class _Run:
    """The loop: train, save in the background now and then, save blocking in between to compare, die where asked."""

    def __init__(self, training: Any, options: argparse.Namespace, store: Any) -> None:
        self.training = training
        self.options = options
        self.store = store
        self.handles: dict[int, Any] = {}
        self.begun: dict[int, float] = {}
        self.took: dict[int, float] = {}
        self.missed = False

    def to_the_end(self) -> int:
        from .training import digests, tensor_bytes

        resumed, load_seconds = self._resume()
        self._emit("start", parameters=self.training.parameters, resumed_from=resumed, load_seconds=load_seconds)
        while self.training.step < self.options.steps:
            begin = time.perf_counter()
            loss = self.training.advance()
            self._emit("step", step=self.training.step, loss=loss, seconds=time.perf_counter() - begin)
            if self.store is not None:
                self._report_committed(wait=False)
                self._between_steps(self.training.step)
        self._report_committed(wait=True)
        state = self.training.state()
        self._emit(
            "final", digests=digests(state), state_bytes=tensor_bytes(state), held_out=self.training.held_out_loss()
        )
        return 0

    def _resume(self) -> tuple[int | None, float | None]:
        if self.store is None:
            return None, None
        self.store.warmup()
        newest = self.store.latest()
        if newest is None:
            return None, None
        begin = time.perf_counter()
        self.training.restore(self.store.load())
        return int(newest.step), time.perf_counter() - begin

    def _report_committed(self, *, wait: bool) -> None:
        """Tell which saves were committed (``wait``: all of them must be); a failed one raises here."""
        for step, handle in list(self.handles.items()):
            if wait or handle.done():
                handle.result(timeout=COMMIT_LIMIT)
                self._emit("committed", step=step, seconds=self.took.get(step))
                del self.handles[step]

    def _between_steps(self, step: int) -> None:
        every = self.options.save_every
        if step % every == 0 or step == self.options.steps:
            self._save(step)
        elif step % every == every // 2 and self.options.blocking is not None:
            seconds = blocking_save(self.training.state(), self.options.blocking)
            self._emit("blocking", step=step, seconds=seconds)

    def _save(self, step: int) -> None:
        dying = self.options.die_at is not None and step >= self.options.die_at
        workers = processes.children(os.getpid()) if dying else []
        if dying:
            # On a slow store the saves before this one may still run; with none committed there is nothing to resume.
            self._report_committed(wait=True)
        state = self.training.state()
        self.begun[step] = time.perf_counter()
        handle = self.store.save_async(step, state, framework="pytorch", user_meta={"loss": self.training.losses[-1]})
        stall = time.perf_counter() - self.begun[step]
        handle.add_done_callback(lambda _: self.took.setdefault(step, time.perf_counter() - self.begun[step]))
        self.handles[step] = handle
        if dying:
            self._die_in(handle, step, workers)
        self._emit("stall", step=step, seconds=stall)

    def _die_in(self, handle: Any, step: int, workers: list[processes.Process]) -> None:
        """SIGKILL this process once part of the save is stored and it is not committed; return if that was missed.

        After a miss (a store faster than one look) the next save is died in as soon as it is staged.
        """
        while not self.missed and not handle.done() and handle.progress().stored == 0:
            time.sleep(POLL)
        progress = handle.progress()
        if not handle.done():
            self._emit(
                "dying", step=step, stored=progress.stored, total=progress.total, workers=[asdict(w) for w in workers]
            )
        if not handle.done():
            os.kill(os.getpid(), signal.SIGKILL)
        self.missed = True
        self._emit("missed", step=step)

    def _emit(self, event: str, **fields: object) -> None:
        emit(self.options.events, event, **fields)


def blocking_save(state: Any, path: Path) -> float:
    """Seconds that ``torch.save`` to a new file, flushed to the disk with its folder, stops training for."""
    import torch

    begin = time.perf_counter()
    aside = path.with_suffix(".new")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return time.perf_counter() - begin


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m s3dlio.demo.trainer", description="One trainer of the demo.")
    parser.add_argument("--store", metavar="URI", help="save here and resume from here; without it, never save")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=4, metavar="STEPS")
    parser.add_argument("--die-at", type=int, metavar="STEP", help="SIGKILL in the first save from this step on")
    parser.add_argument("--blocking", type=Path, metavar="FILE", help="between saves, torch.save here to compare")
    parser.add_argument("--keep", type=int, default=0, metavar="N", help="checkpoints kept; 0 keeps all")
    # One thread, whatever the machine: the number of threads decides how sums round, and with two cores the other one
    # is left for the workers.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--events", type=int, default=1, metavar="FD")
    return parser


if __name__ == "__main__":
    sys.exit(main())
