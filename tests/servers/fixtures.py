"""Fixtures of the real servers, for every folder of tests: a server starts with the first test that asks for it.

A test names them as arguments; one that asked from within (``getfixturevalue``) would seem to leak the server. What is
not installed fails the test: a suite that skips its stores proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import azurite as _azurite
from . import localstack as _localstack
from . import moto as _moto
from . import radosgw as _radosgw
from .azurite import AzureServer, Container
from .proxy import FaultProxy
from .s3_server import Bucket, S3Server


@pytest.fixture(scope="session")
def localstack() -> Iterator[S3Server]:
    """The session's LocalStack."""
    with _localstack.running() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """The session's moto."""
    with _moto.running() as server:
        yield server


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzureServer]:
    """The session's Azurite."""
    with _azurite.running() as server:
        yield server


@pytest.fixture(scope="session")
def radosgw() -> Iterator[S3Server]:
    """The session's Ceph gateway; only tests marked ``rgw`` use it."""
    with _radosgw.running() as server:
        yield server


@pytest.fixture
def s3_bucket(localstack: S3Server) -> Bucket:
    """A fresh bucket on LocalStack."""
    return localstack.make_bucket()


@pytest.fixture
def az_container(azurite: AzureServer) -> Container:
    """A fresh container on Azurite."""
    return azurite.make_container()


@pytest.fixture
def s3_proxy(localstack: S3Server) -> Iterator[FaultProxy]:
    """A proxy before LocalStack: ``s3_bucket.through(s3_proxy.endpoint)``."""
    with FaultProxy(localstack.endpoint) as proxy:
        yield proxy


@pytest.fixture
def az_proxy(azurite: AzureServer) -> Iterator[FaultProxy]:
    """A proxy before Azurite: ``az_container.through(az_proxy.endpoint)``."""
    with FaultProxy(azurite.endpoint) as proxy:
        yield proxy
