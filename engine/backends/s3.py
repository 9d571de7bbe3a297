"""Objects in S3 and in stores that speak its protocol, by boto3.

Owns the operations of the contract as S3's requests; each method makes one attempt (``retry`` repeats it). Bodies are
views of shared memory, verified by the store as well as it can (``s3_abilities``). Opened by ``open_backend``; workers
alone import it, since the SDK takes 0.3 s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

from ..contract import (
    Backend,
    Limits,
    Location,
    ObjectInfo,
    Page,
    PartReceipt,
    Segments,
    UploadInfo,
    check_key,
    is_key,
)
from ..errors import CorruptError, NotFoundError, StorageError
from . import crc64, s3_download, s3_errors, s3_multipart, s3_options
from .checks import check_listed, check_part, check_parts, check_put, check_range, check_version, folder_of, is_probe
from .s3_abilities import Mode
from .s3_bucket import Bucket, fine_if_absent

LIMITS = Limits(part_min=5 << 20, part_max=5 << 30, parts_max=10_000, put_max=5 << 30)
_VERIFIED: dict[Mode, str] = {"full": crc64.NAME, "part": crc64.NAME, "md5": "md5", "none": ""}


def open_location(location: Location) -> S3Backend:
    """The backend of an ``s3`` location; ``ConfigError`` for options that ``s3_options.parse`` would refuse."""
    return S3Backend(s3_options.read(location))


class S3Backend(Backend):
    """``Backend`` over one bucket and prefix."""

    def __init__(self, options: s3_options.S3Options) -> None:
        self._bucket = Bucket(options)

    @property
    def limits(self) -> Limits:
        return LIMITS

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        size = check_put(LIMITS, key, data, if_absent, if_match)
        bucket = self._bucket
        with bucket.telling("put", key):
            client, mode = bucket.client, bucket.mode()
            condition = bucket.condition(key, if_absent, if_match)
            try:
                reply, _ = bucket.send(client.put_object, key, data, mode, **bucket.stored, **condition)
            except s3_errors.FAILURES as error:
                deleted = if_match is not None and s3_errors.is_absent(error)
                if condition and (deleted or s3_errors.status_of(error) == 412):
                    raise bucket.lost(key, if_match) from error
                raise
            return ObjectInfo(key, size, reply["ETag"], _date_of(reply), _VERIFIED[mode])

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        check_key(key)
        bucket = self._bucket
        with bucket.telling("read", key):
            reply = bucket.client.get_object(**bucket.at(key), ChecksumMode="ENABLED")
            with contextlib.closing(reply["Body"]) as body:
                info = _info_of(key, reply)
                if info.size > limit:
                    raise StorageError(f"{bucket.uri(key)} holds {info.size} bytes, more than the {limit} expected")
                return body.read(), info

    def head(self, key: str) -> ObjectInfo:
        check_key(key)
        with self._bucket.telling("head", key):
            return _info_of(key, self._bucket.client.head_object(**self._bucket.at(key)))

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        folder_of(prefix)
        bucket, asked = self._bucket, is_probe(prefix)
        given = {"Delimiter": "/" if shallow else "", "ContinuationToken": after, "MaxKeys": limit}
        with bucket.telling("list", prefix):
            wanted = {name: value for name, value in given.items() if value}
            page = s3_errors.whole(bucket.client.list_objects_v2(**bucket.below(prefix), **wanted))
            objects = tuple(
                ObjectInfo(name, found["Size"], found["ETag"], _seconds(found["LastModified"]))
                for found in page.get("Contents", ())
                if (name := found["Key"][len(bucket.prefix) :]) and (asked or not is_probe(name))
            )
            folders = tuple(found["Prefix"][len(bucket.prefix) :] for found in page.get("CommonPrefixes", ()))
            return Page(objects, folders, page["NextContinuationToken"] if page.get("IsTruncated") else "")

    def delete(self, key: str) -> None:
        check_listed(key)
        bucket = self._bucket
        with bucket.telling("delete", key), fine_if_absent():
            if is_key(key):
                bucket.client.delete_object(**bucket.at(key))
            else:  # in a path a name such as "a/../b" may become another's, and "/" the bucket's
                self._delete_by_name(key)

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        folder_of(prefix)
        bucket = self._bucket
        mark: dict[str, str] = {}
        while True:
            with bucket.telling("uploads", prefix):
                # No EncodingType: LocalStack takes it, encodes what it is asked and not what it answers.
                page = s3_errors.whole(bucket.client.list_multipart_uploads(**bucket.below(prefix), **mark))
                infos = [
                    UploadInfo(key, found["UploadId"], found["Initiated"].timestamp())
                    for found in page.get("Uploads", ())
                    if (key := bucket.key_of(found["Key"])) is not None
                ]
                mark = {}
                if page.get("IsTruncated"):
                    mark = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
            yield from infos
            if not mark:
                return

    def written(self, key: str, upload: str) -> float:
        check_key(key)
        with self._bucket.telling("list the parts", key), fine_if_absent():
            return max((part["LastModified"].timestamp() for part in self._parts(key, upload)), default=0.0)
        return 0.0

    def abort(self, key: str, upload: str) -> None:
        check_key(key)
        with self._bucket.telling("abort", key), fine_if_absent():
            self._bucket.client.abort_multipart_upload(**self._bucket.at(key), UploadId=upload)

    def begin(self, key: str, *, size: int | None = None) -> str:
        check_key(key)
        bucket = self._bucket
        with bucket.telling("begin", key):
            checksum = s3_multipart.beginning(bucket.mode())
            reply = bucket.client.create_multipart_upload(**bucket.at(key), **bucket.stored, **checksum)
            s3_errors.whole(reply, "UploadId")
            return str(reply["UploadId"])

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        size = check_part(LIMITS, key, number, offset, data)
        bucket = self._bucket
        with bucket.telling(f"put_part {number}", key):
            client, mode = bucket.client, bucket.mode()
            reply, crc = bucket.send(client.upload_part, key, data, mode, UploadId=upload, PartNumber=number)
            return PartReceipt(number, offset, size, reply["ETag"], crc, _VERIFIED[mode])

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        size = check_parts(LIMITS, key, parts)
        bucket = self._bucket
        with bucket.telling("complete", key):
            client, mode = bucket.client, bucket.mode()
            parameters = s3_multipart.completion(parts, size, mode)
            try:
                if s3_multipart.needs_listing(parts, mode):
                    stored = {part["PartNumber"]: (part["Size"], part["ETag"]) for part in self._parts(key, upload)}
                    s3_multipart.compare(bucket.uri(key), parts, stored)
                reply = client.complete_multipart_upload(**bucket.at(key), UploadId=upload, **parameters)
            except s3_errors.FAILURES as error:
                if s3_errors.is_absent(error):
                    return self._settle(key, upload, parts, size)
                if s3_errors.code_of(error) in s3_errors.WRONG_PARTS:
                    raise CorruptError(
                        f"{bucket.uri(key)}: the store does not make an object of these parts: they are not what was "
                        f"sent ({error}); save again"
                    ) from error
                raise
            told, sent = reply.get("ChecksumCRC64NVME"), parameters.get("ChecksumCRC64NVME")
            if sent and told and told != sent:
                raise CorruptError(f"{bucket.uri(key)} was made with the checksum {told}, not {sent}; save again")
            if not reply.get("ETag"):  # not all stores tell
                return self._settle(key, upload, parts, size)
        return ObjectInfo(key, size, reply["ETag"], _date_of(reply), s3_multipart.verified(parts))

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        check_range(key, offset, into)
        if not into.nbytes:  # there is no range of no bytes
            with self._bucket.telling("get_range", key):
                self._check_end(key, offset, if_match)
            return
        with self._answer(key, offset, into.nbytes, if_match) as (body, etag):
            s3_download.fill(self._bucket.uri(key), body, into, etag)

    def stream_range(
        self, key: str, offset: int, length: int, block: memoryview, *, if_match: str | None = None
    ) -> Iterator[memoryview]:
        check_range(key, offset, block)
        if not length:
            self.get_range(key, offset, block[:0], if_match=if_match)
            return
        with self._answer(key, offset, length, if_match) as (body, etag):
            yield from s3_download.pieces(self._bucket.uri(key), body, length, block, etag)

    def close(self) -> None:
        self._bucket.close()

    @contextlib.contextmanager
    def _answer(self, key: str, offset: int, length: int, if_match: str | None) -> Iterator[tuple[Any, str]]:
        """The body that holds a range, and the etag of its object."""
        bucket, uri, end = self._bucket, self._bucket.uri(key), offset + length
        condition = {} if if_match is None else {"IfMatch": if_match}
        with bucket.telling("get_range", key):
            try:
                reply = bucket.client.get_object(**bucket.at(key), Range=f"bytes={offset}-{end - 1}", **condition)
            except s3_errors.FAILURES as error:
                if s3_errors.status_of(error) in (412, 416):
                    self._check_end(key, end, if_match)
                raise
            with contextlib.closing(reply["Body"]) as body:
                etag = reply.get("ETag", "")
                check_version(uri, etag, if_match)  # not all stores keep the condition
                s3_download.check(uri, offset, end, reply)
                yield body, etag

    def _delete_by_name(self, name: str) -> None:
        """Remove an object by a request whose body holds its name."""
        bucket = self._bucket
        doomed = {"Objects": [{"Key": bucket.prefix + name}], "Quiet": True}
        reply = bucket.client.delete_objects(Bucket=bucket.name, Delete=doomed, **bucket.common)
        for error in reply.get("Errors", ()):
            raise ClientError({"Error": error}, "DeleteObjects")

    def _parts(self, key: str, upload: str) -> Iterator[dict[str, Any]]:
        """The parts that an upload holds, as the store tells them."""
        mark: dict[str, int] = {}
        while True:
            page = s3_errors.whole(self._bucket.client.list_parts(**self._bucket.at(key), UploadId=upload, **mark))
            yield from page.get("Parts", ())
            if not page.get("IsTruncated"):
                return
            mark = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def _settle(self, key: str, upload: str, parts: Sequence[PartReceipt], size: int) -> ObjectInfo:
        """The object, if it is the one that ``parts`` make: then the upload was completed and the answer was lost."""
        unknown = f"{self._bucket.uri(key)} has no open upload {upload}"
        try:
            head = self._bucket.client.head_object(**self._bucket.at(key), ChecksumMode="ENABLED")
        except s3_errors.FAILURES as error:
            if not s3_errors.is_absent(error):
                raise
            raise NotFoundError(f"{unknown} and does not exist") from error
        if not s3_multipart.is_made_of(head, parts, size):
            raise NotFoundError(f"{unknown}, and what is stored under the key is something else")
        info = _info_of(key, head)
        return ObjectInfo(key, info.size, info.etag, info.modified, s3_multipart.verified(parts))

    def _check_end(self, key: str, end: int, if_match: str | None) -> None:
        """``PreconditionError`` if the object is another version, ``CorruptError`` if it ends before ``end``."""
        info = self.head(key)
        check_version(self._bucket.uri(key), info.etag, if_match)
        if info.size < end:
            raise CorruptError(f"{self._bucket.uri(key)} ends at {info.size}, before byte {end}")


def _info_of(key: str, reply: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(key, reply["ContentLength"], reply["ETag"], _seconds(reply["LastModified"]))


def _date_of(reply: dict[str, Any]) -> float:
    """When the store answered: what it noted as the object's time, which it does not say, is within seconds of that."""
    try:
        return parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return float(int(time.time()))


def _seconds(moment: Any) -> float:
    return float(int(moment.timestamp()))  # listings have fractions in some stores, answers to HEAD have none
