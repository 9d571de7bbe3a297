"""Fixtures of the fault catalogue: a folder with an old checkpoint, and sabotage of the workers to come."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3dlio import CheckpointStore
from tests.faults.injected import Rule
from tests.faults.sabotage import Sabotage
from tests.faults.scripts import Script
from tests.faults.states import MIB

Open = Callable[..., CheckpointStore]
Scripting = Callable[..., Script]
Sabotaging = Callable[..., Sabotage]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store will be; nothing is there yet."""
    return tmp_path / "store"


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sabotaging]:
    """``sabotage(*rules)`` strikes the workers started from now on; ``here=False``: only those of scripts."""
    made: list[Sabotage] = []
    count = itertools.count()

    def start(*rules: Rule, here: bool = True) -> Sabotage:
        one = Sabotage(tmp_path / f"sabotage-{next(count)}", *rules)
        made.append(one)
        if here:
            monkeypatch.setattr(sys, "executable", one.executable)
        return one

    yield start
    for one in made:
        one.close()


@pytest.fixture
def open_store(folder: Path) -> Iterator[Open]:
    """Opens small stores in ``folder``: chunks of 1 MiB, uploads in parts; whatever is left open is closed."""
    opened: list[CheckpointStore] = []

    def open_(**options: object) -> CheckpointStore:
        settings = {"chunk_size": MIB, "workers": 2, "memory": 24 * MIB, "multipart_threshold": 0, **options}
        store = CheckpointStore(f"{settings.pop('scheme', 'file')}://{folder}", **settings)  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def script(tmp_path: Path, folder: Path) -> Iterator[Scripting]:
    """``script(body, ...)`` runs a trainer on the store in ``folder``; arguments as in ``Script``."""
    started: list[Script] = []

    def start(body: str, *, scheme: str = "file", uri: str | None = None, **options: object) -> Script:
        one = Script(uri or f"{scheme}://{folder}", body, tmp_path, **options)  # type: ignore[arg-type]
        started.append(one)
        return one

    yield start
    for one in started:
        one.close()
