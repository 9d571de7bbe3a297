"""What the servers of the tests have in common: where one is, and a bucket or container of it.

Owns no process. ``s3_server`` and ``azurite`` add how to sign in and what lies there.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

_Server = TypeVar("_Server", bound="Server")
_Space = TypeVar("_Space", bound="Space[Any]")


@dataclass(frozen=True, slots=True)
class Server(ABC):
    """A running server."""

    name: str
    endpoint: str
    pid: int

    @property
    @abstractmethod
    def options(self) -> dict[str, str]:
        """What a store needs to reach it."""


@dataclass(frozen=True, slots=True)
class Space(Generic[_Server]):
    """A bucket or a container of a server, and how a store reaches it."""

    server: _Server
    name: str

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def options(self) -> dict[str, str]:
        return self.server.options

    def through(self: _Space, endpoint: str) -> _Space:
        """The same by another way, such as a proxy."""
        return replace(self, server=replace(self.server, endpoint=endpoint))


def fresh_name() -> str:
    """A name not used before."""
    return f"test-{uuid.uuid4().hex[:20]}"
