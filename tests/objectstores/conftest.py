"""Fixtures of the fault catalogue of object stores: every test runs on S3 and on Azure.

Both servers start with the first test here. The tests of a module share one pool, and for each kind of store one bucket
or container and one proxy, so that the workers ask only once what the store can do; each test has a prefix of its own.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3dlio.engine.backends import pace
from s3dlio.engine.pool import Pool
from tests.faults.scripts import Script
from tests.objectstores import hurried
from tests.objectstores.checks import new, old
from tests.objectstores.places import SMALL, Place
from tests.servers.azurite import AzureServer
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import S3Server
from tests.store.live import open_store

Scripting = Callable[..., Script]


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """The stores that tests open with the small settings find this pool running, and leave it running.

    Its workers are in a hurry: most tests make them try again.
    """
    with pytest.MonkeyPatch.context() as patch, open_store(tmp_path_factory.mktemp("pool"), **SMALL) as store:
        patch.setattr(sys, "executable", hurried.executable(tmp_path_factory.mktemp("hurried")))
        store.save(0, b"")  # its threads exist before the first test's leak check looks
        patch.undo()
        yield store._use_pool()


@pytest.fixture(scope="module", params=["s3", "az"])
def site(request: pytest.FixtureRequest, localstack: S3Server, azurite: AzureServer) -> Iterator[Place]:
    """A fresh bucket on LocalStack, then a fresh container on Azurite, each behind a proxy."""
    kind = request.param
    where = localstack.make_bucket() if kind == "s3" else azurite.make_container()
    with FaultProxy(where.endpoint) as proxy:
        yield Place(kind, where, proxy, "site")


@pytest.fixture
def place(site: Place, pool: Pool) -> Iterator[Place]:
    """A prefix of its own, without a store."""
    yield replace(site, prefix=f"runs/{uuid.uuid4().hex[:8]}")
    forget(site, pool)


@pytest.fixture(scope="module")
def saved(site: Place, pool: Pool) -> Place:
    """A store that holds step 1 and, in three parts, step 2: for tests that only read."""
    with site.open() as store:
        store.save(1, old())
        store.save(2, new())
    forget(site, pool)
    return site


@pytest.fixture
def filled(saved: Place, pool: Pool) -> Iterator[Place]:
    """The same, with nothing in the proxy's log yet."""
    yield saved
    forget(saved, pool)


def forget(site: Place, pool: Pool) -> None:
    """Nobody is connected any more, and no refusal of this test makes the next one wait."""
    site.proxy.cut()
    os.pwrite(pool._pace.fd, bytes(pace.SIZE), 0)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Scripting]:
    """``script(place, body, ...)`` runs a trainer on the place; it finds the options in ``ARGS["options"]``."""
    started: list[Script] = []

    def start(place: Place, body: str, **args: object) -> Script:
        one = Script(place.uri, body, tmp_path, options=place.options, **args)  # type: ignore[arg-type]
        started.append(one)
        return one

    yield start
    for one in started:
        one.close()
