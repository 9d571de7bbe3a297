"""Reading one shard: whole into new memory, in parts into memory that exists, or for the checks alone.

Owns the way from a shard record to verified raw bytes; knows nothing of trees. ``restoring`` and ``bytes_level`` use
it. Every byte read is checked: each chunk in the worker that fetched it, the whole by combining; a foreign shard
without checksums is checked for its size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TypeVar

from .engine.backends import OBJECT_STORES
from .engine.checksum import combine_all_crc32c, format_crc32c
from .engine.contract import Location
from .engine.errors import CancelledError, CorruptError, MemoryLimitError, S3dlioError, StorageError
from .engine.fetch import FetchJob, fetch_through_slots
from .engine.landing import Landing
from .engine.messages import Fetch, Inflate, Inflated, Span
from .engine.plan import MIB, block_size
from .engine.pool import Pool
from .engine.source import buffer_address
from .index import Chunk, ShardIndex, open_index
from .payload import AnyPayload, EmptyPayload, Payload
from .records import ShardRecord

_INLINE_INDEX = 1 * MIB
_MARGIN = 64 * MIB
"""Bytes that stay free beyond those of a load, or as many as it takes where that is less: all processes grow a little
meanwhile, and taking more than a control group has is a SIGKILL, not an errno."""

OnBytes = Callable[[int], None]
"""Called with the number of raw bytes that have just been read and checked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Raw bytes [start, stop) of a shard; ``copy_from(address, start, stop)``, relative to ``start``, takes them."""

    start: int
    stop: int
    copy_from: Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk of a shard without an index: CRC-32C unknown."""

    raw_offset: int
    raw_size: int
    stored_offset: int
    stored_size: int
    codec: str = "none"
    crc32c: int | None = None


class ShardReader:
    """Reads shards of one store through a pool."""

    def __init__(self, pool: Pool, location: Location) -> None:
        self._pool = pool
        self._location = location

    def index(self, record: ShardRecord) -> ShardIndex | None:
        """The shard's index, checked; ``None`` for a shard of the published package."""
        if record.index is None:
            return None
        if record.index.size > _INLINE_INDEX:
            return open_index(memoryview(self.stored(record.index.key, 0, record.index.size)), record)
        control = self._pool.control(self._location)
        try:
            data, _ = control.read(record.index.key, limit=record.index.size)
        except StorageError as error:
            if error.transient or control.head(record.index.key).size <= record.index.size:
                raise
            raise CorruptError(f"{record.index.key} is larger than the {record.index.size} bytes saved") from error
        return open_index(data, record)

    def whole(self, record: ShardRecord, index: ShardIndex | None, on_bytes: OnBytes | None = None) -> AnyPayload:
        """All raw bytes in new memory."""
        if index is None and record.codec == "zstd":
            return self._inflate(record)
        size = index.raw_size if index is not None else record.size
        if size == 0:
            return self._check_empty(record)
        chunks = self._chunks(record, index)

        self.ask_memory(record.key, size, self._buffers(chunks))
        with Landing(self._pool, [chunk.raw_offset for chunk in chunks], size) as landing:
            self._fetch(record, chunks, lambda chunk: landing.span(chunk.raw_offset, chunk.raw_size), on_bytes)
            return Payload(landing.files)

    def pieces(self, record: ShardRecord, index: ShardIndex, wanted: Iterable[Wanted]) -> None:
        """Read the chunks that hold the wanted bytes, each once, and hand the bytes over."""
        jobs = _by_chunk(index, sorted(wanted, key=lambda each: each.start))
        largest = max((chunk.raw_size for chunk, _ in jobs), default=0)
        if largest > self._pool.arena.slot_size:  # saved with larger chunks than this pool's: by way of landings
            for batch in batches(jobs, lambda job: job[0].raw_size, self._pool.arena.size):
                self._land_pieces(record, batch)
            return
        fetch_through_slots(
            self._pool,
            [(self._task(record, chunk, None), partial(_hand_over, chunk, takers)) for chunk, takers in jobs],
        )

    def verify(self, record: ShardRecord, on_bytes: OnBytes | None = None) -> int:
        """Read and check every byte, keeping none, and that there are no more; raw bytes checked."""
        index = self.index(record)
        self._check_size(record)
        if index is None and record.codec == "zstd":
            return len(self._inflate(record))
        if index is not None and not len(index.chunks):
            return 0
        chunks = self._chunks(record, index)
        self.ask_memory(record.key, 0, self._buffers(chunks))
        self._fetch(record, chunks, lambda _: None, on_bytes)
        return sum(chunk.raw_size for chunk in chunks)

    def stored(self, key: str, start: int, size: int) -> Payload:
        """``size`` (> 0) bytes of any object from ``start`` in new memory, as they are stored and unverified."""
        step = self._pool.arena.slot_size
        self.ask_memory(key, size, min(size, self._block(step) * self._pool.width(self._location)))
        places = range(0, size, step)
        with Landing(self._pool, places, size) as landing:
            tasks = []
            for at in places:
                length = min(step, size - at)
                target = landing.span(at, length)
                tasks.append(Fetch(self._location, key, start + at, length, "none", length, None, target))
            self._run(key, FetchJob(self._pool, tasks))
            return Payload(landing.files)

    def ask_memory(self, name: str, size: int, buffers: int = 0) -> None:
        """``MemoryLimitError`` unless there are ``size`` bytes for what is read and ``buffers`` for the workers."""
        taken = size + buffers
        needed = taken + min(taken, _MARGIN)
        room = self._pool.make_room(needed)
        if needed > room:
            instead = ", or load with names= or into=" if size else ""
            raise MemoryLimitError(f"{name} needs {needed} bytes of memory, {room} are left: free memory{instead}")

    # parts of the above

    def _land_pieces(self, record: ShardRecord, jobs: _Jobs) -> None:
        """Bring chunks into new memory, end to end, and hand them over."""
        places = list(accumulate((chunk.raw_size for chunk, _ in jobs), initial=0))
        self.ask_memory(record.key, places[-1], self._buffers([chunk for chunk, _ in jobs]))
        with Landing(self._pool, places[:-1], places[-1]) as landing:
            tasks = [
                self._task(record, chunk, landing.span(at, chunk.raw_size))
                for (chunk, _), at in zip(jobs, places, strict=False)
            ]
            self._run(record.key, FetchJob(self._pool, tasks))
            landed = Payload(landing.files)
        base = buffer_address(memoryview(landed))
        for (chunk, takers), at in zip(jobs, places, strict=False):
            _hand_over(chunk, takers, base + at)

    def _chunks(self, record: ShardRecord, index: ShardIndex | None) -> Sequence[Chunk | _Chunk]:
        if index is not None:
            return index.chunks
        self._check_size(record)  # the size is all that is known of it, and a hostile one must not be believed
        step = self._pool.arena.slot_size
        starts = range(0, record.size, step)
        return [_Chunk(at, min(step, record.size - at), at, min(step, record.size - at)) for at in starts]

    def _task(self, record: ShardRecord, chunk: Chunk | _Chunk, target: Span | None) -> Fetch:
        return Fetch(
            self._location,
            record.key,
            chunk.stored_offset,
            chunk.stored_size,
            chunk.codec,
            chunk.raw_size,
            chunk.crc32c,
            target,
        )

    def _fetch(
        self,
        record: ShardRecord,
        chunks: Sequence[Chunk | _Chunk],
        target: Callable[[Chunk | _Chunk], Span | None],
        on_bytes: OnBytes | None,
    ) -> None:
        tasks = [self._task(record, chunk, target(chunk)) for chunk in chunks]
        crcs = self._run(record.key, FetchJob(self._pool, tasks, on_bytes))
        self._check_checksum(record, combine_all_crc32c(zip(crcs, (chunk.raw_size for chunk in chunks), strict=True)))

    def _run(self, key: str, job: FetchJob) -> list[int]:
        """CRC-32Cs of the chunks, once nobody writes to their targets any more."""
        try:
            return job.future.result()
        except S3dlioError:
            raise
        except BaseException:  # KeyboardInterrupt: the targets are about to go
            job.cancel(CancelledError(f"the load of {key} was given up"))
            job.future.exception()
            raise

    def _buffers(self, chunks: Sequence[Chunk | _Chunk]) -> int:
        """Most bytes that the workers' own buffers hold: for each task a block, or a chunk both encoded and raw."""
        each = (
            self._block(chunk.raw_size) if chunk.codec == "none" else chunk.raw_size + chunk.stored_size
            for chunk in chunks
        )
        return max(each, default=0) * min(self._pool.width(self._location), len(chunks))

    def _block(self, size: int) -> int:
        return block_size(size, far=self._location.scheme in OBJECT_STORES)

    def _inflate(self, record: ShardRecord) -> AnyPayload:
        """A zstd stream without an index: its decoded size is known only once it is decoded."""
        with Landing(self._pool, [0], 0) as landing:
            room = self._pool.make_room(record.size)
            limit = room - min(room // 2, _MARGIN)
            memory = landing.span(0, 0).memory
            future = self._pool.run(Inflate(self._location, record.key, record.size, memory, limit))
            try:
                result = future.result()
            except BaseException:
                future.exception()  # after a KeyboardInterrupt: a worker still writes to the memory
                raise
            assert isinstance(result, Inflated)
            self._check_checksum(record, result.crc)
            ((fd, _),) = landing.files
            return Payload([(fd, result.raw)]) if result.raw else EmptyPayload()

    def _check_checksum(self, record: ShardRecord, crc: int) -> None:
        found = format_crc32c(crc)
        if record.checksum is not None and found != record.checksum:
            raise CorruptError(
                f"{self._location.uri}: {record.key} does not match its checksum (recorded {record.checksum}, "
                f"found {found}); load another checkpoint"
            )

    def _check_empty(self, record: ShardRecord) -> EmptyPayload:
        self._check_size(record)
        return EmptyPayload()

    def _check_size(self, record: ShardRecord) -> None:
        info = self._pool.control(self._location).head(record.key)
        if info.size != record.size:
            raise CorruptError(f"{self._location.uri}: {record.key} has {info.size} bytes instead of {record.size}")


_T = TypeVar("_T")
_Takers = list[tuple[Wanted, int, int]]
_Jobs = list[tuple[Chunk, _Takers]]


def batches(items: Iterable[_T], nbytes: Callable[[_T], int], most: int) -> Iterator[list[_T]]:
    """Items in batches of at most ``most`` bytes together, of at least one item each."""
    batch: list[_T] = []
    held = 0
    for item in items:
        size = nbytes(item)
        if batch and held + size > most:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size
    if batch:
        yield batch


def _by_chunk(index: ShardIndex, wanted: list[Wanted]) -> _Jobs:
    """Each chunk that holds wanted bytes, with who takes which of the shard's bytes [start, stop) from it."""
    jobs: dict[int, _Takers] = {}
    for each in wanted:
        for number in index.chunks.covering(each.start, each.stop):
            chunk = index.chunks[number]
            start = max(each.start, chunk.raw_offset)
            stop = min(each.stop, chunk.raw_offset + chunk.raw_size)
            jobs.setdefault(number, []).append((each, start, stop))
    return [(index.chunks[number], takers) for number, takers in sorted(jobs.items())]


def _hand_over(chunk: Chunk, takers: _Takers, address: int) -> None:
    for each, start, stop in takers:
        each.copy_from(address + start - chunk.raw_offset, start - each.start, stop - each.start)


def copy_to_memory(base: int) -> Callable[[int, int, int], None]:
    """A taker that lands bytes in memory at ``base``."""

    def take(address: int, start: int, stop: int) -> None:
        ctypes.memmove(base + start, address, stop - start)

    return take
