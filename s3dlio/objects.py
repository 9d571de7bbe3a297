"""Single objects by their URIs, under the published package's names: thin functions over the stores' operations.

Owns what a URI's user expects of each; the workers of the pool that ``pools.keep`` keeps do the rest. ``transfers``
moves files; the writers of one object are ``multipart_writer`` and ``object_writers``.

``options`` of each: those of ``CheckpointConfig`` for the object store. A URI with a slash at its end is a folder's:
all keys that begin so.
"""

from __future__ import annotations

import builtins
import ctypes
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from . import pools
from .content import buffer_of
from .engine.backends import OBJECT_STORES
from .engine.backends.oserrors import translated
from .engine.contract import ObjectInfo
from .engine.errors import ConfigError, CorruptError, NotFoundError, StorageError
from .engine.fetch import fetch_through_slots
from .engine.job import Coding, SaveJob
from .engine.messages import Fetch
from .engine.plan import MIB
from .engine.pool import Pool, PoolControl
from .engine.source import BufferSource, Source
from .object_uri import Place, split, split_object
from .payload import AnyPayload, EmptyPayload, InlinePayload
from .reader import ShardReader

SMALL = 1 * MIB
"""Bytes that travel in a message between this process and a worker; more go by shared memory."""
WHOLE = 16 * MIB
"""Bytes up to which an object is stored in one request."""

_UNTOLD = (
    "content_type content_language content_encoding cache_control content_disposition expires storage_class "
    "server_side_encryption ssekms_key_id sse_customer_algorithm version_id replication_status"
).split()
"""What the published package's ``stat`` may tell besides."""

Options = Mapping[str, Any] | None


def put_bytes(uri: str, data: Any, *, borrow: bool = True, options: Options = None) -> None:
    """Store the bytes of a buffer as one object, replacing what is there; it is durable when this returns.

    ``data`` is read in place, whatever ``borrow`` says. A failure leaves what was there before.
    """
    view = buffer_of(data)
    place = split_object(uri, options)
    pool = pools.keep()
    if len(view) <= SMALL:
        pool.control(place.location).put(place.key, [view])
    else:
        wait_for(start_storing(pool, place, BufferSource(view)))


def start_storing(pool: Pool, place: Place, source: Source) -> SaveJob:
    """Copy a source on its way to an object; its job goes on until the object is durable."""
    job = SaveJob(pool, place.location, place.key, total=source.total, coding=Coding(), whole_below=WHOLE)
    try:
        job.stage(source)
    except BaseException:
        job.future.exception()  # staging has cancelled it; once it has ended nobody publishes any more
        raise
    return job


def wait_for(job: SaveJob) -> None:
    """Until the object is durable; whoever is interrupted meanwhile gives it up."""
    try:
        job.future.result()
    except BaseException:
        job.cancel()
        job.future.exception()
        raise


def get(uri: str, *, options: Options = None) -> AnyPayload:
    """An object's bytes, bytes-like; a large one is read by many requests into one memory, and is not copied.

    Raises ``NotFoundError``, and ``StorageError`` for an object that is overwritten meanwhile.
    """
    place = split_object(uri, options)
    pool = pools.keep()
    control = pool.control(place.location)
    try:
        return InlinePayload(control.read(place.key, limit=SMALL)[0])
    except NotFoundError:
        raise
    except StorageError as error:
        before = control.head(place.key)
        if error.transient or before.size <= SMALL:
            raise
    return _unchanged(pool, place, before, 0, before.size)


def _unchanged(pool: Pool, place: Place, before: ObjectInfo, offset: int, length: int) -> AnyPayload:
    """Bytes of an object by several requests, all of the version ``before``."""
    found = ShardReader(pool, place.location).stored(place.key, offset, length)
    check_same(pool.control(place.location), before)
    return found


def check_same(control: PoolControl, before: ObjectInfo) -> None:
    """``StorageError`` if an object is not the version any more that was read in pieces."""
    after = control.head(before.key)
    if (after.etag, after.modified) != (before.etag, before.modified):
        raise StorageError(f"{before.key} was overwritten while it was read: read it again", transient=True)


def get_range(uri: str, offset: int, length: int | None = None, *, options: Options = None) -> AnyPayload:
    """``length`` bytes of an object from ``offset``, or all from there; fewer, or none, where the object ends before.

    Raises ``NotFoundError``.
    """
    for name, value in (("offset", offset), ("length", length)):
        if value is not None and (type(value) is not int or value < 0):
            raise ConfigError(f"{name} must be a number of bytes, not {value!r}")
    place = split_object(uri, options)
    pool = pools.keep()
    if length:
        try:
            return _range(pool, place, offset, length)
        except CorruptError:  # it may end before
            size = pool.control(place.location).head(place.key).size
            if offset + length <= size:
                raise
    else:
        size = pool.control(place.location).head(place.key).size
    rest = max(0, size - offset) if length is None else min(length, max(0, size - offset))
    return _range(pool, place, offset, rest) if rest else EmptyPayload()


def _range(pool: Pool, place: Place, offset: int, length: int) -> AnyPayload:
    if length > pool.arena.slot_size:  # several requests
        return _unchanged(pool, place, pool.control(place.location).head(place.key), offset, length)
    if length > SMALL:
        return ShardReader(pool, place.location).stored(place.key, offset, length)
    copied: builtins.list[bytes] = []
    task = Fetch(place.location, place.key, offset, length, "none", length, None, None)
    fetch_through_slots(pool, [(task, lambda address: copied.append(ctypes.string_at(address, length)))])
    return InlinePayload(copied[0])


def exists(uri: str, *, options: Options = None) -> bool:
    """Whether there is an object at ``uri``, or anything in the folder ``uri`` that a slash ends."""
    place = split(uri, options)
    control = pools.keep().control(place.location)
    if place.is_folder:
        return any(page.objects for page in control.pages(place.folder, limit=1))
    try:
        control.head(place.key)
    except NotFoundError:
        return False
    return True


def stat(uri: str, *, options: Options = None) -> dict[str, Any]:
    """``size`` in bytes, ``last_modified`` (RFC 3339) and ``etag`` of an object; ``NotFoundError``.

    The other names of the published package are there too, without a value: the stores are not asked for them.
    """
    place = split_object(uri, options)
    info = pools.keep().control(place.location).head(place.key)
    modified = datetime.fromtimestamp(info.modified, timezone.utc).isoformat().replace("+00:00", "Z")
    untold: dict[str, Any] = {**dict.fromkeys(_UNTOLD), "metadata": {}}
    return {"size": info.size, "last_modified": modified, "etag": info.etag, **untold}


def delete(uri: str, recursive: bool = False, *, options: Options = None) -> None:
    """Remove an object, or with ``recursive`` all in a folder too, whatever its name; what is absent is fine."""
    place = split(uri, options)
    local = place.location.scheme not in OBJECT_STORES
    folder = place.is_folder or (local and os.path.isdir(os.path.join(place.location.root, place.key)))
    if folder and not recursive:
        raise ConfigError(f"{uri!r} is a folder: pass recursive=True to delete all in it")
    control = pools.keep().control(place.location)
    if not recursive:
        control.delete(place.key)
        return
    for page in control.pages(place.folder):
        control.each(control.delete, [item.key for item in page.objects])
    if not place.is_folder:
        control.delete(place.key)
    if local:
        _remove_empty(os.path.join(place.location.root, place.folder))


def _remove_empty(folder: str) -> None:
    """Remove a tree of folders that hold no file; what holds one stays."""
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            continue  # not empty, or not ours to remove


def mkdir(uri: str, *, options: Options = None) -> None:
    """Make a folder and those above it; an object store has none to make: its folders begin with what lies in them."""
    place = split(uri, options)
    if place.location.scheme not in OBJECT_STORES:
        with translated(f"mkdir of {uri}"):
            os.makedirs(os.path.join(place.location.root, place.key), exist_ok=True)


def list(
    uri: str, recursive: bool = False, pattern: str | None = None, *, options: Options = None
) -> builtins.list[str]:
    """URIs of what lies in the folder ``uri``, sorted: its objects and, with a slash at their end, its folders.

    ``recursive``: the objects in those as well, and no folders, nor the empty objects by which some tools mark one.
    ``pattern``: a regular expression to be found in what follows the folder. A URI without a slash at its end also
    gives the object of that very name. An absent folder is empty.
    """
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}") from error
    place = split(uri, options)
    control = pools.keep().control(place.location)
    found: builtins.list[str] = []
    for page in control.pages(place.folder, shallow=not recursive):
        keys = [item.key for item in page.objects if not marks_folder(item)]
        names = [key[len(place.folder) :] for key in (*keys, *page.folders)]
        found += [place.base + place.folder + name for name in names if name and wanted.search(name)]
    found.sort()  # not every store lists in order
    if not place.is_folder and wanted.search(place.key.rpartition("/")[2]) and exists(uri, options=options):
        return [place.uri, *found]
    return found


def marks_folder(item: ObjectInfo) -> bool:
    """Whether an object holds nothing and stands for a folder: some tools make those, for stores that have none."""
    return not item.size and item.key.endswith("/")
