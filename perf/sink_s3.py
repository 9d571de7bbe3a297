"""The calls of S3 that a checkpoint store makes, answered from the sink's tables.

Owns paths, queries and XML of S3. Echoes every checksum it was sent as a store would that verifies, but compares only
those of small bodies, by which a client finds out what it has before it. ``sink`` calls ``answer``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from xml.sax.saxutils import escape

from .sink_memory import Piece, contradicts
from .sink_store import ChecksumError, ConditionError, Conditions, Store, Stored
from .sink_wire import Reply, Request

_CRC = "x-amz-checksum-crc64nvme"
_KEPT = ("x-amz-checksum-", "x-amz-meta-", "x-amz-server-side-encryption", "x-amz-storage-class")
_CHECKSUMS = {
    "x-amz-checksum-crc32": "ChecksumCRC32",
    "x-amz-checksum-crc32c": "ChecksumCRC32C",
    "x-amz-checksum-crc64nvme": "ChecksumCRC64NVME",
    "x-amz-checksum-sha256": "ChecksumSHA256",
    "x-amz-checksum-type": "ChecksumType",
}


def is_data(request: Request) -> bool:
    """Whether the body is an object's bytes."""
    return request.method == "PUT" and _is_object(request)


def answer(store: Store, request: Request, piece: Piece | None, text: bytes) -> Reply:
    """What S3 would answer; ``piece`` is the body of data, ``text`` any other body."""
    query = request.query
    try:
        if not _is_object(request):
            return _bucket(store, request)
        if request.method in ("GET", "HEAD") and not {"uploadId", "acl", "tagging"} & query.keys():
            return _get(store, request)
        if request.method == "PUT" and piece is not None:
            return _put(store, request, piece)
        if request.method == "POST" and "uploads" in query:
            upload = store.begin(request.path, _kept(request.headers))
            _, bucket, key = request.path.split("/", 2)
            fields = [("Bucket", bucket), ("Key", key), ("UploadId", upload.name)]
            return _xml("InitiateMultipartUploadResult", _fields(fields), _checksums(request.headers))
        if request.method == "POST" and "uploadId" in query:
            return _complete(store, request, text.decode())
        if request.method == "DELETE" and "uploadId" in query:
            found = store.abort(request.path, query["uploadId"])
            return Reply(204) if found else _error(404, "NoSuchUpload")
        if request.method == "DELETE":
            store.delete(request.path)
            return Reply(204)
        if request.method == "GET" and "uploadId" in query:
            return _parts(store, request)
    except ChecksumError:
        return _error(400, "BadDigest")
    except ConditionError:
        return _error(412, "PreconditionFailed")
    return _error(501, "NotImplemented")


def _is_object(request: Request) -> bool:
    return bool(request.path.lstrip("/").partition("/")[2])


def _get(store: Store, request: Request) -> Reply:
    found = store.find(request.path, Conditions.of(request.headers))
    if found is None:
        return _error(404, "NoSuchKey")
    headers = {**_described(found), "Accept-Ranges": "bytes"}
    if "x-amz-checksum-mode" not in request.headers or "range" in request.headers:
        headers = {name: value for name, value in headers.items() if not name.startswith("x-amz-checksum")}
    asked = request.range(found.size)
    if asked is None:
        return Reply(200, headers, pieces=found.pieces, end=found.size)
    begin, end = asked
    if begin >= end:
        return _error(416, "InvalidRange")
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{found.size}"
    return Reply(206, headers, pieces=found.pieces, begin=begin, end=end)


def _put(store: Store, request: Request, piece: Piece) -> Reply:
    if contradicts(request.checksum(_CRC), [piece]):
        raise ChecksumError
    if "uploadId" not in request.query:
        stored = store.publish(request.path, [piece], Conditions.of(request.headers), _kept(request.headers))
        return Reply(200, {"ETag": f'"{stored.etag}"', **_checksums(request.headers)})
    number = int(request.query["partNumber"])
    if not store.add_part(request.path, request.query["uploadId"], number, piece):
        return _error(404, "NoSuchUpload")
    return Reply(200, {"ETag": _part_tag(number), **_checksums(request.headers)})


def _complete(store: Store, request: Request, text: str) -> Reply:
    numbers = [int(number) for number in re.findall(r"<PartNumber>(\d+)</PartNumber>", text)]
    conditions = Conditions.of(request.headers)
    checksums = _checksums(request.headers)
    try:
        upload = request.query["uploadId"]
        stored = store.complete(request.path, upload, numbers, conditions, checksums, request.checksum(_CRC))
    except KeyError:
        return _error(400, "InvalidPart")
    if stored is None:
        return _error(404, "NoSuchUpload")
    fields = [("ETag", f'"{stored.etag}"')]
    fields += [(_CHECKSUMS[name], value) for name, value in checksums.items() if name in _CHECKSUMS]
    return _xml("CompleteMultipartUploadResult", _fields(fields), checksums)


def _parts(store: Store, request: Request) -> Reply:
    """All in one page."""
    sizes = store.parts(request.path, request.query["uploadId"])
    if sizes is None:
        return _error(404, "NoSuchUpload")
    entries = [
        _fields([("PartNumber", str(number)), ("Size", str(size)), ("ETag", _part_tag(number))])
        for number, size in sizes.items()
    ]
    return _xml("ListPartsResult", "".join(f"<Part>{entry}</Part>" for entry in entries))


def _part_tag(number: int) -> str:
    return f'"{number:032x}"'


def _bucket(store: Store, request: Request) -> Reply:
    bucket = request.path.strip("/")
    if request.method == "GET" and "uploads" in request.query:
        return _uploads(store, bucket, request.query)
    if request.method == "GET" and "list-type" in request.query:
        return _objects(store, bucket, request.query)
    # Every bucket exists.
    return Reply(200) if request.method in ("PUT", "HEAD") else _error(501, "NotImplemented")


def _objects(store: Store, bucket: str, query: Mapping[str, str]) -> Reply:
    root = f"/{bucket}/"
    after = query.get("continuation-token") or query.get("start-after") or ""
    most = int(query.get("max-keys", 1000))
    found, more = store.list(root + query.get("prefix", ""), root + after if after else "", most)
    fields = [("Name", bucket), ("KeyCount", str(len(found))), ("IsTruncated", str(more).lower())]
    if more:
        fields.append(("NextContinuationToken", found[-1].key.removeprefix(root)))
    contents = [
        _fields(
            [
                ("Key", stored.key.removeprefix(root)),
                ("Size", str(stored.size)),
                ("ETag", f'"{stored.etag}"'),
                ("LastModified", _iso(stored.modified)),
            ]
        )
        for stored in found
    ]
    return _xml("ListBucketResult", _fields(fields) + "".join(f"<Contents>{entry}</Contents>" for entry in contents))


def _uploads(store: Store, bucket: str, query: Mapping[str, str]) -> Reply:
    """All in one page."""
    root = f"/{bucket}/"
    entries = [
        _fields(
            [("Key", upload.key.removeprefix(root)), ("UploadId", upload.name), ("Initiated", _iso(upload.started))]
        )
        for upload in store.uploads(root + query.get("prefix", ""))
    ]
    body = _fields([("Bucket", bucket), ("IsTruncated", "false")])
    return _xml("ListMultipartUploadsResult", body + "".join(f"<Upload>{entry}</Upload>" for entry in entries))


def _described(stored: Stored) -> dict[str, str]:
    return {
        **stored.headers,
        "Content-Type": "application/octet-stream",
        "ETag": f'"{stored.etag}"',
        "Last-Modified": formatdate(stored.modified, usegmt=True),
    }


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith(_KEPT)}


def _checksums(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("x-amz-checksum-")}


def _fields(fields: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields)


def _xml(name: str, inner: str, headers: Mapping[str, str] | None = None) -> Reply:
    body = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inner}</{name}>'
    return Reply(200, {"Content-Type": "application/xml", **(headers or {})}, body.encode())


def _error(status: int, code: str) -> Reply:
    body = f"<Error>{_fields([('Code', code), ('Message', 'The sink says so.')])}</Error>"
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))
