"""Which checksum an endpoint compares with the bytes it receives: known of Azure's own, asked once of all others.

Owns the question, one for each endpoint; ``answers`` remembers. An endpoint may take a checksum without looking at it,
so it is asked with wrong ones: only a refusal proves that it looks. The ``azure`` backend gives the way to ask.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import threading
from collections.abc import Callable, Mapping

from azure.core.exceptions import HttpResponseError

from ..contract import PROBE, Segments
from . import crc64
from .answers import Question
from .azure_errors import CHECKSUM, UNSUPPORTED, code_of

MD5 = "md5"
BOTH = frozenset({crc64.NAME, MD5})
BODY = b"s3dlio"
_BITS = {crc64.NAME: 1, MD5: 2}

_KNOWN = (".blob.core.windows.net", ".blob.core.usgovcloudapi.net", ".blob.core.chinacloudapi.cn", ".storage.azure.net")

log = logging.getLogger("s3dlio.engine.backend")

_questions: dict[str, Question] = {}
_table_lock = threading.Lock()

Send = Callable[[Mapping[str, str]], None]
"""Stores ``BODY`` as a block with the headers given; raises what the SDK raises."""


def new_name() -> str:
    """The key of a blob to stage ``BODY`` for; it is never committed, so that no listing shows it."""
    return f"{PROBE}{secrets.token_hex(8)}"


def crc64_header(value: int) -> dict[str, str]:
    """The header that carries a CRC-64."""
    return {"x-ms-content-crc64": crc64.little_endian(value)}


def md5_header(data: Segments) -> dict[str, str]:
    """The header that carries an MD5; the store keeps it as a property of a whole blob."""
    return {"Content-MD5": md5_text(data)}


def md5_text(data: Segments) -> str:
    """The MD5 of segments as headers carry it."""
    digest = hashlib.md5(usedforsecurity=False)
    for segment in data:
        digest.update(segment)
    return base64.b64encode(digest.digest()).decode()


def verified_by(endpoint: str, host: str, send: Send) -> frozenset[str]:
    """Which of ``crc64nvme`` and ``md5`` an endpoint verifies. Raises what ``send`` raises for any other reason."""
    if host.endswith(_KNOWN):
        return BOTH
    with _table_lock:
        question = _questions.get(endpoint)
        if question is None:
            question = _questions[endpoint] = Question(f"checksums of az at {endpoint}")
    found = question.answer(lambda: sum(_BITS[name] for name in ask(endpoint, send)))
    return frozenset(name for name, bit in _BITS.items() if found & bit)


def ask(endpoint: str, send: Send) -> frozenset[str]:
    """Find out by wrong checksums; warns where none is looked at."""
    wrong = {
        crc64.NAME: crc64_header(crc64.of([memoryview(BODY)]) ^ 1),
        MD5: md5_header([memoryview(BODY + b"?")]),
    }
    found = frozenset(name for name, headers in wrong.items() if _refuses(send, headers))
    if not found:
        text = "%s compares no checksum with what it receives: what changes on the way is found when it is read"
        log.warning(text, endpoint, extra={"once": True})
    return found


def _refuses(send: Send, headers: Mapping[str, str]) -> bool:
    try:
        send(headers)
    except HttpResponseError as error:
        code = code_of(error)
        if code in CHECKSUM:
            return True
        if code in UNSUPPORTED or error.status_code in (400, 501):
            return False
        raise
    return False


def forget() -> None:
    """Ask again: for tests."""
    with _table_lock:
        _questions.clear()
