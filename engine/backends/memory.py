"""The contract in memory: the reference that tests compare with, and a fake for everything above the engine.

Owns one dictionary of objects and one of open uploads per root, shared by all instances of a process (scheme
``memory``); never reaches another process. Options ``part_min, part_max, parts_max, put_max, alignment`` set its
limits, so that it can stand in for S3's.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..contract import Backend, Limits, Location, ObjectInfo, Page, PartReceipt, Segments, UploadInfo, check_key
from ..errors import ConfigError, CorruptError, NotFoundError, PreconditionError, StorageError
from .checks import check_part, check_parts, check_put, check_range, check_version, folder_of

LIMITS = Limits(part_min=1, part_max=1 << 30, parts_max=10_000, put_max=64 << 20)
PAGE = 1000
"""Entries of a page, unless fewer are asked for."""


@dataclass(slots=True)
class _Upload:
    info: UploadInfo
    parts: dict[int, tuple[PartReceipt, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class _Store:
    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[str, tuple[bytes, ObjectInfo]] = field(default_factory=dict)
    uploads: dict[str, _Upload] = field(default_factory=dict)
    finished: dict[str, ObjectInfo] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=itertools.count)

    def publish(self, key: str, body: bytes) -> ObjectInfo:
        """Replace the object; the caller holds the lock."""
        info = ObjectInfo(key, len(body), f"{next(self.names):x}", time.time())
        self.objects[key] = (body, info)
        return info


_stores: dict[str, _Store] = {}
_stores_lock = threading.Lock()


def open_location(location: Location) -> MemoryBackend:
    """The backend of a ``memory`` location; ``ConfigError`` for an option that is no limit."""
    known = set(Limits.__dataclass_fields__)
    changes: dict[str, int] = {}
    for name, value in location.options:
        if name not in known or not isinstance(value, int):
            raise ConfigError(f"memory:// has no option {name}={value!r}; it takes {', '.join(sorted(known))}")
        changes[name] = value
    return MemoryBackend(location.root, replace(LIMITS, **changes))


def forget(root: str) -> None:
    """Drop everything stored under ``root``."""
    with _stores_lock:
        _stores.pop(root, None)


class MemoryBackend(Backend):
    """``Backend`` over dictionaries; ``root`` names the store within this process."""

    def __init__(self, root: str, limits: Limits = LIMITS) -> None:
        self._limits = limits
        with _stores_lock:
            self._store = _stores.setdefault(root, _Store())

    @property
    def limits(self) -> Limits:
        return self._limits

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        check_put(self._limits, key, data, if_absent, if_match)
        body = b"".join(data)
        with self._store.lock:
            found = self._store.objects.get(key)
            if if_absent and found is not None:
                raise PreconditionError(f"{key} exists already")
            if if_match is not None and (found is None or found[1].etag != if_match):
                raise PreconditionError(f"{key} is not the version {if_match}: somebody else wrote or deleted it")
            return self._store.publish(key, body)

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        body, info = self._find(key)
        if info.size > limit:
            raise StorageError(f"{key} holds {info.size} bytes, more than the {limit} expected")
        return body, info

    def head(self, key: str) -> ObjectInfo:
        return self._find(key)[1]

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        folder_of(prefix)
        found: dict[str, ObjectInfo | None] = {}
        with self._store.lock:
            for key, (_, info) in self._store.objects.items():
                if key.startswith(prefix):
                    name, slash, _ = key[len(prefix) :].partition("/")
                    below = shallow and bool(slash)
                    found[prefix + name + slash if below else key] = None if below else info
        return Page.of(((name, found[name]) for name in sorted(found) if name > after), limit or PAGE)

    def delete(self, key: str) -> None:
        check_key(key)
        with self._store.lock:
            self._store.objects.pop(key, None)

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        folder_of(prefix)
        with self._store.lock:
            infos = [upload.info for upload in self._store.uploads.values() if upload.info.key.startswith(prefix)]
        return iter(sorted(infos, key=lambda info: (info.key, info.upload)))

    def abort(self, key: str, upload: str) -> None:
        check_key(key)
        with self._store.lock:
            found = self._store.uploads.get(upload)
            if found is not None and found.info.key == key:
                del self._store.uploads[upload]

    def begin(self, key: str, *, size: int | None = None) -> str:
        check_key(key)
        with self._store.lock:
            name = f"{next(self._store.names):x}"
            self._store.uploads[name] = _Upload(UploadInfo(key, name, time.time()))
        return name

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        size = check_part(self._limits, key, number, offset, data)
        body = b"".join(data)
        receipt = PartReceipt(number, offset, size, hashlib.blake2b(body, digest_size=8).hexdigest())
        with self._store.lock:
            self._upload(key, upload).parts[number] = (receipt, body)
        return receipt

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        check_parts(self._limits, key, parts)
        with self._store.lock:
            finished = self._store.finished.get(upload)
            if finished is not None and finished.key == key:
                return finished
            stored = self._upload(key, upload).parts
            for part in parts:
                if part.number not in stored or stored[part.number][0] != part:
                    raise CorruptError(f"{key}: part {part.number} is not what the upload {upload} holds")
            info = self._store.publish(key, b"".join(stored[part.number][1] for part in parts))
            self._store.finished[upload] = info
            del self._store.uploads[upload]
            return info

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        check_range(key, offset, into)
        body, info = self._find(key)
        check_version(key, info.etag, if_match)
        if offset + into.nbytes > info.size:
            raise CorruptError(f"{key} ends at {info.size}, before byte {offset + into.nbytes}")
        into[:] = memoryview(body)[offset : offset + into.nbytes]

    def close(self) -> None:
        """Nothing is held; the objects stay for other instances of this root until ``forget``."""

    def _find(self, key: str) -> tuple[bytes, ObjectInfo]:
        check_key(key)
        with self._store.lock:
            found = self._store.objects.get(key)
        if found is None:
            raise NotFoundError(f"{key} does not exist")
        return found

    def _upload(self, key: str, upload: str) -> _Upload:
        """The open upload; the caller holds the lock."""
        found = self._store.uploads.get(upload)
        if found is None or found.info.key != key:
            raise NotFoundError(f"{key} has no open upload {upload}")
        return found
