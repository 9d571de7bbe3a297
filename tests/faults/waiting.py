"""Waiting for what another process does: a condition, asked again until it holds or a deadline passes.

For what nothing tells of when it happens: a process that is not ours ends, a file or an object appears. The outcome
depends on the condition alone; the pause between two questions only leaves the processor to those it is about.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
PATIENCE = 30.0
_PAUSE = 0.003


def until(condition: Callable[[], _T], what: str, patience: float = PATIENCE) -> _T:
    """The first true value of ``condition``; the test fails after ``patience`` seconds, which only faults reach."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s in vain for {what}")
        time.sleep(_PAUSE)
    return value
