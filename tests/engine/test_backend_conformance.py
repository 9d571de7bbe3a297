"""The suite of the contract against every backend of this package, bare and as ``open_backend`` wraps it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3dlio.engine.backends import memory, open_backend, posix
from s3dlio.engine.contract import Backend, Location
from tests.engine.conformance import Conformance

S3_LIMITS = (("part_max", 1 << 30), ("part_min", 5 << 20), ("parts_max", 10_000), ("put_max", 1 << 30))


class TestPosix(Conformance):
    @pytest.fixture(params=["file", "direct"])
    def location(self, request: pytest.FixtureRequest, tmp_path: Path) -> Location:
        return Location(request.param, str(tmp_path / "not" / "there" / "yet"))

    @pytest.fixture(params=[posix.open_location, open_backend], ids=["bare", "wrapped"])
    def wrap(self, request: pytest.FixtureRequest) -> Callable[[Location], Backend]:
        wrapper: Callable[[Location], Backend] = request.param
        return wrapper


class TestMemory(Conformance):
    dates_uploads = False

    @pytest.fixture(params=[(), S3_LIMITS], ids=["own limits", "limits of S3"])
    def location(self, request: pytest.FixtureRequest) -> Iterator[Location]:
        root = uuid.uuid4().hex
        yield Location("memory", root, request.param)
        memory.forget(root)

    @pytest.fixture(params=[memory.open_location, open_backend], ids=["bare", "wrapped"])
    def wrap(self, request: pytest.FixtureRequest) -> Callable[[Location], Backend]:
        wrapper: Callable[[Location], Backend] = request.param
        return wrapper
