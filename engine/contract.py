"""What a storage backend is: the one interface between the engine and every store.

Owns the records and protocols; holds no behaviour beyond small pure helpers. Backends (``engine/backends/``) implement
``Backend``; retry and trace wrap it; workers run it, and the parent reaches the ``Control`` half of it through them.

The contract, in prose:

* Synchronous and thread-safe: several lanes of one process share an instance. Concurrency is processes and lanes.
* Opened in each process from a picklable ``Location``; nothing is contacted before the first call.
* A key is relative, ``/``-separated, without empty, ``.`` or ``..`` components (``check_key``). What somebody else
  stored under another name is listed and can be deleted, no more.
* No reference to a buffer is kept after a method returns.
* Only errors of ``engine.errors`` leave a method; ``StorageError.transient`` says truthfully whether a retry may help.
* A key is whole or absent: listings and reads never show an object before its ``put`` or ``complete`` returned, and a
  failed write leaves what was stored under the key before.
* When ``put`` or ``complete`` returns, the bytes are durable: fsynced (the file and each new folder) or acknowledged.
* Storing the same part again with the same bytes, and completing or aborting again, are harmless: work is resent when a
  worker dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from .errors import ConfigError


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential on its way to the worker that needs it; no ``repr``, log or message shows ``value``."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return repr(self)


Option = str | int | float | bool | None | Secret
Segments = Sequence[memoryview]
"""Bytes of one part in order: contiguous ``B`` views, which together are the part."""
PROBE = ".s3dlio-probe-"
"""How the last component of keys begins under which a store is asked what it can do."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a store is, as any process can open it.

    ``scheme`` is one of ``backends.SCHEMES``; ``root`` is a folder, or where an object store has the scheme, bucket and
    prefix; ``options`` are sorted name-value pairs of the scheme, credentials among them as ``Secret``.
    """

    scheme: str
    root: str
    options: tuple[tuple[str, Option], ...] = ()

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.root}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store takes, in bytes; the planner obeys it.

    ``part_min`` bounds every part but the last from below, ``part_max`` and ``put_max`` from above; every part but the
    last ends at a multiple of ``alignment``.
    """

    part_min: int
    part_max: int
    parts_max: int
    put_max: int
    alignment: int = 1


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object: ``size`` in bytes, ``modified`` in seconds since the epoch, ``etag`` opaque.

    ``verified`` tells, in the answer to a write, by which checksum the store compared what it received with what was
    sent (``crc64nvme``, ``md5``); "" where it did not, and in all other answers.
    """

    key: str
    size: int
    etag: str
    modified: float
    verified: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a listing: ``folders`` end with a slash; ``next`` is what the page after it is asked by, "" if none.

    A page may be empty though others follow.
    """

    objects: tuple[ObjectInfo, ...] = ()
    folders: tuple[str, ...] = ()
    next: str = ""

    @classmethod
    def of(cls, entries: Iterable[tuple[str, ObjectInfo | None]], limit: int) -> Page:
        """The first ``limit`` of names in order, each with its object or, for a folder, ``None``."""
        taken = [*islice(entries, limit)]
        return cls(
            tuple(info for _, info in taken if info is not None),
            tuple(name for name, info in taken if info is None),
            taken[-1][0] if len(taken) == limit else "",
        )


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """An upload that was begun and neither completed nor aborted; ``started`` in seconds since the epoch."""

    key: str
    upload: str
    started: float


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """Proof of one stored part: its ``number`` (from 1), ``offset`` and ``size`` in the object, and the store's tag.

    ``crc64``: CRC-64/NVME of its bytes where the backend computed one; ``verified`` as in ``ObjectInfo``.
    """

    number: int
    offset: int
    size: int
    tag: str = ""
    crc64: int | None = None
    verified: str = ""


class Control(Protocol):
    """The small operations: what a commit, a listing or a delete needs."""

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        """Store a whole object; replace it only if the conditions allow.

        ``if_absent``: raise ``PreconditionError`` if the key exists. ``if_match``: raise it unless the key's etag is
        this one.
        """

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        """A whole small object and its info (of the same version); ``StorageError`` if larger than ``limit`` bytes."""

    def head(self, key: str) -> ObjectInfo:
        """Size and etag; ``NotFoundError`` if absent."""

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        """Some objects whose name begins with ``prefix``: the first, or those ``after`` the page with this ``next``.

        ``shallow``: what has a further slash is not listed, but once the folder it lies in; a file system tells empty
        folders too. ``limit``: entries at most; by default as many as the store gives at once. An absent prefix is
        empty, and nothing half-written is listed, nor what a store was asked with (``PROBE``) unless ``prefix`` names
        it. Names are in order, but for accounts of Azure with folders.
        """

    def pages(self, prefix: str = "", *, shallow: bool = False, limit: int | None = None) -> Iterator[Page]:
        """Every page of a listing, each asked for when its turn comes."""
        after = ""
        while True:
            page = self.list_page(prefix, shallow=shallow, after=after, limit=limit)
            yield page
            after = page.next
            if not after:
                return

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object of a listing."""
        for page in self.pages(prefix):
            yield from page.objects

    def delete(self, key: str) -> None:
        """Remove an object, by whatever name it was listed; absent is fine."""

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        """Open uploads below ``prefix``, so that orphans of a killed process can be found."""

    def written(self, key: str, upload: str) -> float:
        """When an open upload last received bytes, in seconds since the epoch; 0.0 if it has not, or nobody tells."""
        return 0.0

    def abort(self, key: str, upload: str) -> None:
        """Drop an open upload and its parts; unknown or finished is fine."""


class Backend(Control, Protocol):
    """A store: the small operations and the big bytes."""

    @property
    def limits(self) -> Limits: ...

    def begin(self, key: str, *, size: int | None = None) -> str:
        """Open an upload for ``key``; ``size`` is its final size where known. Returns the upload's name."""

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        """Store part ``number`` (from 1), the object's bytes from ``offset``; any order, any process."""

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        """Publish the object made of ``parts`` (by number, gapless); ``CorruptError`` if sizes disagree."""

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        """Fill ``into`` with the object's bytes from ``offset``; ``CorruptError`` if the object ends before.

        ``BrokenReadError`` if the connection ended first: the bytes that have arrived, and of which version they are.
        ``if_match``: ``PreconditionError`` unless the object's etag is this one.
        """

    def stream_range(
        self, key: str, offset: int, length: int, block: memoryview, *, if_match: str | None = None
    ) -> Iterator[memoryview]:
        """The object's ``length`` bytes from ``offset``, in pieces as they arrive; a store sends them in one answer.

        Each piece lies in ``block`` until the next is asked for. Errors are those of ``get_range``; before that of a
        broken connection, a store that streams gives what had arrived.
        """
        for start in range(0, max(1, length), block.nbytes):
            piece = block[: length - start]
            self.get_range(key, offset + start, piece, if_match=if_match)
            yield piece

    def close(self) -> None:
        """Release sockets and files; the instance is not used afterwards."""


def check_key(key: str) -> str:
    """Return ``key``; ``ConfigError`` if it could leave its root or is no key at all."""
    if not key or key.startswith("/") or "\\" in key or "\0" in key:
        raise ConfigError(f"{key!r} is not a key: it must be relative, without backslash or NUL")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ConfigError(f"{key!r} is not a key: it has an empty, '.' or '..' component")
    return key


def is_key(name: str) -> bool:
    """Whether ``check_key`` takes a name that was listed."""
    try:
        check_key(name)
    except ConfigError:
        return False
    return True
