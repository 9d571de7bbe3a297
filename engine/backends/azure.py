"""Azure Blob Storage as a backend: blobs below a prefix of one container, written in blocks.

Owns what each call of the contract means in requests; each is one attempt (``retry`` repeats), made by the client of
``azure_client``, with the errors of ``azure_errors`` and the checksum that ``azure_probe`` found.

An upload is a name made here: Azure knows none. Its blocks carry it in their ids, and the commit writes it into the
blob's metadata, which tells after a lost reply who made the blob. Azure keeps uncommitted blocks for a week; it has no
call that drops them, and a commit or a put of the same key drops those of all uploads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.storage.blob import BlobBlock, BlobClient

from ..contract import Backend, Limits, Location, ObjectInfo, Page, PartReceipt, Segments, UploadInfo, check_key
from ..errors import BrokenReadError, ConfigError, CorruptError, NotFoundError, PreconditionError, StorageError
from . import azure_listing
from . import azure_probe as probe
from . import azure_wire as wire
from .azure_client import Client, expiry, request_id
from .azure_errors import BLOCKS_GONE, AzureErrors, code_of
from .azure_options import UPLOAD, AzureOptions, read
from .checks import check_listed, check_part, check_parts, check_put, check_range, check_version, folder_of, overwritten

MIB = 1 << 20
LIMITS = Limits(part_min=1, part_max=4000 * MIB, parts_max=50_000, put_max=5000 * MIB)
SMALL = MIB
"""Bytes up to which a blob has its MD5 as a property, so that whoever reads it whole can compare."""

_SCOPE = ("x-ms-encryption-scope",)

log = logging.getLogger("s3dlio.engine.backend")


def open_location(location: Location) -> AzureBackend:
    """The backend of an ``az`` location; contacts nothing."""
    return AzureBackend(location.uri, read(location))


class AzureBackend(Backend):
    """``Backend`` over one container; ``uri`` names it in messages."""

    def __init__(self, uri: str, options: AzureOptions) -> None:
        self._uri = uri
        self._options = options
        self._properties = wire.property_headers(options)
        self._prefix = f"{options.prefix}/" if options.prefix else ""
        expires = expiry(options.sas_token.value) if options.sas_token else None
        self._errors = AzureErrors(options.account, options.container, expires)
        self._client_lock = threading.Lock()
        self._opened: Client | None = None

    @property
    def limits(self) -> Limits:
        return LIMITS

    def put(self, key: str, data: Segments, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        size = check_put(LIMITS, key, data, if_absent, if_match)
        verified = self._verified() & {probe.MD5} if size <= SMALL else self._verified()
        how, _, headers = wire.checksum_headers(verified, data)
        if size <= SMALL:
            headers = probe.md5_header(data)
        checked = bool(headers)
        headers |= self._properties
        if if_absent:
            headers["If-None-Match"] = "*"
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        with self._errors.told(self._doing("put", key), checked=checked), wire.body_of(data) as body:
            try:
                answer = self._client.upload(self._prefix + key, body, size, headers)
            except ResourceNotFoundError as error:
                if if_match is None or code_of(error).startswith("Container"):
                    raise
                raise PreconditionError(f"{key} is not the version {if_match}: somebody deleted it") from None
        return ObjectInfo(key, size, wire.etag_of(answer["ETag"]), wire.seconds_of(answer["Last-Modified"]), how)

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        check_key(key)
        doing = self._doing("read", key)
        with self._errors.told(doing), self._client.download(self._prefix + key) as download:
            headers = download.headers
            if headers.get(f"x-ms-meta-{wire.FOLDER}") == "true":
                raise NotFoundError(f"{doing}: it is a folder")
            size = int(headers["Content-Length"])
            if size > limit:
                raise StorageError(f"{key} holds {size} bytes, more than the {limit} expected")
            body = bytearray(size)
            arrived = max(download.fill(memoryview(body)), default=0)
        if arrived < size:
            raise StorageError(f"{doing}: the answer ended after {arrived} of {size} bytes", transient=True)
        digest = headers.get("Content-MD5")
        if digest is not None and digest != probe.md5_text([memoryview(body)]):
            raise StorageError(f"{doing}: the bytes do not match the blob's MD5", transient=True)
        modified = parsedate_to_datetime(headers["Last-Modified"])
        return bytes(body), ObjectInfo(key, size, wire.etag_of(headers["ETag"]), wire.seconds_of(modified))

    def head(self, key: str) -> ObjectInfo:
        check_key(key)
        with self._errors.told(self._doing("head", key)):
            found = self._find(key)
        if found is None:
            raise NotFoundError(f"{self._doing('head', key)}: it does not exist")
        return found[0]

    def list_page(self, prefix: str = "", *, shallow: bool = False, after: str = "", limit: int | None = None) -> Page:
        folder_of(prefix)
        with self._errors.told(self._doing("list", prefix)):
            container = self._client.container
            return azure_listing.page(container, self._prefix, prefix, shallow=shallow, after=after, limit=limit)

    def delete(self, key: str) -> None:
        check_listed(key)
        if "\\" in key or any(part in (".", "..") for part in key.split("/")):
            raise ConfigError(f"{key!r} is not deleted: on its way to Azure such a name becomes that of another blob")
        with self._errors.told(self._doing("delete", key)):
            try:
                self._blob(key).delete_blob(client_request_id=request_id())
            except ResourceNotFoundError as error:
                if code_of(error).startswith("Container"):
                    raise

    def uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        """Uploads to keys that have no committed blob: Azure does not list the others' blocks."""
        folder_of(prefix)
        with self._errors.told(self._doing("list", prefix)):
            empty = azure_listing.uncommitted(self._client.container, self._prefix, prefix)
        return iter(sorted((info for key in empty for info in self._uploads_of(key)), key=lambda i: (i.key, i.upload)))

    def abort(self, key: str, upload: str) -> None:
        """Say that the blocks stay: dropping them takes a commit, and then a blob would be there for a moment."""
        check_key(key)
        if wire.is_upload(upload):
            log.info("%s: Azure drops the blocks of the upload %s to %s by itself after a week", self._uri, upload, key)

    def begin(self, key: str, *, size: int | None = None) -> str:
        check_key(key)
        self._verified()  # asked by the one worker that begins, lest all that then store parts ask at once
        return wire.new_upload()

    def put_part(self, key: str, upload: str, number: int, offset: int, data: Segments) -> PartReceipt:
        size = check_part(LIMITS, key, number, offset, data)
        wire.check_upload(key, upload)
        block = wire.block_id(upload, number, size)
        how, crc, headers = wire.checksum_headers(self._verified(), data)
        if size:  # Azure takes no empty block
            with (
                self._errors.told(self._doing(f"part {number} of", key), checked=bool(how)),
                wire.body_of(data) as body,
            ):
                self._stage(key, block, body, size, headers)
        return PartReceipt(number, offset, size, block, crc, how)

    def complete(self, key: str, upload: str, parts: Sequence[PartReceipt]) -> ObjectInfo:
        size = check_parts(LIMITS, key, parts)
        wire.check_upload(key, upload)
        for part in parts:
            if part.tag != wire.block_id(upload, part.number, part.size):
                raise CorruptError(f"{key}: part {part.number} is not what the upload {upload} holds")
        blocks = [BlobBlock(part.tag) for part in parts if part.size]
        how = parts[0].verified if len({part.verified for part in parts}) == 1 else ""
        with self._errors.told(self._doing("complete", key), checked=True):
            # Asked first, since blocks may be committed again: the SDK knows no other way (it sends every state as
            # "Latest"), and that would replace an object that readers know by its etag.
            found = self._find(key)
            if found is None or found[1] != upload:
                committed = self._commit(key, upload, blocks)
                if committed is not None:
                    return ObjectInfo(key, size, *committed, how)
                found = self._find(key)
        if found is None or found[1] != upload:
            raise NotFoundError(
                f"{key} has no open upload {upload}: its blocks expired, or somebody else wrote the key since, which "
                "drops those of all uploads"
            )
        if found[0].size != size:
            raise CorruptError(f"{key} holds {found[0].size} bytes after parts of {size} were committed")
        return replace(found[0], verified=how)

    def get_range(self, key: str, offset: int, into: memoryview, *, if_match: str | None = None) -> None:
        check_range(key, offset, into)
        for _ in self._pieces(key, offset, into.nbytes, into, if_match):
            pass

    def stream_range(
        self, key: str, offset: int, length: int, block: memoryview, *, if_match: str | None = None
    ) -> Iterator[memoryview]:
        check_range(key, offset, block)
        return self._pieces(key, offset, length, block, if_match)

    def close(self) -> None:
        with self._client_lock:
            client, self._opened = self._opened, None
        if client is not None:
            client.close()

    @property
    def _client(self) -> Client:
        with self._client_lock:
            if self._opened is None:
                self._opened = Client(self._options)
            return self._opened

    def _pieces(
        self, key: str, offset: int, length: int, block: memoryview, if_match: str | None
    ) -> Iterator[memoryview]:
        """The bytes of a range, in pieces that lie in ``block``; an error comes after what had arrived."""
        given, reached, total, etag = 0, 0, None, ""
        doing = self._doing(f"bytes {offset}..{offset + length} of", key)
        name = self._prefix + key
        broken: BrokenReadError | None = None
        try:
            if length:
                with self._errors.told(doing), self._client.download(name, offset, length, if_match) as download:
                    etag = wire.etag_of(download.headers.get("ETag", ""))
                    check_version(key, etag, if_match)  # not all that speaks the protocol keeps the condition
                    wire.check_range_of(download.headers, doing, offset)
                    total = wire.total_of(download.headers)
                    while given < length:
                        piece = block[: length - given]
                        for done in download.fill(piece):
                            reached = given + done
                        if reached < given + piece.nbytes:
                            break
                        given = reached
                        yield piece
        except PreconditionError:
            raise overwritten(key) from None
        except StorageError as error:
            if not error.transient or not reached:
                raise
            broken = BrokenReadError(str(error), reached=reached, etag=etag)
        except CorruptError:  # the blob ends before the range begins
            pass
        else:
            if length and reached == length:
                return
        if broken is None:
            if total is None:
                info = self.head(key)
                check_version(key, info.etag, if_match)
                total = info.size
            if total < offset + length and reached < max(1, length):
                raise CorruptError(f"{key} ends at {total}, before byte {offset + length}")
            if reached == length:
                return
            broken = BrokenReadError(f"{doing}: the answer ended after {reached} bytes", reached=reached, etag=etag)
        if reached > given:
            yield block[: reached - given]
        raise broken

    def _doing(self, what: str, key: str) -> str:
        return f"{what} {self._uri}/{key}"

    def _blob(self, key: str) -> BlobClient:
        return self._client.container.get_blob_client(self._prefix + key)

    def _verified(self) -> frozenset[str]:
        """The checksums that the endpoint verifies; the first writer finds out."""
        endpoint, name = self._options.endpoint_url, probe.new_name()

        def send(headers: Mapping[str, str]) -> None:
            self._stage(name, "probe", probe.BODY, len(probe.BODY), headers)

        with self._errors.told(f"asking {endpoint} for its checksums"):
            return probe.verified_by(endpoint, urlsplit(endpoint).hostname or "", send)

    def _stage(self, key: str, block: str, body: Any, size: int, headers: Mapping[str, str]) -> None:
        scope = {name: self._properties[name] for name in _SCOPE if name in self._properties}
        self._blob(key).stage_block(
            block, body, length=size, headers={**headers, **scope}, client_request_id=request_id()
        )

    def _commit(self, key: str, upload: str, blocks: Sequence[BlobBlock]) -> tuple[str, float] | None:
        """Etag and time of the new blob; ``None`` if the blocks are gone: committed before, or dropped."""
        headers = {**self._properties, f"x-ms-meta-{UPLOAD}": upload}
        try:
            answer = self._blob(key).commit_block_list(
                [*blocks], validate_content=True, headers=headers, client_request_id=request_id()
            )
        except HttpResponseError as error:
            if code_of(error) in BLOCKS_GONE or (error.status_code == 404 and code_of(error) == "BlobNotFound"):
                return None
            raise
        return wire.etag_of(str(answer["etag"])), wire.seconds_of(answer["last_modified"])

    def _find(self, key: str) -> tuple[ObjectInfo, str] | None:
        """A blob's info and the upload that made it, if one did; ``None`` if there is no blob."""
        try:
            blob = self._blob(key).get_blob_properties(client_request_id=request_id())
        except ResourceNotFoundError as error:
            if code_of(error).startswith("Container"):
                raise
            return None
        metadata = {name.lower(): value for name, value in (blob.metadata or {}).items()}
        if metadata.get(wire.FOLDER) == "true":
            return None
        return ObjectInfo(key, blob.size, wire.etag_of(blob.etag), wire.seconds_of(blob.last_modified)), metadata.get(
            UPLOAD, ""
        )

    def _uploads_of(self, key: str) -> Iterator[UploadInfo]:
        with self._errors.told(self._doing("list the blocks of", key)):
            try:
                committed, uncommitted = self._blob(key).get_block_list("all", client_request_id=request_id())
            except ResourceNotFoundError:  # finished or expired since it was listed
                return
        names = {name for block in uncommitted if (name := wire.upload_of(block.id))}
        for name in names if not committed else ():
            yield UploadInfo(key, name, wire.started(name))
