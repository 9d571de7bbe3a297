"""Where tests of objects run: on every kind of store, with a class of the same tests for each.

A server's fixture must be an argument of what asks for it, so each kind is a mix-in with its own fixture ``where``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.servers.azurite import Container
from tests.servers.s3_server import Bucket


@dataclass(frozen=True, slots=True)
class Where:
    """An empty place for objects: the URI of a folder, without a slash at its end, and the store's options."""

    base: str
    options: Mapping[str, Any] | None = field(default=None, repr=False)

    def uri(self, name: str) -> str:
        return f"{self.base}/{name}"

    @property
    def is_local(self) -> bool:
        return self.options is None


class OnFiles:
    @pytest.fixture
    def where(self, tmp_path: Path) -> Where:
        return Where(f"file://{tmp_path}/place")


class OnDirect:
    @pytest.fixture
    def where(self, tmp_path: Path) -> Where:
        return Where(f"direct://{tmp_path}/place")


class OnS3:
    @pytest.fixture
    def where(self, s3_bucket: Bucket) -> Where:
        return Where(f"{s3_bucket.uri}/place", s3_bucket.options)


class OnAzure:
    @pytest.fixture
    def where(self, az_container: Container) -> Where:
        return Where(f"{az_container.uri}/place", az_container.options)
