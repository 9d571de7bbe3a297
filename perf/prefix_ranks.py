"""The ranks of a training run as a simulated store sees them: what each asks for, and how it waits after a 503.

Owns the requests of a save, a load and a commit, and one rank's way through them in virtual time. Real are what a
commit asks for (``commit.check_stored`` and ``pointer.advance``, recorded against the store in memory) and the waiting
(``Pace``, and the waits of ``retry`` under ``REMOTE``): ``RetryBackend`` itself blocks its thread, so its loop is told
here in events. ``hotspots`` makes the ranks and starts them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

from s3dlio.commit import check_stored
from s3dlio.engine.backends.memory import MemoryBackend, forget
from s3dlio.engine.backends.pace import Pace, Timing
from s3dlio.engine.backends.retry import REMOTE, Waits
from s3dlio.engine.contract import ObjectInfo, Page, Segments
from s3dlio.engine.errors import ThrottledError
from s3dlio.ids import MANIFESTS, CheckpointId
from s3dlio.pointer import advance
from s3dlio.records import ShardRecord
from s3dlio.strategy import index_key

from .prefix_store import PrefixStore, VirtualTime

PARTS = 4
WIDTH = 16
"""Requests that a rank has in flight: two workers of eight connections."""
_BYTES = 0.2  # seconds of a part or chunk of 16 MiB at 90 MB/s
_SMALL = 0.03
_LIST = 0.1
_REFUSAL = 0.02
_PAGE = 1000
_ROOT = "perf.prefix_ranks"
_SILENT = replace(REMOTE, warn_after=math.inf)
"""Every rank would tell of its trouble: 90,000 lines of one run."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Request:
    """One request: where it goes, whether it counts as a write, and how long it takes once it is let in."""

    key: str
    write: bool
    seconds: float


Stages = Sequence[Sequence[Request]]
"""Requests of one rank: those of a stage leave ``WIDTH`` at once, the next stage when all are answered."""


class Rank:
    """One process: goes through its stages, waits as ``RetryBackend`` does; ``failed`` once a request has given up."""

    def __init__(self, time: VirtualTime, store: PrefixStore, chance: random.Random) -> None:
        self.failed = False
        self._time = time
        self._store = store
        self._slept = 0.0
        self._timing = Timing(self._sleep, lambda: time.now, chance.uniform)
        self._pace = Pace(timing=self._timing)
        self._stages: Stages = ()
        self._next = 0
        self._waiting: Iterator[Request] = iter(())
        self._left = 0
        self._ended: Callable[[], None] = lambda: None

    def start(self, stages: Stages, ended: Callable[[], None]) -> None:
        """Go through ``stages``; ``ended`` is called once, after the last answer."""
        self.failed, self._stages, self._next, self._ended = False, stages, 0, ended
        self._advance()

    def _advance(self) -> None:
        if self.failed or self._next == len(self._stages):
            self._ended()
            return
        stage = self._stages[self._next]
        self._next += 1
        self._left = len(stage)
        self._waiting = iter(stage)
        for request in islice(self._waiting, WIDTH):
            self._begin(request)

    def _begin(self, request: Request) -> None:
        self._ask(request, Waits(f"request to {request.key!r}", _SILENT, self._timing, self._pace))

    def _ask(self, request: Request, waits: Waits) -> None:
        held = self._pace.remaining()
        if held:
            self._time.after(held, partial(self._send, request, waits))
        else:
            self._send(request, waits)

    def _send(self, request: Request, waits: Waits) -> None:
        if self._store.admit(request.key, request.write):
            self._time.after(request.seconds, self._answered)
        else:
            self._time.after(_REFUSAL, partial(self._refused, request, waits))

    def _refused(self, request: Request, waits: Waits) -> None:
        try:
            waits.after(ThrottledError("503 Slow Down", transient=True))
        except ThrottledError:
            self.failed = True
            self._answered()
        else:
            self._time.after(self._slept, partial(self._ask, request, waits))

    def _answered(self) -> None:
        self._left -= 1
        if not self._left:
            self._advance()
        elif (request := next(self._waiting, None)) is not None:
            self._begin(request)

    def _sleep(self, seconds: float) -> None:
        """What ``Waits`` does last: the event after it comes so much later."""
        self._slept = seconds


def save_stages(key: str, *, first: bool) -> Stages:
    """What a rank asks for to store its shard and index; ``first``: its store has not listed the manifests yet."""
    small = Request(key, True, _SMALL)
    listing = [[Request(MANIFESTS, False, _LIST)]] if first else []
    parts = [Request(key, True, _BYTES)] * PARTS
    return [*listing, [small], parts, [small], [Request(index_key(key), True, _SMALL)]]


def load_stages(key: str, manifest: str) -> Stages:
    """What a rank asks for to load its shard of the newest checkpoint."""
    return [
        [Request(MANIFESTS, False, _LIST)],
        [Request(manifest, False, _SMALL)],
        [Request(index_key(key), False, _SMALL)],
        [Request(key, False, _BYTES)] * PARTS,
    ]


class _Recorder(MemoryBackend):
    """The store in memory, noting what it is asked for."""

    def __init__(self) -> None:
        super().__init__(_ROOT)
        self.stages: list[list[Request]] = []
        self._together = False

    def each(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """What ``PoolControl.each`` would ask for at once, as one stage."""
        self.stages.append([])
        self._together = True
        try:
            return [function(item) for item in items]
        finally:
            self._together = False

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        self._note(Request(key, True, _SMALL))
        return super().put(key, data, if_absent=if_absent, if_match=if_match)

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        self._note(Request(key, False, _SMALL))
        return super().read(key, limit=limit)

    def head(self, key: str) -> ObjectInfo:
        self._note(Request(key, False, _SMALL))
        return super().head(key)

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        page = super().list_page(prefix, shallow=shallow, after=after, limit=limit or _PAGE)
        if page.objects:
            self._note(Request(page.objects[0].key, False, _LIST))
        return page

    def _note(self, request: Request) -> None:
        if self._together:
            self.stages[-1].append(request)
        else:
            self.stages.append([request])


def commit_stages(records: Sequence[ShardRecord], id_: CheckpointId, latest: CheckpointId | None) -> Stages:
    """What rank 0 asks for to commit ``records``; ``latest``: what the pointers name before."""
    recorder = _Recorder()
    try:
        stored = [key for shard in records if shard.index for key in (shard.key, shard.index.key)]
        for key in [*stored, *([latest.manifest_key] if latest else [])]:
            recorder.put(key, [memoryview(b"x")])
        if latest:
            advance(recorder, latest)
        recorder.stages.clear()
        check_stored(recorder, records, recorder.each)
        recorder.put(id_.manifest_key, [], if_absent=True)
        advance(recorder, id_)
        return [stage for stage in recorder.stages if stage]
    finally:
        forget(_ROOT)
