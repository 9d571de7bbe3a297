"""Sinks that a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perf.sink import Sink, running_sink
from tests.perf.sinks import MIB, new_folder


@pytest.fixture(scope="module")
def store_sink() -> Iterator[Sink]:
    """One that keeps what it is sent."""
    with running_sink("store") as sink:
        yield sink


@pytest.fixture(scope="module")
def discard_sink() -> Iterator[Sink]:
    """One that keeps small objects; those never stored have 40 MiB."""
    with running_sink("discard", get_size=40 * MIB) as sink:
        yield sink


@pytest.fixture
def folder() -> str:
    """A prefix of the test's own."""
    return new_folder()
