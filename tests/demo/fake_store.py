"""A store of one folder for trainers under test: a save is half stored until somebody has looked at it often enough."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOKS = 12
"""How often ``done`` may be asked before the save is committed: enough for a trainer to find it half stored."""


@dataclass(frozen=True)
class Info:
    step: int
    total_size: int = 0


@dataclass(frozen=True)
class Progress:
    stored: int
    total: int


class FakeHandle:
    def __init__(self, part: Path, total: int, looks: int) -> None:
        self._part = part
        self._total = total
        self._looks = looks
        self._callbacks: list[Callable[[Any], None]] = []

    def done(self) -> bool:
        self._looks -= 1
        if self._looks < 0:
            self.result()
        return not self._part.exists()

    def progress(self) -> Progress:
        return Progress(self._total // 2, self._total)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def result(self, timeout: float | None = None) -> None:
        if self._part.exists():
            self._part.rename(self._part.with_suffix(".pt"))
            for callback in self._callbacks:
                callback(self)


class FakeStore:
    """``looks``: see ``LOOKS``; 0 commits at the first look. ``spoil`` changes what ``load`` gives back."""

    def __init__(
        self, uri: str, keep: int | None = None, *, looks: int = LOOKS, spoil: Callable[[Any], None] | None = None
    ) -> None:
        self._folder = Path(uri.partition("://")[2])
        self._folder.mkdir(exist_ok=True)
        self._keep = keep
        self._looks = looks
        self._spoil = spoil
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FakeStore:
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.communicate()

    def warmup(self) -> None:
        """Start a worker that ends, as real ones do, when its parent's end of the pipe closes."""
        self._worker = subprocess.Popen(["cat"], stdin=subprocess.PIPE)

    def list(self) -> list[Info]:
        return [Info(step) for step in sorted(int(path.stem) for path in self._folder.glob("*.pt"))]

    def latest(self) -> Info | None:
        infos = self.list()
        return infos[-1] if infos else None

    def save_async(self, step: int, state: Any, *, framework: str, user_meta: dict[str, Any]) -> FakeHandle:
        import torch

        part = self._folder / f"{step}.part"
        torch.save(state, part)
        return FakeHandle(part, part.stat().st_size, self._looks)

    def load(self) -> Any:
        import torch

        newest = self.latest()
        assert newest is not None
        state = torch.load(self._folder / f"{newest.step}.pt", weights_only=False)
        if self._spoil is not None:
            self._spoil(state)
        return state
