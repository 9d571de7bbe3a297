from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator

import pytest

from s3dlio import CheckpointConfig, pools
from s3dlio.engine.contract import Limits, Location
from s3dlio.engine.errors import MemoryLimitError, PoolClosedError
from s3dlio.engine.messages import Call
from s3dlio.engine.pool import Pool, PoolConfig
from tests.store.live import in_forked_child

CONFIG = PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20)
OTHER = PoolConfig(memory=5 << 20, workers=1, slot_size=1 << 20)
HERE = Location("file", "/")


@pytest.fixture(autouse=True)
def all_given_back() -> Iterator[None]:
    before = dict(pools._shared)
    yield
    assert pools._shared == before


def test_equal_configs_share_a_pool_and_the_last_closes_it() -> None:
    first, second = pools.borrow(CONFIG), pools.borrow(PoolConfig(memory=4 << 20, workers=1, slot_size=1 << 20))
    assert first is second
    pools.give_back(CONFIG, first)
    assert not first.closed
    assert isinstance(first.run(Call(HERE, "limits")).result(), Limits)
    pools.give_back(CONFIG, first)
    assert first.closed


def test_another_size_is_another_pool() -> None:
    first, second = pools.borrow(CONFIG), pools.borrow(OTHER)
    assert first is not second
    pools.give_back(CONFIG, first)
    assert not second.closed
    pools.give_back(OTHER, second)


def test_a_pool_comes_back_new_after_its_last_user_left() -> None:
    first = pools.borrow(CONFIG)
    pools.give_back(CONFIG, first)
    second = pools.borrow(CONFIG)
    assert first is not second
    assert not second.closed
    pools.give_back(CONFIG, second)


def test_a_pool_that_somebody_closed_is_replaced() -> None:
    first = pools.borrow(CONFIG)
    first.close()
    second = pools.borrow(CONFIG)
    assert second is not first
    pools.give_back(CONFIG, first)  # the old one: its user count is not the new one's
    assert not second.closed
    pools.give_back(CONFIG, second)
    assert second.closed


def test_giving_back_twice_does_no_harm() -> None:
    pool = pools.borrow(CONFIG)
    pools.give_back(CONFIG, pool)
    pools.give_back(CONFIG, pool)
    assert pool.closed


def test_threads_that_borrow_at_once_get_one_pool() -> None:
    found: list[Pool] = []
    start = threading.Barrier(8)

    def borrow() -> None:
        start.wait()
        found.append(pools.borrow(CONFIG))

    threads = [threading.Thread(target=borrow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    for pool in found:
        assert not pool.closed
        pools.give_back(CONFIG, pool)
    assert found[0].closed


def test_a_pool_that_cannot_start_is_not_remembered() -> None:
    config = PoolConfig(memory=1000, workers=1, slot_size=1 << 20)
    for _ in range(2):
        with pytest.raises(MemoryLimitError, match=r"memory number \(1000 bytes\) cannot hold one chunk"):
            pools.borrow(config)


def test_a_forked_child_has_no_pools() -> None:
    pool = pools.borrow(CONFIG)
    pool.run(Call(HERE, "limits")).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads
        child = os.fork()
    if not child:
        code = 1
        try:
            pool.run(Call(HERE, "limits"))
        except PoolClosedError:
            code = 0 if pool.closed and not pools._shared else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert isinstance(pool.run(Call(HERE, "limits")).result(), Limits)
    pools.give_back(CONFIG, pool)


@pytest.fixture
def kept() -> Iterator[Pool]:
    yield pools.keep()
    pools.let_go()


def test_a_kept_pool_stays_until_it_is_let_go(kept: Pool) -> None:
    assert pools.keep() is kept
    config = pools.config_of(CheckpointConfig())
    assert pools.borrow(config) is kept
    pools.give_back(config, kept)
    assert not kept.closed
    pools.let_go()
    assert kept.closed
    assert pools.keep() is not kept


def test_a_pool_let_go_stays_with_the_stores_that_use_it(kept: Pool) -> None:
    config = pools.config_of(CheckpointConfig())
    assert pools.borrow(config) is kept
    pools.let_go()
    assert not kept.closed
    pools.give_back(config, kept)
    assert kept.closed


def test_a_kept_pool_that_was_closed_is_replaced(kept: Pool) -> None:
    kept.close()
    assert not pools.keep().closed


def test_a_forked_child_keeps_a_pool_of_its_own(kept: Pool) -> None:
    def child() -> None:
        assert pools.keep() is not kept
        pools.let_go()

    in_forked_child(child)
    assert pools.keep() is kept
