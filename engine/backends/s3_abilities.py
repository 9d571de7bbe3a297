"""What an S3 store really does with checksums and conditions: stores accept headers that they then ignore.

Owns the questions and the rules that turn answers into a way of working, for each endpoint and bucket; ``answers``
remembers. Amazon's own servers are known and not asked. ``s3`` asks before the first write that depends on it; whatever
fails for want of network or permission is raised and nothing is concluded.
"""

from __future__ import annotations

import base64
import functools
import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..contract import PROBE
from ..errors import PreconditionError, StorageError
from . import crc64, s3_client, s3_errors
from .answers import Question

Mode = Literal["full", "part", "md5", "none"]
"""How writes are verified.

``full``: CRC-64/NVME of each request and of the whole object. ``part``: of each request. ``md5``: Content-MD5 of each
request. ``none``: the store compares nothing.
"""

_MODES: tuple[Mode, ...] = ("full", "part", "md5", "none")
_BODY = b"s3dlio asks what this store verifies"
_OTHER_MD5 = base64.b64encode(bytes(16)).decode()
_OTHER_TAG = '"0123456789abcdef0123456789abcdef"'

_log = logging.getLogger("s3dlio.engine")


@dataclass(frozen=True, slots=True)
class ChecksumEvidence:
    """Answers about checksums; a question is asked only if those before it leave it open, else it stays ``False``.

    ``begun``: an upload with a whole-object CRC-64/NVME opens. ``wrong_part_refused``, ``right_part_echoed``: of the
    checksum of a part. ``wrong_whole_refused``, ``right_whole_taken``: of that of the object. ``parts_complete``:
    without the object's the upload is completed. ``wrong_md5_refused``: of Content-MD5.
    """

    begun: bool = False
    wrong_part_refused: bool = False
    right_part_echoed: bool = False
    wrong_whole_refused: bool = False
    right_whole_taken: bool = False
    parts_complete: bool = False
    wrong_md5_refused: bool = False


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which conditions of a PUT the store keeps: ``if_absent`` (If-None-Match: *) and ``if_match``."""

    if_absent: bool
    if_match: bool


def mode_of(found: ChecksumEvidence) -> Mode:
    """How to verify writes at a store that gave these answers."""
    if found.begun and found.wrong_part_refused and found.right_part_echoed:
        if found.wrong_whole_refused and found.right_whole_taken:
            return "full"
        if found.parts_complete:
            return "part"
    return "md5" if found.wrong_md5_refused else "none"


class Abilities:
    """What one store does, asked for when it is needed."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self._name = f"s3://{bucket} at {endpoint}"
        self._amazon = s3_client.is_amazon(endpoint)
        self._checksums = Question(f"checksums of {self._name}")
        self._kept = Question(f"conditions of {self._name}")

    def mode(self, probe: Callable[[], Probe]) -> Mode:
        """How writes are verified here; ``probe`` makes what asks the store the first time."""
        return "full" if self._amazon else _MODES[self._checksums.answer(lambda: self._ask_mode(probe()))]

    def conditions(self, probe: Callable[[], Probe]) -> Conditions:
        """Which conditions are kept here."""
        kept = 3 if self._amazon else self._kept.answer(lambda: self._ask_conditions(probe()))
        return Conditions(if_absent=bool(kept & 1), if_match=bool(kept & 2))

    def _ask_mode(self, probe: Probe) -> int:
        mode = mode_of(probe.checksums())
        if mode == "none":
            self._warn("verifies neither CRC-64/NVME nor MD5: damage on the way to it goes unnoticed")
        return _MODES.index(mode)

    def _ask_conditions(self, probe: Probe) -> int:
        found = probe.conditions()
        lacking = [
            name for name, kept in (("If-None-Match", found.if_absent), ("If-Match", found.if_match)) if not kept
        ]
        if lacking:
            self._warn(
                f"does not keep {' and '.join(lacking)}: two writers of one checkpoint at the same time may overwrite "
                "each other unnoticed"
            )
        return found.if_absent + 2 * found.if_match

    def _warn(self, text: str) -> None:
        _log.warning("%s %s", self._name, text, extra={"once": True})


_known: dict[tuple[str, str], Abilities] = {}
_known_lock = threading.Lock()


def of(endpoint: str, bucket: str) -> Abilities:
    """The abilities of a store, one object for the process."""
    with _known_lock:
        known = _known.get((endpoint, bucket))
        if known is None:
            known = _known[endpoint, bucket] = Abilities(endpoint, bucket)
        return known


def forget() -> None:
    """Ask every store again; for tests that put another store behind an endpoint."""
    with _known_lock:
        _known.clear()


class Probe:
    """The questions, put to a store by writing below ``prefix`` and deleting it again.

    ``common`` are the parameters of every request, ``stored`` those of what is stored. What a process that is killed
    here leaves is removed with other ``leftovers``.
    """

    def __init__(
        self, client: Any, bucket: str, prefix: str, common: Mapping[str, Any], stored: Mapping[str, Any]
    ) -> None:
        self._client = client
        self._at = {"Bucket": bucket, "Key": f"{prefix}{PROBE}{uuid.uuid4().hex[:16]}", **common}
        self._stored = stored
        self._left = False

    def checksums(self) -> ChecksumEvidence:
        """Ask about checksums."""
        try:
            found = self._crc()
            if mode_of(found) == "none":
                found = replace(found, wrong_md5_refused=self._put_refused(ContentMD5=_OTHER_MD5) == 400)
            return found
        finally:
            self._clean()

    def conditions(self) -> Conditions:
        """Ask about conditions."""
        try:
            tag = self._put()["ETag"]
            return Conditions(
                if_absent=self._put_refused(IfNoneMatch="*") == 412,
                if_match=self._put_refused(IfMatch=_OTHER_TAG) == 412 and not self._put_refused(IfMatch=tag),
            )
        finally:
            self._clean()

    def _crc(self) -> ChecksumEvidence:
        how = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        begun, refused = _ask(self._client.create_multipart_upload, **self._at, **self._stored, **how)
        if refused:
            return ChecksumEvidence()
        upload = s3_errors.whole(begun, "UploadId")["UploadId"]
        found = ChecksumEvidence()
        try:
            found = self._crc_of(upload)
            return found
        finally:
            if not found.parts_complete:
                self._drop(upload)

    def _crc_of(self, upload: str) -> ChecksumEvidence:
        right, wrong = crc64.big_endian(crc64.of([memoryview(_BODY)])), crc64.big_endian(0)
        of = {**self._at, "UploadId": upload}
        send = functools.partial(_ask, self._client.upload_part, **of, PartNumber=1, Body=_BODY)
        if not send(ChecksumCRC64NVME=wrong)[1]:
            return ChecksumEvidence(begun=True)
        stored, refused = send(ChecksumCRC64NVME=right)
        if refused or stored.get("ChecksumCRC64NVME") != right:
            return ChecksumEvidence(begun=True, wrong_part_refused=True)
        parts = [{"PartNumber": 1, "ETag": stored["ETag"], "ChecksumCRC64NVME": right}]
        make = functools.partial(self._client.complete_multipart_upload, **of, MultipartUpload={"Parts": parts})
        complete = functools.partial(_ask, self._storing, make)
        full = functools.partial(complete, ChecksumType="FULL_OBJECT", MpuObjectSize=len(_BODY))
        noticed = bool(full(ChecksumCRC64NVME=wrong)[1])
        taken = noticed and not full(ChecksumCRC64NVME=right)[1]
        return ChecksumEvidence(
            begun=True,
            wrong_part_refused=True,
            right_part_echoed=True,
            wrong_whole_refused=noticed,
            right_whole_taken=taken,
            parts_complete=taken or not noticed or not complete()[1],
        )

    def _put_refused(self, **headers: str) -> int:
        """The status by which the store refuses an object with ``headers``; 0 if it takes it."""
        return _ask(self._put, **headers)[1]

    def _put(self, **headers: str) -> dict[str, Any]:
        return self._storing(self._client.put_object, **self._at, **self._stored, Body=_BODY, **headers)

    def _storing(self, call: Callable[..., dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        """The answer; unless it is a refusal, or even if there is none, the object may be there."""
        before, self._left = self._left, True
        try:
            return call(**parameters)
        except s3_errors.FAILURES as error:
            if _is_refusal(error):
                self._left = before
            raise

    def _drop(self, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(**self._at, UploadId=upload)
        except s3_errors.FAILURES as error:
            _log.debug("the probe's upload is gone: %s", error)

    def _clean(self) -> None:
        if not self._left:
            return
        try:
            self._client.delete_object(**self._at)
        except s3_errors.FAILURES as error:
            _log.debug("the probe's object could not be deleted: %s", error)


def _ask(call: Callable[..., dict[str, Any]], *arguments: Any, **parameters: Any) -> tuple[dict[str, Any], int]:
    """The answer and 0, or nothing and the status by which the store refuses; all other failures are raised."""
    try:
        return call(*arguments, **parameters), 0
    except s3_errors.FAILURES as error:
        if not _is_refusal(error):
            raise
        return {}, s3_errors.status_of(error)


def _is_refusal(error: BaseException) -> bool:
    """Whether a store says that it does not take this request, and not that it cannot answer or may not."""
    if s3_errors.code_of(error) in (*s3_errors.DAMAGED, "NoSuchUpload"):  # a refused completion may end an upload
        return True
    fault = s3_errors.translate(error, "")
    return (
        s3_errors.status_of(error) > 0
        and type(fault) in (StorageError, PreconditionError)
        and not getattr(fault, "transient", False)
    )
