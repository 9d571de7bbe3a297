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

from ..contract import Limits, Location, ObjectInfo, PartReceipt, Segments, UploadInfo, check_key
from ..errors import CorruptError, NotFoundError, StorageError
from . import crc64, s3_download, s3_errors, s3_multipart, s3_options
from .checks import check_part, check_parts, check_put, check_range, folder_of
from .s3_abilities import Mode
from .s3_bucket import Bucket, fine_if_absent

LIMITS = Limits(part_min=5 << 20, part_max=5 << 30, parts_max=10_000, put_max=5 << 30)
_VERIFIED: dict[Mode, str] = {"full": crc64.NAME, "part": crc64.NAME, "md5": "md5", "none": ""}


def open_location(location: Location) -> S3Backend:
    """The backend of an ``s3`` location; ``ConfigError`` for options that ``s3_options.parse`` would refuse."""
    return S3Backend(s3_options.read(location))


class S3Backend:
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

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder_of(prefix)
        bucket = self._bucket
        mark: dict[str, str] = {}
        while True:
            with bucket.telling("list", prefix):
                page = _whole(bucket.client.list_objects_v2(**bucket.below(prefix), **mark))
                infos = [
                    ObjectInfo(key, found["Size"], found["ETag"], _seconds(found["LastModified"]))
                    for found in page.get("Contents", ())
                    if (key := bucket.key_of(found["Key"])) is not None
                ]
                mark = {"ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else {}
            yield from infos
            if not mark:
                return

    def delete(self, key: str) -> None:
        check_key(key)
        with self._bucket.telling("delete", key), fine_if_absent():
            self._bucket.client.delete_object(**self._bucket.at(key))

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        folder_of(prefix)
        bucket = self._bucket
        mark: dict[str, str] = {}
        while True:
            with bucket.telling("uploads", prefix):
                # No EncodingType: LocalStack takes it, encodes what it is asked and not what it answers.
                page = _whole(bucket.client.list_multipart_uploads(**bucket.below(prefix), **mark))
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
            _whole(reply, "UploadId")
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
                    s3_multipart.compare(bucket.uri(key), parts, self._parts(key, upload))
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

    def get_range(self, key: str, offset: int, into: memoryview) -> None:
        check_range(key, offset, into)
        bucket, end = self._bucket, offset + into.nbytes
        with bucket.telling("get_range", key):
            if not into.nbytes:  # there is no range of no bytes
                self._check_end(key, end)
                return
            try:
                reply = bucket.client.get_object(**bucket.at(key), Range=f"bytes={offset}-{end - 1}")
            except s3_errors.FAILURES as error:
                if s3_errors.status_of(error) == 416:
                    self._check_end(key, end)
                raise
            with contextlib.closing(reply["Body"]) as body:
                s3_download.check(bucket.uri(key), offset, end, reply)
                s3_download.fill(bucket.uri(key), body, into)

    def close(self) -> None:
        self._bucket.close()

    def _parts(self, key: str, upload: str) -> dict[int, tuple[int, str]]:
        """The parts that an upload holds: size and tag by number."""
        stored: dict[int, tuple[int, str]] = {}
        mark: dict[str, int] = {}
        while True:
            page = _whole(self._bucket.client.list_parts(**self._bucket.at(key), UploadId=upload, **mark))
            stored |= {part["PartNumber"]: (part["Size"], part["ETag"]) for part in page.get("Parts", ())}
            if not page.get("IsTruncated"):
                return stored
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

    def _check_end(self, key: str, end: int) -> None:
        """``CorruptError`` if the object ends before ``end``."""
        size = self.head(key).size
        if size < end:
            raise CorruptError(f"{self._bucket.uri(key)} ends at {size}, before byte {end}")


def _whole(reply: dict[str, Any], always: str = "IsTruncated") -> dict[str, Any]:
    """``reply``, unless it was cut before its first byte: the SDK takes that for an answer without anything in it."""
    if always not in reply:
        raise StorageError("the store's answer has no body: it was cut on its way", transient=True)
    return reply


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
