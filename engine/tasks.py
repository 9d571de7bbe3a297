"""What a worker does for each task: shared pages in, backend calls and codecs, shared pages out.

Owns the attached memories and the opened backends of one worker process; never talks to the parent (``worker`` does).
Lanes call ``run`` from several threads at once.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator

from . import codec
from .attached import Memories
from .backends import OBJECT_STORES, open_backend
from .backends.pace import Pace, place_of
from .checksum import crc32c
from .contract import Backend, Location, PartReceipt
from .errors import CorruptError, MemoryLimitError, PoolClosedError, S3dlioError
from .messages import (
    ARENA,
    Abort,
    Begin,
    Call,
    Complete,
    Encode,
    Encoded,
    Fetch,
    Inflate,
    Inflated,
    Populate,
    PutWhole,
    Span,
    Stored,
    StorePart,
    Task,
)
from .plan import BLOCK, block_size

_CALLS = frozenset({"put", "read", "head", "list_page", "delete", "uploads", "written", "abort"})
_REREADS = 2

_log = logging.getLogger("s3dlio.engine")


class TaskRunner:
    """Carries out tasks. ``opened`` uploads are those begun here and not yet known to be finished."""

    def __init__(self, memories: Memories, open_: Callable[[Location], Backend] | None = None) -> None:
        self._memories = memories
        self._open = open_ or self._open_paced
        self._backends: dict[Location, Backend] = {}
        self._lock = threading.Lock()
        self._scratch = threading.local()
        self.opened: dict[tuple[str, str], Backend] = {}
        self._beginning = 0  # uploads that lanes are opening now
        self._ending = False
        self._begun = threading.Condition()

    def run(self, task: Task) -> object:
        """Do one task and return its result record; raises errors of ``engine.errors`` and of the system."""
        match task:
            case StorePart():
                return self._store_part(task)
            case Encode():
                return self._encode(task)
            case Fetch():
                return self._fetch(task)
            case PutWhole():
                return self._put_whole(task)
            case Begin():
                return self._begin(task)
            case Complete():
                return self.backend(task.location).complete(task.key, task.upload, task.parts)
            case Abort():
                self.backend(task.location).abort(task.key, task.upload)
            case Call():
                return self._call(task)
            case Inflate():
                return self._inflate(task)
            case Populate():
                self._memories.allocate(task.span)
        return None

    def _open_paced(self, location: Location) -> Backend:
        return open_backend(location, pace=Pace(place_of(location, self._memories.pace())))

    def backend(self, location: Location) -> Backend:
        """The open backend of a location, one for the process."""
        with self._lock:
            backend = self._backends.get(location)
            if backend is None:
                backend = self._backends[location] = self._open(location)
            return backend

    def rest(self) -> None:
        """Give back the calling lane's buffers: it has had nothing to do for a while."""
        vars(self._scratch).clear()

    def abort_opened(self) -> None:
        """Drop the uploads begun here: the parent is gone. Best effort, since nobody is left to be told.

        None is opened any more; those that lanes are just opening, which may take long, are waited for at the end.
        """
        with self._begun:
            self._ending = True
        self._abort_known()
        with self._begun:
            self._begun.wait_for(lambda: not self._beginning)
        self._abort_known()

    def _abort_known(self) -> None:
        while self.opened:
            (key, upload), backend = self.opened.popitem()
            with contextlib.suppress(S3dlioError, OSError):
                backend.abort(key, upload)

    def _begin(self, task: Begin) -> str:
        backend = self.backend(task.location)
        with self._begun:
            if self._ending:
                raise PoolClosedError(f"{task.location.uri}: {task.key}: the worker is ending")
            self._beginning += 1
        try:
            upload = backend.begin(task.key, size=task.size)
            self.opened[task.key, upload] = backend
        finally:
            with self._begun:
                self._beginning -= 1
                self._begun.notify_all()
        return upload

    def _store_part(self, task: StorePart) -> Stored:
        started = time.perf_counter()
        views = [self._memories.view(span) for span in task.spans]
        crcs = tuple(map(crc32c, views)) if task.checksum else ()
        backend = self.backend(task.location)
        receipt = backend.put_part(task.key, task.upload, task.number, task.offset, views)
        return Stored(receipt, crcs, time.perf_counter() - started)

    def _put_whole(self, task: PutWhole) -> Stored:
        started = time.perf_counter()
        views = [self._memories.view(span) for span in task.spans]
        crcs = tuple(map(crc32c, views)) if task.checksum else ()
        info = self.backend(task.location).put(task.key, views)
        receipt = PartReceipt(1, 0, info.size, info.etag, verified=info.verified)
        return Stored(receipt, crcs, time.perf_counter() - started)

    def _encode(self, task: Encode) -> Encoded:
        started = time.perf_counter()
        raw = self._memories.view(task.source)
        crc = crc32c(raw)
        if task.target is None:
            return Encoded("none", len(raw), crc, time.perf_counter() - started)
        spec = codec.CodecSpec(task.codec, task.level, task.runs)
        result = codec.encode(spec, raw, self._memories.view(task.target))
        return Encoded(result.codec, result.length, crc, time.perf_counter() - started)

    def _fetch(self, task: Fetch) -> int:
        """Read and check; what is not right is read again, since it may be so on its way here only."""
        for _ in range(_REREADS):
            try:
                return self._fetch_once(task)
            except CorruptError as error:
                _log.warning("%s; reading it again", error)
        return self._fetch_once(task)

    def _fetch_once(self, task: Fetch) -> int:
        in_place = task.target is not None and task.target.memory == ARENA
        if task.codec == "none" and not in_place:
            return _checked(task, self._fetch_blocks(task))
        target = self._memories.view(task.target) if task.target and in_place else self._buffer("raw", task.raw)
        stored = target if task.codec == "none" else self._buffer("stored", task.stored)
        self.backend(task.location).get_range(task.key, task.offset, stored)
        if task.codec != "none":
            with _naming(task):
                codec.decode(task.codec, stored, target)
        crc = _checked(task, crc32c(target))
        if task.target is not None and not in_place:
            self._memories.write(task.target, target)
        return crc

    def _fetch_blocks(self, task: Fetch) -> int:
        """The checksum of raw bytes that land as they come; the last, which may be all, only once they are known right.

        A landing's pages are new. Written through the descriptor they cost half the CPU time of faults on a mapping
        (0.45 to 0.92 s/GiB), the copy included: the kernel need not clear what is about to be overwritten. Huge pages
        are no better: 0.9 s/GiB, and 3 where free memory is in small pieces.
        """
        size = block_size(task.raw, far=task.location.scheme in OBJECT_STORES)
        crc, done, backend = 0, 0, self.backend(task.location)
        for block in backend.stream_range(task.key, task.offset, task.raw, self._buffer("raw", max(1, size))):
            crc = crc32c(block, crc)
            if done + block.nbytes == task.raw:
                _checked(task, crc)
            if task.target is not None:
                place = Span(task.target.memory, task.target.offset + done, block.nbytes)
                self._memories.write(place, block)
            done += block.nbytes
        return crc

    def _buffer(self, name: str, length: int) -> memoryview:
        """A lane's own buffer of at least ``length`` bytes, kept for its next task until the lane rests.

        Of huge pages where the machine has them, and so not shared: 2 GiB came from a disk past its cache in 1.7 s
        instead of 2.2, for 0.28 s of CPU time outside the kernel instead of 0.45.
        """
        buffer: mmap.mmap | None = getattr(self._scratch, name, None)
        if buffer is None or len(buffer) < length:
            buffer = mmap.mmap(-1, max(length, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without huge pages
                buffer.madvise(mmap.MADV_HUGEPAGE)
            setattr(self._scratch, name, buffer)
        return memoryview(buffer)[:length]

    def _inflate(self, task: Inflate) -> Inflated:
        """Decode into the memory's descriptor block by block: the decoded size is known only at the end."""
        fd, raw, crc = self._memories.fd(task.memory), 0, 0
        stored = self.backend(task.location).stream_range(task.key, 0, task.stored, self._buffer("stored", BLOCK))
        with _naming(task):
            for block in codec.decode_stream(stored):
                if raw + len(block) > task.limit:
                    raise MemoryLimitError(
                        f"{task.location.uri}: {task.key} decodes to more than {task.limit} bytes, all that memory has "
                        "left"
                    )
                crc = crc32c(block, crc)
                os.pwrite(fd, block, raw)
                raw += len(block)
        return Inflated(raw, crc)

    def _call(self, task: Call) -> object:
        if task.method == "limits":
            return self.backend(task.location).limits
        if task.method not in _CALLS:
            raise AssertionError(f"{task.method} is no control operation")
        args = [[memoryview(part) for part in a] if isinstance(a, tuple) else a for a in task.args]  # put's segments
        result = getattr(self.backend(task.location), task.method)(*args, **dict(task.options))
        return list(result) if task.method == "uploads" else result


def _checked(task: Fetch, crc: int) -> int:
    """``crc``, or ``CorruptError`` if it should be another."""
    if task.crc is not None and crc != task.crc:
        raise CorruptError(
            f"{task.location.uri}: {task.key}: bytes {task.offset}..{task.offset + task.stored} do not match their "
            f"checksum (stored crc32c:{task.crc:08x}, found crc32c:{crc:08x}); load another checkpoint"
        )
    return crc


@contextlib.contextmanager
def _naming(task: Fetch | Inflate) -> Iterator[None]:
    """Bytes that do not decode are an error of the object that holds them."""
    try:
        yield
    except CorruptError as error:
        if task.key in str(error):
            raise
        raise CorruptError(f"{task.location.uri}: {task.key}: {error}; load another checkpoint") from error
