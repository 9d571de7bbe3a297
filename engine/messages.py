"""The vocabulary between the parent and its workers: tasks, results, and a few notices.

Owns frozen records only. ``ledger`` writes the tasks of saves, ``s3dlio.reader`` those of loads; ``supervisor`` moves
them, ``tasks`` carries them out in the worker. A task may be sent again after a worker died, so each is idempotent:
same task, same stored bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import errors
from .contract import Location, PartReceipt

ARENA = 0
"""Number under which every worker knows the arena."""
PACE = 1
"""Number of the memory in which workers keep the pace of their requests, and then what stores answered.

``backends.pace`` and ``backends.answers`` know what is in it.
"""

Runs = tuple[tuple[int, int, int], ...]
"""Element widths of raw bytes: (start, stop, width) in bytes, in order; what no run covers has width 1."""


@dataclass(frozen=True, slots=True)
class Span:
    """``length`` bytes at ``offset`` of an attached memory (the arena or a landing)."""

    memory: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Open an upload; the result is its name."""

    location: Location
    key: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Encode:
    """Checksum one raw chunk and encode it into ``target`` (``None``: checksum only); gives ``Encoded``."""

    codec: str
    level: int
    source: Span
    target: Span | None
    runs: Runs = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """``codec`` as used, ``length`` of the encoded bytes, CRC-32C of the raw chunk, seconds it took."""

    codec: str
    length: int
    crc: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StorePart:
    """Store one part; with ``checksum`` each span is a raw chunk whose CRC-32C the result carries."""

    location: Location
    key: str
    upload: str
    number: int
    offset: int
    spans: tuple[Span, ...]
    checksum: bool


@dataclass(frozen=True, slots=True)
class PutWhole:
    """Store a small object in one request."""

    location: Location
    key: str
    spans: tuple[Span, ...]
    checksum: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """Result of ``StorePart`` (receipt) and ``PutWhole`` (its ``tag`` is the etag)."""

    receipt: PartReceipt
    crcs: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Complete:
    """Publish an upload; gives ``ObjectInfo``."""

    location: Location
    key: str
    upload: str
    parts: tuple[PartReceipt, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """Drop an upload."""

    location: Location
    key: str
    upload: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read one stored chunk, decode it, check its CRC-32C (where known) and leave it in ``target``.

    ``target`` ``None`` reads for the check alone. The result is the CRC-32C found; after an error ``target`` may hold
    anything.
    """

    location: Location
    key: str
    offset: int
    stored: int
    codec: str
    raw: int
    crc: int | None
    target: Span | None


@dataclass(frozen=True, slots=True)
class Inflate:
    """Decode a whole foreign zstd object into the memory ``memory``, growing it up to ``limit``; gives ``Inflated``."""

    location: Location
    key: str
    stored: int
    memory: int
    limit: int


@dataclass(frozen=True, slots=True)
class Inflated:
    """Decoded size in bytes and CRC-32C."""

    raw: int
    crc: int


@dataclass(frozen=True, slots=True)
class Populate:
    """Allocate the pages of a span, so that the trainer's first copy meets warm memory."""

    span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """Run one ``Control`` method of the location's backend; the result is what it returned."""

    location: Location
    method: str
    args: tuple[object, ...] = ()
    options: tuple[tuple[str, object], ...] = ()


Task = Begin | Encode | StorePart | PutWhole | Complete | Abort | Fetch | Inflate | Populate | Call


@dataclass(frozen=True, slots=True)
class TaskMessage:
    """A task under a number of the supervisor."""

    id: int
    task: Task


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way to the parent: class name, text, transience and the worker's traceback."""

    kind: str
    text: str
    transient: bool
    trace: str


@dataclass(frozen=True, slots=True)
class ResultMessage:
    """What became of a task: its result record, or a ``Failure``."""

    id: int
    value: object


@dataclass(frozen=True, slots=True)
class Attach:
    """A memory under a number; its descriptor travels with the message."""

    memory: int
    size: int


@dataclass(frozen=True, slots=True)
class Detach:
    """The memory is not used any more: unmap it."""

    memory: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The upload is finished: do not abort it when the parent goes."""

    key: str
    upload: str


@dataclass(frozen=True, slots=True)
class Configure:
    """Least level of log records that the parent wants."""

    level: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker is ready."""

    pid: int


@dataclass(frozen=True, slots=True)
class LogMessage:
    """One log record of a worker; ``once``: the same words of another worker are no news."""

    name: str
    level: int
    text: str
    created: float
    once: bool = False


def failure_of(error: BaseException, trace: str) -> Failure:
    """The record of an error; foreign classes become ``S3dlioError`` and keep their name in the text."""
    if isinstance(error, errors.S3dlioError):
        return Failure(type(error).__name__, str(error), bool(getattr(error, "transient", False)), trace)
    return Failure("S3dlioError", f"{type(error).__name__}: {error}", False, trace)


def error_of(failure: Failure) -> errors.S3dlioError:
    """The exception a failure record stands for, with the worker's traceback as its cause text."""
    cls: type[errors.S3dlioError] = getattr(errors, failure.kind, errors.S3dlioError)
    if issubclass(cls, errors.StorageError):
        error: errors.S3dlioError = cls(failure.text, transient=failure.transient)
    else:
        error = cls(failure.text)
    error.__cause__ = WorkerTraceback(failure.trace)
    return error


class WorkerTraceback(Exception):
    """Carries the traceback of a worker as text."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"
