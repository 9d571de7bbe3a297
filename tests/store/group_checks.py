"""What must hold when a save of all ranks fails, and ranks of which nothing is heard."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import S3dlioError, StorageError
from s3dlio.coordination import council as councils
from s3dlio.coordination.council import Council
from tests.store.live import assert_same, contents
from tests.store.worlds import PATIENCE, Rank, World

WORLD = 3


def state_of(rank: int) -> dict[str, Any]:
    shared = {f"w{number}": np.full(100_000, number, np.float32) for number in range(6)}
    return {**shared, "own": np.full(5000, rank), "rank": rank}


def save_all(rank: Rank) -> Any:
    return rank.save(1, state_of(rank.rank))


def lies_there(folder: Path, step: int = 1) -> list[str]:
    """What there is of a step."""
    return sorted(name for name in contents(folder) if f"ckpt-{step}-" in name)


def nothing_of(ranks: World, folder: Path, step: int = 1) -> None:
    """Neither committed nor left behind; the checkpoint before loads, and the next save works."""
    assert lies_there(folder, step) == []
    assert [info.step for info in ranks[0].store.list()] == [0]
    assert_same(ranks[1].store.load(rank=1, coordinator=None), state_of(1))


def goes_on(ranks: World) -> None:
    """The failed save stands in nobody's way."""
    assert len({info.id for info in ranks.save(2, state_of)}) == 1
    for rank, found in enumerate(ranks.each(lambda rank: rank.load())):
        assert_same(found, state_of(rank))


def failed(ends: list[Any], kind: type[S3dlioError], *told: str) -> None:
    """All ends are errors of this kind that tell this."""
    for rank, end in enumerate(ends):
        assert isinstance(end, kind), (rank, end)
        for text in told:
            assert text in str(end), (rank, end)


def silence(patch: pytest.MonkeyPatch, missing: set[int], topic: str, *, called: bool = True) -> None:
    """Nothing is heard of ``missing`` ranks on a topic; they are waited for only once all others have spoken.

    ``called``: they have come so far, and die as they speak.
    """
    spoken: set[tuple[str, int]] = set()
    changed = threading.Condition()
    plain = Council.say, Council.announce, Council.gather, Council.hear

    def note(name: str, rank: int) -> None:
        with changed:
            spoken.add((name, rank))
            changed.notify_all()

    def await_words(council: Council, name: str, ranks: Iterable[int]) -> None:
        with changed:
            assert changed.wait_for(lambda: {(name, rank) for rank in ranks} <= spoken, PATIENCE)
        council.timeout = 0.05

    def say(council: Council, name: str, word: bytes) -> None:
        if not (council.rank in missing and name.endswith(topic)):
            plain[0](council, name, word)
        note(name, council.rank)

    def announce(council: Council, name: str, word: bytes) -> None:
        if 0 in missing and name.endswith(topic):
            note(name, 0)
            raise StorageError("the board is gone")
        plain[1](council, name, word)

    def gather(council: Council, name: str, ranks: Sequence[int], *args: Any) -> Iterator[tuple[int, bytes]]:
        if name.endswith(topic) and missing - {0}:
            await_words(council, name, set(ranks) - (set() if called else missing))
        yield from plain[2](council, name, ranks, *args)

    def hear(council: Council, name: str, *args: Any) -> bytes:
        if name.endswith(topic) and 0 in missing:
            await_words(council, name, {0} if called else ())
        return plain[3](council, name, *args)

    for method in (say, announce, gather, hear):
        patch.setattr(Council, method.__name__, method)
    patch.setattr(councils, "GRACE", 0.0)
