"""A ``Control`` in memory that can fail on cue, and small builders of records and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from s3dlio.commit import Committed, commit
from s3dlio.engine.checksum import crc32c, format_crc32c
from s3dlio.engine.contract import Control, ObjectInfo, Page, Segments, UploadInfo, check_key
from s3dlio.engine.errors import NotFoundError, PreconditionError, StorageError
from s3dlio.ids import CheckpointId, format_timestamp
from s3dlio.records import IndexRef, ShardRecord
from s3dlio.strategy import Strategy, index_key, shard_key

T0 = 1_795_466_022_000_000  # 2026-11-23T20:33:42Z

Hook = Callable[[str], None]


class FakeControl(Control):
    """Objects in a dict. ``before``/``after`` map an operation to a hook called with the key around its effect.

    ``sent``: when an upload last received bytes.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self.open: list[UploadInfo] = []
        self.sent: dict[str, float] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}
        self.modified = T0 / 1e6
        self._writes = 0

    def _enter(self, operation: str, key: str) -> None:
        self.calls.append((operation, key))
        self.before.get(operation, _nothing)(key)

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        check_key(key)
        self._enter("put", key)
        current = self.objects.get(key)
        if if_absent and current is not None:
            raise PreconditionError(f"{key} exists")
        if if_match is not None and (current is None or current[1].etag != if_match):
            raise PreconditionError(f"{key} is another version")
        info = self.store(key, b"".join(data))
        self.after.get("put", _nothing)(key)
        return info

    def store(self, key: str, data: bytes) -> ObjectInfo:
        """Put without being counted or hooked."""
        self._writes += 1
        info = ObjectInfo(key, len(data), f"v{self._writes}", self.modified)
        self.objects[key] = (data, info)
        return info

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        self._enter("read", key)
        data, info = self._get(key)
        if info.size > limit:
            raise StorageError(f"{key} is larger than {limit}")
        return data, info

    def head(self, key: str) -> ObjectInfo:
        self._enter("head", key)
        return self._get(key)[1]

    def _get(self, key: str) -> tuple[bytes, ObjectInfo]:
        if key not in self.objects:
            raise NotFoundError(f"{key} is not there")
        return self.objects[key]

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        assert not shallow
        self._enter("list", prefix)
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return Page.of(((key, self.objects[key][1]) for key in keys), limit or len(keys) + 1)

    def delete(self, key: str) -> None:
        self._enter("delete", key)
        self.objects.pop(key, None)
        self.after.get("delete", _nothing)(key)

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        yield from [item for item in self.open if item.key.startswith(prefix)]

    def written(self, key: str, upload: str) -> float:
        self._enter("written", key)
        return self.sent.get(upload, 0.0)

    def abort(self, key: str, upload: str) -> None:
        self._enter("abort", key)
        self.open = [item for item in self.open if (item.key, item.upload) != (key, upload)]

    def keys(self, prefix: str = "") -> set[str]:
        return {key for key in self.objects if key.startswith(prefix)}

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)


def _nothing(key: str) -> None:
    pass


def make_id(step: int, seconds: int = 0, suffix: str = "00c0ffee") -> CheckpointId:
    """The id of a save that started ``seconds`` after T0."""
    return CheckpointId(step, format_timestamp(T0 + seconds * 1_000_000, suffix))


def make_record(id_: CheckpointId, rank: int = 0, payload: bytes = b"payload", **changes: Any) -> ShardRecord:
    """The record of a flat shard of plain bytes; ``changes`` replace its fields."""
    record = ShardRecord(
        rank=rank,
        key=shard_key(Strategy.FLAT, id_, rank, changes.get("codec", "none")),
        size=len(payload),
        step=id_.step,
        epoch=1,
        timestamp=id_.timestamp,
        etag="e",
        checksum=format_crc32c(crc32c(payload)),
        raw_size=len(payload),
    )
    return replace(record, **changes)


def store_shards(
    control: FakeControl, id_: CheckpointId, world: int = 1, payload: bytes = b"payload"
) -> list[ShardRecord]:
    """Shards and indexes of every rank under one id, stored; their records."""
    records = []
    for rank in range(world):
        record = make_record(id_, rank, payload)
        index = IndexRef(index_key(record.key), 5, "crc32c:00000000")
        control.store(record.key, payload)
        control.store(index.key, b"index")
        records.append(replace(record, index=index))
    return records


def save(control: FakeControl, id_: CheckpointId, world: int = 1, **options: Any) -> Committed:
    """A whole checkpoint, committed."""
    records = store_shards(control, id_, world)
    return commit(control, records, step=id_.step, epoch=1, framework="torch", world_size=world, **options)
