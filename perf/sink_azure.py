"""The calls of Azure Blob that a checkpoint store makes, answered from the sink's tables.

Owns paths, queries and XML of Azure. Echoes every checksum it was sent as a store would that verifies, but compares
only the CRC-64 of small bodies, by which a client finds out what it has before it. ``sink`` calls ``answer``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from xml.sax.saxutils import escape

from .sink_memory import Piece, contradicts
from .sink_store import ConditionError, Conditions, Store, Stored
from .sink_wire import Reply, Request

_KEPT = ("x-ms-meta-", "x-ms-access-tier")
_CRC = "x-ms-content-crc64"
_CHECKSUMS = ("content-md5", _CRC)


def is_data(request: Request) -> bool:
    """Whether the body is a blob's bytes."""
    return request.method == "PUT" and request.query.get("comp", "block") == "block" and "restype" not in request.query


def answer(store: Store, request: Request, piece: Piece | None, text: bytes) -> Reply:
    """What Azure would answer; ``piece`` is the body of data, ``text`` any other body."""
    comp = request.query.get("comp", "")
    checksum = request.checksum(_CRC)
    if piece is not None and contradicts(checksum and checksum[::-1], [piece]):  # Azure sends the lowest byte first
        return _error(400, "Crc64Mismatch")
    try:
        if request.query.get("restype") == "container":
            return _container(store, request, comp)
        if request.method in ("GET", "HEAD") and not comp:
            return _get(store, request)
        if request.method == "GET" and comp == "blocklist":
            return _blocks(store, request)
        if request.method == "PUT" and comp == "block" and piece is not None:
            store.add_block(request.path, request.query["blockid"], piece)
            return Reply(201, _checksums(request.headers))
        if request.method == "PUT" and comp == "blocklist":
            names = re.findall(r"<(?:Latest|Uncommitted)>(.*?)</", text.decode())
            stored = store.commit(request.path, names, Conditions.of(request.headers), _kept(request.headers))
            return Reply(201, _described(stored) | _checksums(request.headers))
        if request.method == "PUT" and piece is not None:
            stored = store.publish(request.path, [piece], Conditions.of(request.headers), _kept(request.headers))
            return Reply(201, _described(stored) | _checksums(request.headers))
        if request.method == "DELETE":
            return Reply(202) if store.delete(request.path) else _error(404, "BlobNotFound")
    except ConditionError as error:
        return _error(409, "BlobAlreadyExists") if error.exists else _error(412, "ConditionNotMet")
    except KeyError:
        return _error(400, "InvalidBlockList")
    return _error(501, "NotImplemented")


def _get(store: Store, request: Request) -> Reply:
    found = store.find(request.path, Conditions.of(request.headers))
    if found is None:
        return _error(404, "BlobNotFound")
    headers = {**_described(found), "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    asked = request.range(found.size)
    if asked is None:
        return Reply(200, headers, pieces=found.pieces, end=found.size)
    begin, end = asked
    if begin >= end:
        return _error(416, "InvalidRange", {"Content-Range": f"bytes */{found.size}"})
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{found.size}"
    return Reply(206, headers, pieces=found.pieces, begin=begin, end=end)


def _blocks(store: Store, request: Request) -> Reply:
    """Uncommitted blocks only: no client of the sink asks for those of a blob."""
    found = store.blocks(request.path)
    if not found and store.find(request.path) is None:
        return _error(404, "BlobNotFound")
    entries = [_fields([("Name", name), ("Size", str(size))]) for name, size in found.items()]
    blocks = "".join(f"<Block>{entry}</Block>" for entry in entries)
    return _xml("BlockList", f"<CommittedBlocks/><UncommittedBlocks>{blocks}</UncommittedBlocks>")


def _container(store: Store, request: Request, comp: str) -> Reply:
    if comp != "list":  # every container exists
        return Reply({"PUT": 201, "DELETE": 202}.get(request.method, 200), {"ETag": '"sink"'})
    root = f"{request.path}/"
    after = request.query.get("marker", "")
    most = int(request.query.get("maxresults", 5000))
    prefix = request.query.get("prefix", "")
    found, more = store.list(root + prefix, root + after if after else "", most)
    if "uncommittedblobs" in request.query.get("include", "") and not more:
        keys = store.uncommitted(root + prefix)
        found += [Stored(key, (), "uncommitted", 0.0) for key in keys]
    blobs = "".join(f"<Blob>{_listed(stored, root)}</Blob>" for stored in found)
    marker = found[-1].key.removeprefix(root) if more else ""
    # The SDK asks for the next page with the prefix that this one names.
    fields = _fields([("Prefix", prefix), ("NextMarker", marker)])
    return _xml("EnumerationResults", f"<Blobs>{blobs}</Blobs>{fields}")


def _listed(stored: Stored, root: str) -> str:
    properties = [
        ("Last-Modified", formatdate(stored.modified, usegmt=True)),
        ("Etag", f'"{stored.etag}"'),
        ("Content-Length", str(stored.size)),
        ("BlobType", "BlockBlob"),
    ]
    name = _fields([("Name", stored.key.removeprefix(root))])
    return f"{name}<Properties>{_fields(properties)}</Properties>"


def _described(stored: Stored) -> dict[str, str]:
    return {
        **stored.headers,
        "ETag": f'"{stored.etag}"',
        "Last-Modified": formatdate(stored.modified, usegmt=True),
        "x-ms-blob-type": "BlockBlob",
    }


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith(_KEPT)}


def _checksums(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name in _CHECKSUMS}


def _fields(fields: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields)


def _xml(name: str, inner: str) -> Reply:
    body = f'<?xml version="1.0" encoding="utf-8"?><{name}>{inner}</{name}>'
    return Reply(200, {"Content-Type": "application/xml"}, body.encode())


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Reply:
    body = f"<Error>{_fields([('Code', code), ('Message', 'The sink says so.')])}</Error>"
    return Reply(status, {"Content-Type": "application/xml", "x-ms-error-code": code, **(headers or {})}, body.encode())
