"""The pool that engine tests share: a few small slots and two workers, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3dlio.engine.pool import Pool, PoolConfig
from tests.engine.live import MIB, all_free, all_ready, await_


@pytest.fixture(scope="session")
def session_pool() -> Iterator[Pool]:
    pool = Pool(PoolConfig(memory=12 * MIB, workers=2, lanes=2, slot_size=MIB, task_timeout=60.0))
    await_(pool.supervisor, lambda: all_ready(pool.supervisor))
    yield pool
    pool.close(timeout=30)


@pytest.fixture
def pool(session_pool: Pool) -> Iterator[Pool]:
    """The shared pool; the test must leave it with all its slots free."""
    yield session_pool
    assert all_free(session_pool), "the test leaves slots in use"
