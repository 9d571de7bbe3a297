"""The answer to a ranged GET, straight into its place in shared memory.

Owns the check of what the store says it sends and the loop over the socket; makes no request. ``s3`` calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BrokenReadError, CorruptError, StorageError
from . import s3_errors

_SLICE = 1 << 20  # the SDK copies each piece once more: one this small is still in the cache then


def check(uri: str, offset: int, end: int, reply: Mapping[str, Any]) -> None:
    """That ``reply`` holds the bytes ``offset`` to ``end`` and no others; ``CorruptError`` if the object ends before.

    An answer without a range will do where it has the whole object and that was asked for.
    """
    length, told = reply.get("ContentLength"), str(reply.get("ContentRange") or "")
    if told.startswith(f"bytes {offset}-") and length is not None and length < end - offset:
        raise CorruptError(f"{uri} ends at {offset + length}, before byte {end}")
    right = told.startswith(f"bytes {offset}-{end - 1}/") or (not told and offset == 0)
    if length != end - offset or not right:
        raise StorageError(
            f"{uri}: asked for the bytes {offset}..{end}, the store answers with {length} bytes "
            f"({told or 'no Content-Range'}): it serves no ranges"
        )


def fill(uri: str, body: Any, into: memoryview, etag: str) -> None:
    """Read ``body`` to the end of ``into``; ``BrokenReadError``, with ``etag``, if the connection ends first."""
    reached = 0
    while reached < into.nbytes:
        try:
            with into[reached : reached + _SLICE] as piece:
                count = body.readinto(piece)
        except s3_errors.FAILURES as error:
            raise _broken(uri, reached, into, etag, f" ({type(error).__name__}: {error})") from error
        if not count:
            raise _broken(uri, reached, into, etag, "")
        reached += count


def _broken(uri: str, reached: int, into: memoryview, etag: str, why: str) -> BrokenReadError:
    text = f"{uri}: the download ended after {reached} of {into.nbytes} bytes{why}"
    return BrokenReadError(text, reached=reached, etag=etag)
