"""What waits for a worker: tasks in the order of their urgency, for local work and for the network apart.

Owns the records of tasks on their way and the two queues; pure, it knows no process. The supervisor fills and empties
it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol

from .backends import OBJECT_STORES
from .contract import Location
from .errors import S3dlioError
from .messages import Encode, Fetch, Populate, PutWhole, StorePart, Task


class Owner(Protocol):
    """A job, as the supervisor sees it; called in the supervisor thread only."""

    def on_done(self, token: Hashable, value: object) -> None:
        """The task under ``token`` came back."""

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        """The task under ``token`` failed for good."""


@dataclass(slots=True)
class Sent:
    """A task on its way: whose it is, how often it was sent, and until when it may stay silent.

    ``remote``: it waits for a network rather than for a core or a disk. ``limit``: the seconds it may take, of which
    ``deadline`` is the end; ``stuck`` counts how often that came.
    """

    rank: tuple[int, int]
    owner: Owner
    token: Hashable
    task: Task
    remote: bool
    sends: int = 0
    limit: float = 0.0
    deadline: float = 0.0
    stuck: int = 0


def priority(task: Task) -> int:
    """What frees memory goes first, what fills it last; commits and lookups wait for nobody."""
    match task:
        case StorePart() | PutWhole():
            return 1
        case Encode() | Fetch():
            return 2
        case Populate():
            return 3
    return 0


def is_remote(task: Task) -> bool:
    """Whether a task waits for a network."""
    location = getattr(task, "location", None)
    return isinstance(location, Location) and location.scheme in OBJECT_STORES


class Backlog:
    """Waiting tasks, most urgent first, then in the order of ``add``; a task put back keeps its place."""

    def __init__(self) -> None:
        self._queues: dict[bool, list[tuple[tuple[int, int], Sent]]] = {False: [], True: []}
        self._sequence = itertools.count()

    def __bool__(self) -> bool:
        return any(self._queues.values())

    def add(self, owner: Owner, token: Hashable, task: Task) -> None:
        """Let a new task wait."""
        self.put_back(Sent((priority(task), next(self._sequence)), owner, token, task, is_remote(task)))

    def put_back(self, sent: Sent) -> None:
        """Let a task wait again whose worker died."""
        heapq.heappush(self._queues[sent.remote], (sent.rank, sent))

    def pop(self, has_room: Callable[[bool], bool]) -> Sent | None:
        """The most urgent task of a kind for which there is room; ``None`` if there is none."""
        heads = [(queue[0][0], remote) for remote, queue in self._queues.items() if queue and has_room(remote)]
        if not heads:
            return None
        _, remote = min(heads)
        return heapq.heappop(self._queues[remote])[1]

    def withdraw(self, owner: Owner) -> list[Hashable]:
        """Take back the owner's tasks; their tokens, in the order they would have gone."""
        mine: list[Sent] = []
        for remote, queue in self._queues.items():
            mine += [sent for _, sent in queue if sent.owner is owner]
            self._queues[remote] = [entry for entry in queue if entry[1].owner is not owner]
            heapq.heapify(self._queues[remote])
        return [sent.token for sent in sorted(mine, key=lambda sent: sent.rank)]

    def drain(self) -> Iterator[Sent]:
        """Take out whatever waits, and what is added meanwhile."""
        while (sent := self.pop(lambda _: True)) is not None:
            yield sent
