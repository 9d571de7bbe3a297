"""The answer to a ranged GET, straight into its place in shared memory, or piece by piece.

Owns the check of what the store says it sends and the loop over the socket; makes no request. ``s3`` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def fill(uri: str, body: Any, into: memoryview, etag: str, *, given: int = 0, length: int | None = None) -> None:
    """Read ``body`` to the end of ``into``; ``BrokenReadError``, with ``etag``, if the connection ends first.

    ``given`` of ``length`` bytes were read before.
    """
    reached = 0
    while reached < into.nbytes:
        why = ""
        try:
            with into[reached : reached + _SLICE] as piece:
                count = body.readinto(piece)
        except s3_errors.FAILURES as error:
            count, why = 0, f" ({type(error).__name__}: {error})"
        if not count:
            told = f"{given + reached} of {length or into.nbytes} bytes{why}"
            raise BrokenReadError(f"{uri}: the download ended after {told}", reached=given + reached, etag=etag)
        reached += count


def pieces(uri: str, body: Any, length: int, block: memoryview, etag: str) -> Iterator[memoryview]:
    """``length`` bytes of ``body`` in pieces that lie in ``block``; errors as of ``fill``, after what had arrived."""
    given = 0
    while given < length:
        piece = block[: length - given]
        try:
            fill(uri, body, piece, etag, given=given, length=length)
        except BrokenReadError as error:
            yield piece[: error.reached - given]
            raise
        given += piece.nbytes
        yield piece
