"""Workers that wait at a manifest, so that a test may look at what must not have happened before a commit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.faults.injected import HOLD, Rule
from tests.faults.sabotage import Sabotage


class Holding(Protocol):
    """``hold(step)``: the workers started from now on wait before they put the manifest of ``step``.

    ``here=False``: only those of a script that is given the executable.
    """

    def __call__(self, step: int, *, here: bool = True) -> Sabotage: ...


@contextmanager
def holding(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Holding]:
    """A ``hold`` for a test; afterwards nobody waits any more."""
    made: list[Sabotage] = []

    def hold(step: int, *, here: bool = True) -> Sabotage:
        one = Sabotage(folder / f"sabotage-{len(made)}", Rule("Call.put", do=HOLD, key=f"manifests/ckpt-{step}-"))
        made.append(one)
        if here:
            patch.setattr(sys, "executable", one.executable)
        return one

    yield hold
    for one in made:
        one.close()
