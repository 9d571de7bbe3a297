"""One bucket and prefix of an S3 store: the client, the names of keys, bodies with their checksums, failures told.

Owns what all requests of ``s3`` have in common and no operation of the contract. The client is made with the first
request, never before.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..contract import Segments, is_key
from ..errors import PreconditionError, S3dlioError, StorageError
from . import crc64, s3_abilities, s3_client, s3_errors
from .body import PIECE, SegmentsBody
from .s3_abilities import Mode
from .s3_options import S3Options

_SMALL = 64 << 10
"""Up to this many bytes are copied: for a body that is a file the SDK first asks whether it may send it."""


class Bucket:
    """Where the requests of one store go. ``stored`` are the parameters of every request that stores an object."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self.name = options.bucket
        self.prefix = f"{options.prefix}/" if options.prefix else ""
        self.common = {"RequestPayer": "requester"} if options.requester_pays else {}
        self._encrypted, self.stored = _stored_with(options)
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The client, made now if this is the first request."""
        with self._lock:
            if self._client is None:
                self._client = s3_client.make(self._options)
            return self._client

    def close(self) -> None:
        """Close the client's connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    # Names

    def at(self, key: str) -> dict[str, str]:
        """The parameters that every request for one key has."""
        return {"Bucket": self.name, "Key": self.prefix + key, **self.common}

    def below(self, prefix: str) -> dict[str, str]:
        """The parameters that every listing has."""
        return {"Bucket": self.name, "Prefix": self.prefix + prefix, **self.common}

    def key_of(self, name: str) -> str | None:
        """The key of an object's name; ``None`` for what is none, such as a folder marker."""
        key = name[len(self.prefix) :]
        return key if is_key(key) else None

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{self.prefix}{key}"

    # What the store can do

    def mode(self) -> Mode:
        """How the store verifies what it is sent; asks it before the first write."""
        return self._abilities().mode(self._probe)

    def condition(self, key: str, if_absent: bool, if_match: str | None) -> dict[str, str]:
        """The headers of a conditional PUT; where the store ignores them, the next best: ``key`` is looked at before.

        Raises ``PreconditionError`` if it is seen not to hold.
        """
        if not if_absent and if_match is None:
            return {}
        kept = self._abilities().conditions(self._probe)
        if if_match is None and kept.if_absent:
            return {"IfNoneMatch": "*"}
        if if_match is not None and kept.if_match:
            return {"IfMatch": if_match}
        try:
            found = self.client.head_object(**self.at(key))["ETag"]
        except s3_errors.FAILURES as error:
            if s3_errors.status_of(error) != 404:
                raise
            found = None
        if found != if_match:
            raise self.lost(key, if_match)
        return {}

    def lost(self, key: str, if_match: str | None) -> PreconditionError:
        """That a condition of ``put`` does not hold."""
        if if_match is None:
            return PreconditionError(f"{self.uri(key)} exists already")
        return PreconditionError(f"{self.uri(key)} is not the version {if_match}: somebody else wrote or deleted it")

    def _abilities(self) -> s3_abilities.Abilities:
        return s3_abilities.of(s3_client.endpoint_of(self.client), self.name)

    def _probe(self) -> s3_abilities.Probe:
        return s3_abilities.Probe(self.client, self.name, self.prefix, self.common, self._encrypted)

    # Requests

    def send(
        self, call: Callable[..., dict[str, Any]], key: str, data: Segments, mode: Mode, **parameters: Any
    ) -> tuple[dict[str, Any], int | None]:
        """Send ``data`` as a body with its checksum: the answer, and the CRC-64/NVME where the store compared it."""
        crc, sent = None, None
        if mode in ("full", "part"):
            crc = crc64.of(data)
            parameters["ChecksumCRC64NVME"] = sent = crc64.big_endian(crc)
        elif mode == "md5":
            parameters["ContentMD5"] = _md5(data)
        with SegmentsBody(data, least=PIECE) as body:
            reply = call(**self.at(key), Body=body if len(body) > _SMALL else body.read(), **parameters)
        told = reply.get("ChecksumCRC64NVME")
        if sent is not None and told != sent:
            raise StorageError(f"{self.uri(key)}: sent with the checksum {sent}, stored with {told}", transient=True)
        return reply, crc

    @contextlib.contextmanager
    def telling(self, operation: str, key: str) -> Iterator[None]:
        """Failures of the SDK as errors of this package that name ``operation`` and ``key``."""
        try:
            yield
        except S3dlioError:  # some are an OSError, too
            raise
        except s3_errors.FAILURES as error:
            raise s3_errors.translate(error, f"{operation} of {self.uri(key)}") from error
        except KeyError as error:
            raise StorageError(f"{operation} of {self.uri(key)}: the store's answer lacks {error}") from error


@contextlib.contextmanager
def fine_if_absent() -> Iterator[None]:
    """What does not exist need not be removed; a bucket that does not exist is told all the same."""
    try:
        yield
    except s3_errors.FAILURES as error:
        if not s3_errors.is_absent(error):
            raise


def _stored_with(options: S3Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters by which objects are encrypted, and all by which they are stored."""
    encrypted: dict[str, Any] = {}
    if options.sse:
        encrypted["ServerSideEncryption"] = options.sse
    if options.kms_key_id:
        encrypted["SSEKMSKeyId"] = options.kms_key_id
    stored = dict(encrypted)
    if options.storage_class:
        stored["StorageClass"] = options.storage_class
    if options.tags:
        stored["Tagging"] = options.tagging
    if options.metadata:
        stored["Metadata"] = dict(options.metadata)
    return encrypted, stored


def _md5(data: Segments) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for segment in data:
        digest.update(segment)
    return base64.b64encode(digest.digest()).decode()
