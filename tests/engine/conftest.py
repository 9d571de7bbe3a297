"""The pool that engine tests share: a few small slots and two workers, started once a module; and who waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3dlio.engine.backends import answers
from s3dlio.engine.pool import Pool, PoolConfig
from tests.engine.live import MIB, all_free, all_ready, await_
from tests.engine.waiters import Waiters


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[Pool]:
    pool = Pool(PoolConfig(memory=12 * MIB, workers=2, lanes=2, slot_size=MIB, task_timeout=60.0))
    await_(pool.supervisor, lambda: all_ready(pool.supervisor))
    yield pool
    pool.close(timeout=30)


@pytest.fixture
def pool(shared_pool: Pool) -> Iterator[Pool]:
    """The shared pool; the test must leave it with all its slots free."""
    yield shared_pool
    assert all_free(shared_pool), "the test leaves slots in use"


@pytest.fixture
def waiters(monkeypatch: pytest.MonkeyPatch) -> Waiters:
    """Counts the threads that wait for what another asks a store."""
    counted = Waiters()
    monkeypatch.setattr(answers, "Future", counted.future)
    return counted
