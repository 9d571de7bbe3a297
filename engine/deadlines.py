"""How long a task may stay silent, and how often it is tried: the rules by which hung and deadly work is given up.

Pure: tasks and counts in, seconds or an error out; kills nobody and reads no clock. The supervisor asks when it sends a
task and when a worker has died. Workers speak of a task only when it is done, so its limit must cover all that it may
rightly take.
"""

from __future__ import annotations

from .backends import OBJECT_STORES, insistence
from .backlog import Sent
from .contract import Location
from .errors import DeadlineError, S3dlioError, WorkerDiedError
from .messages import Abort, Fetch, Inflate, PutWhole, StorePart, Task

MAX_SENDS = 5
"""How often one task is sent before its job fails: a task that kills four workers will kill the fifth."""
MAX_STUCK = 2
"""How often one task may run out of its limit: once for the worker's sake, and where another hangs, too, it is the
storage. Each time costs the whole limit, so that a job would wait 25 minutes for five. An abort has one: it only tidies
up, its job waits for it, and ``cleanup`` finds what it leaves."""
START = 60.0
"""Seconds more for the tasks of a worker that starts: 0.1 where the interpreter's files are warm, more from a busy
network file system."""

_MARGIN = 60.0  # beyond the last moment of a request: what the pace held back, an attempt that makes several requests
_SLOWEST = 1 << 20  # bytes a second; a connection that carries less is as good as hung


def time_limit(task: Task, silence: float) -> float:
    """Seconds after which a worker that holds ``task`` counts as hung.

    ``silence`` is the least. A worker insists on a request to an object store, and one that is given longer for that is
    given longer here, too. Bytes come on top, at the rate of a very slow link.
    """
    location = getattr(task, "location", None)
    if isinstance(location, Location) and location.scheme in OBJECT_STORES:
        silence = max(silence, insistence(location) + _MARGIN)
    return silence + _moved(task) / _SLOWEST


def verdict(sent: Sent, status: int) -> S3dlioError | None:
    """Why a task whose worker ended with ``status`` is not sent again; ``None`` if it is."""
    what = f"{type(sent.task).__name__} of {getattr(sent.task, 'key', 'memory')}"
    if sent.stuck >= (1 if isinstance(sent.task, Abort) else MAX_STUCK):
        times = "once" if sent.stuck == 1 else f"{sent.stuck} times"
        return DeadlineError(f"{what} made no progress for {round(sent.limit, 1):g} s, {times}; the storage hangs")
    if sent.sends >= MAX_SENDS:
        return WorkerDiedError(
            f"{what}: {sent.sends} workers died on it, the last with status {status}; see their output above"
        )
    return None


def _moved(task: Task) -> int:
    """Bytes that a task sends or receives."""
    match task:
        case StorePart() | PutWhole():
            return sum(span.length for span in task.spans)
        case Fetch() | Inflate():
            return task.stored
    return 0
