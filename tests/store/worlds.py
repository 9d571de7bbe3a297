"""A job of several ranks in one process: a thread and a store for each, on one place and one pool."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from s3dlio import CheckpointStore
from s3dlio.coordination.boards import StoreCoordinator
from s3dlio.handle import Handle
from s3dlio.info import CheckpointInfo
from tests.store.live import SMALL

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which a test gives up on a rank."""

_runs = itertools.count()


class Rank:
    """One rank: its store and the coordinator it names."""

    def __init__(self, store: CheckpointStore, coordinator: StoreCoordinator) -> None:
        self.store = store
        self.coordinator = coordinator
        self.rank = coordinator.rank

    def save(self, step: int, state: Any, **options: Any) -> CheckpointInfo:
        return self.store.save(step, state, coordinator=self.coordinator, **options)

    def save_async(self, step: int, state: Any, **options: Any) -> Handle:
        return self.store.save_async(step, state, coordinator=self.coordinator, **options)

    def load(self, step: int | None = None, **options: Any) -> Any:
        return self.store.load(step, coordinator=self.coordinator, **options)


class World(Sequence[Rank]):
    """The ranks of a job."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self._ranks = ranks

    def __getitem__(self, index: Any) -> Any:
        return self._ranks[index]

    def __len__(self) -> int:
        return len(self._ranks)

    def each(self, work: Callable[[Rank], T]) -> list[T]:
        """What ``work`` gives on every rank, all at once; raises what it raises, of the lowest rank."""
        ends = self.ends(work)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return ends  # type: ignore[return-value]

    def ends(self, work: Callable[[Rank], T]) -> list[T | BaseException]:
        """As ``each``, with the error in the place of what a rank would have given."""
        found: dict[int, T | BaseException] = {}

        def run(rank: Rank) -> None:
            try:
                found[rank.rank] = work(rank)
            except BaseException as error:  # noqa: BLE001 - handed to the test
                found[rank.rank] = error

        threads = [threading.Thread(target=run, args=(rank,), name=f"rank-{rank.rank}") for rank in self._ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(found) == len(self._ranks), f"only ranks {sorted(found)} have ended"
        return [found[rank.rank] for rank in self._ranks]

    def save(self, step: int, state_of: Callable[[int], Any], **options: Any) -> list[CheckpointInfo]:
        """Every rank saves its state; what each is told."""
        return self.each(lambda rank: rank.save(step, state_of(rank.rank), **options))


@contextmanager
def world(uri: str, size: int, run: str | None = None, **options: Any) -> Iterator[World]:
    """A world whose stores are closed at the end; ``run`` defaults to a new one, ``options`` are the stores'."""
    run = run or f"run-{next(_runs)}"
    with ExitStack() as stack:
        stores = [stack.enter_context(CheckpointStore(uri, **{**SMALL, **options})) for _ in range(size)]
        yield World([Rank(store, StoreCoordinator(run, rank, size)) for rank, store in enumerate(stores)])
