"""What stands on the wire beside a blob's bytes: names of uploads and blocks, headers, and the forms of answers.

Pure. A block's id holds its upload, number and size, so that a receipt tells what is stored under it and two writers of
one key cannot mix. Called by ``azure``.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, urlencode

from ..contract import Segments
from ..errors import NotFoundError, StorageError
from . import azure_probe as probe
from . import crc64
from .azure_options import AzureOptions
from .body import PIECE, SegmentsBody

FOLDER = "hdi_isfolder"
"""Metadata by which an account with folders marks one."""

_UPLOAD = re.compile(r"[0-9a-f]{24}")
_BLOCK = re.compile(r"([0-9a-f]{24})-[0-9]{5}-[0-9a-f]{9}")


def new_upload() -> str:
    """A name that no other writer of the key has, in any process: the time and 64 bits of chance."""
    return f"{int(time.time()):08x}{secrets.token_hex(8)}"


def is_upload(name: str) -> bool:
    """Whether ``new_upload`` could have made it."""
    return _UPLOAD.fullmatch(name) is not None


def check_upload(key: str, upload: str) -> None:
    """``NotFoundError`` for what cannot be an upload: Azure would take its parts."""
    if not is_upload(upload):
        raise NotFoundError(f"{key} has no open upload {upload}")


def started(upload: str) -> float:
    """When an upload was begun, in seconds since the epoch."""
    return float(int(upload[:8], 16))


def block_id(upload: str, number: int, size: int) -> str:
    """The id of a part's block; all of one length, as Azure wants."""
    return f"{upload}-{number:05d}-{size:09x}"


def upload_of(block: str) -> str | None:
    """The upload of a block, ``None`` if it is another tool's."""
    match = _BLOCK.fullmatch(block)
    return match[1] if match else None


def body_of(data: Segments) -> SegmentsBody:
    """What is sent, in pieces: a time-out bounds each, and would bound the whole part were it one."""
    return SegmentsBody(data, least=PIECE)


def checksum_headers(verified: frozenset[str], data: Segments) -> tuple[str, int | None, dict[str, str]]:
    """The checksum to send of those that the endpoint verifies: its name, its value if a CRC-64, and its headers."""
    if crc64.NAME in verified:
        crc = crc64.of(data)
        return crc64.NAME, crc, probe.crc64_header(crc)
    return (probe.MD5, None, probe.md5_header(data)) if probe.MD5 in verified else ("", None, {})


def property_headers(options: AzureOptions) -> dict[str, str]:
    """What every blob of the store gets."""
    headers = {f"x-ms-meta-{name}": value for name, value in options.metadata.items()}
    if options.tags:
        headers["x-ms-tags"] = urlencode(options.tags, quote_via=quote)
    if options.tier is not None:
        headers["x-ms-access-tier"] = options.tier
    if options.encryption_scope is not None:
        headers["x-ms-encryption-scope"] = options.encryption_scope
    return headers


def total_of(headers: Mapping[str, str]) -> int | None:
    """The size of the whole blob, from the answer to a range."""
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def check_range_of(headers: Mapping[str, str], doing: str, offset: int) -> None:
    """``StorageError`` unless an answer holds the bytes from ``offset`` on: what lies between may not know ranges."""
    told = headers.get("Content-Range", "")
    if not told.startswith(f"bytes {offset}-") and (told or offset):
        raise StorageError(
            f"{doing}: the answer holds other bytes ({told or 'no Content-Range'}): no ranges are served"
        )


def etag_of(text: str) -> str:
    """Listings give it without quotes, all other answers with them."""
    return text.strip('"')


def seconds_of(moment: object) -> float:
    """Seconds since the epoch; a client that reads no date gives text, which stands for no time known."""
    return moment.timestamp() if isinstance(moment, datetime) else 0.0
