"""Fixtures of the tests that run real stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3dlio import CheckpointStore, PyCheckpointStore

from .live import SMALL, keeping_pool, open_store


@pytest.fixture(scope="module")
def kept_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    """Keeps the pool that ``live.open_store`` shares running for a module's tests."""
    with keeping_pool(tmp_path_factory.mktemp("keeper")) as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where ``store`` lies."""
    return tmp_path / "run"


@pytest.fixture
def store(kept_pool: CheckpointStore, folder: Path) -> Iterator[CheckpointStore]:
    """An empty store on the kept pool."""
    with open_store(folder) as store:
        yield store


@pytest.fixture
def warm(store: CheckpointStore) -> CheckpointStore:
    """The same, with step 0 saved: a further ``save_async`` needs no answer of the workers."""
    store.save(0, b"zero")
    return store


@pytest.fixture
def published(kept_pool: CheckpointStore, folder: Path) -> Iterator[PyCheckpointStore]:
    """An empty store under the published package's name."""
    with PyCheckpointStore(f"file://{folder}", **SMALL) as store:
        yield store
