"""Training loops without a training: small steps whose every duration is kept.

Owns two steps, one of pure Python and one of torch kernels on all threads, and what is computed from their durations.
``interference`` calls it.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch

Step = Callable[[], object]


def python_step() -> Step:
    """About a quarter of a millisecond of interpreter work, as a data pipeline or a logger does it."""
    words = [f"token-{i}" for i in range(1200)]

    def step() -> object:
        counted: dict[str, int] = {}
        for word in words:
            counted[word.upper()] = counted.get(word, 0) + len(word)
        return sorted(counted)

    return step


def torch_step() -> Step:
    """About two milliseconds of a small network's forward, backward and update."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(64, 512)

    def step() -> object:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return None

    return step


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of steps: how long it took and how long each step took, in seconds."""

    seconds: float
    steps: array[float]

    @property
    def rate(self) -> float:
        """Steps a second."""
        return len(self.steps) / self.seconds

    def quantile(self, share: float) -> float:
        """The step duration that ``share`` of the steps do not exceed; 0.0 without steps."""
        ordered = sorted(self.steps)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def stretch(step: Step, done: Callable[[], bool], *, started: float | None = None) -> Stretch:
    """Step until ``done``; the stretch began at ``started`` (``time.perf_counter``; default now)."""
    durations = array("d")
    last = time.perf_counter()
    began = last if started is None else started
    while not done():
        step()
        now = time.perf_counter()
        durations.append(now - last)
        last = now
    return Stretch(time.perf_counter() - began, durations)
