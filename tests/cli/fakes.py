"""A store of three checkpoints in memory, as the commands see one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from s3dlio.engine.errors import CheckpointNotFoundError


@dataclass(frozen=True, slots=True)
class Info:
    step: int
    epoch: int = 1
    framework: str | None = "pytorch"
    timestamp: str = "20250131T120000.000001Z-0a1b2c3d"
    id: str = "0a1b2c3d"
    world_size: int = 1
    status: str = "complete"
    total_size: int = 1_500_000
    raw_size: int | None = 3_000_000
    manifest_key: str = "manifests/ckpt-1.json"
    user_meta: Any = field(default_factory=lambda: MappingProxyType({"loss": 1.25, "bad": float("nan")}))


@dataclass(frozen=True, slots=True)
class Report:
    shards: int = 1
    bytes: int = 1_500_000
    ok: bool = True


class FakeStore:
    """``outcomes``: by step, what ``verify`` returns or raises."""

    def __init__(self, *steps: int, world_size: int = 1, payload: bytes = b"") -> None:
        self.infos = [replace(Info(step), id=f"{step}-0a1b2c3d", world_size=world_size) for step in steps]
        self.outcomes: dict[int, Report | Exception] = {}
        self.payload = payload
        self.closed = 0
        self.read: list[tuple[int, int]] = []

    def __call__(self, uri: str) -> FakeStore:
        self.uri = uri
        return self

    def __enter__(self) -> FakeStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed += 1

    def list(self) -> list[Info]:
        return list(self.infos)

    def latest(self) -> Info | None:
        return self.infos[-1] if self.infos else None

    def info(self, step: int) -> Info:
        for info in self.infos:
            if info.step == step:
                return info
        raise CheckpointNotFoundError(f"no committed checkpoint of step {step}\nin {self.uri}")

    def verify(self, *, id: str) -> Report:
        (step,) = (info.step for info in self.infos if info.id == id)
        outcome = self.outcomes.get(step, Report())
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def delete(self, step: int) -> bool:
        before = len(self.infos)
        self.infos = [info for info in self.infos if info.step != step]
        return len(self.infos) < before

    def read_shard(self, step: int, rank: int = 0) -> bytes:
        self.read.append((step, rank))
        return self.payload
