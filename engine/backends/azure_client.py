"""The SDK's client of one container, set up as measured: no retries, a pool of connections, no credential in a log.

Owns the session, the time-outs and the credential object; knows no keys and no operations. The ``azure`` backend makes
one for each location, in a worker.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs

import requests
import urllib3
from azure.core.credentials import AccessToken, AzureNamedKeyCredential, AzureSasCredential
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import ContainerClient
from requests.adapters import HTTPAdapter

from ..errors import DependencyError
from .azure_credentials import IDENTITY
from .azure_errors import scrub
from .azure_options import AzureOptions

CONNECTIONS = 128
SEND_BLOCK = 128 << 10
"""Bytes a body is sent in: they stay in the cache, where 16 KiB, urllib3's own choice, cost twice the time."""
RECEIVE_BLOCK = 1 << 20

# They log whole URLs at debug level, and a SAS token is a query.
_TALKATIVE = ("urllib3.connectionpool", "urllib3.util.retry", "azure.storage.blob._shared.policies")

# What it warns of, in a dozen lines for each request, our error tells in one (``azure_credentials.tried``).
_VERBOSE = "azure.identity"

_environment_lock = threading.Lock()


class _Adapter(HTTPAdapter):
    """Connections enough for all lanes, which send in large blocks and never try again by themselves."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, blocksize=SEND_BLOCK)


class _NoQueries(logging.Filter):
    """Takes the queries out of what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "?" in text or "=" in text:
            record.msg, record.args = scrub(text), None
        return True


class Download:
    """The answer to a Get Blob: its headers, and its body as it arrives."""

    def __init__(self, headers: Mapping[str, str], raw: urllib3.BaseHTTPResponse) -> None:
        self.headers = headers
        self._raw = raw

    def fill(self, into: memoryview) -> Iterator[int]:
        """Read until ``into`` is full or the body ends; gives the bytes read so far, piece by piece.

        Pieces that stay in the cache are as fast as urllib3 allows: its ``readinto`` copies once.
        """
        done = 0
        while done < into.nbytes:
            count = self._raw.readinto(into[done : done + RECEIVE_BLOCK])
            if not count:
                return
            done += count
            yield done


class Client:
    """``container`` and what must be closed with it."""

    def __init__(self, options: AzureOptions) -> None:
        _quiet()
        self._credential, self._token = _credential(options)
        session = requests.Session()
        session.auth = lambda request: request  # else a line of ~/.netrc would replace the credential
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(pool_connections=2, pool_maxsize=CONNECTIONS, max_retries=0))
        self._session = session
        self.container = ContainerClient(
            options.endpoint_url,
            options.container,
            credential=self._credential,
            transport=RequestsTransport(
                session=session,
                connection_timeout=options.connect_timeout,
                read_timeout=options.read_timeout,
                connection_verify=options.verify,
                connection_data_block_size=RECEIVE_BLOCK,
            ),
            connection_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            connection_verify=options.verify,
            retry_total=0,
            retry_connect=0,
            retry_read=0,
            retry_status=0,
            logging_enable=False,
        )

    def upload(self, key: str, body: object, size: int, headers: Mapping[str, str]) -> Mapping[str, Any]:
        """One Put Blob; returns the headers of the answer.

        The public ``upload_blob`` takes only bytes in one request, so that a body would be copied twice; the generated
        client below it takes any. All else goes in as headers, which its versions have in common.
        """
        blob = self.container.get_blob_client(key)
        answer: Mapping[str, Any] = blob._client.block_blob.upload(
            content_length=size,
            body=body,
            headers=dict(headers),
            cls=lambda _, __, headers: headers,
            client_request_id=request_id(),
        )
        return answer

    @contextmanager
    def download(
        self, key: str, offset: int | None = None, length: int = 0, if_match: str | None = None
    ) -> Iterator[Download]:
        """One Get Blob, of a range if ``offset`` is given; the connection is closed if not all of it was read.

        The public downloader copies every byte three times (1.8 to 2.4 CPU seconds a GiB); the raw response of the
        generated client costs 0.48.
        """
        headers = {} if offset is None else {"x-ms-range": f"bytes={offset}-{offset + length - 1}"}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        blob = self.container.get_blob_client(key)
        response = blob._client.blob.download(
            headers=headers, cls=lambda pipeline, _, __: pipeline.http_response, client_request_id=request_id()
        )
        try:
            yield Download(response.headers, response.internal_response.raw)
        finally:
            response.internal_response.close()

    def close(self) -> None:
        self.container.close()
        self._session.close()
        if self._token is not None:
            self._token.close()


def request_id() -> str:
    """For every request: the id that the SDK would make leaves a file of libuuid open in each thread that ends."""
    return secrets.token_hex(16)


def expiry(sas_token: str) -> float | None:
    """When a SAS token ends, in seconds since the epoch; ``None`` if it does not say."""
    text = parse_qs(sas_token).get("se", [""])[0]
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _credential(options: AzureOptions) -> tuple[Any, Any]:
    """The credential for the client, and the same if it has to be closed."""
    if options.account_key is not None:
        return AzureNamedKeyCredential(options.account, options.account_key.value), None
    if options.sas_token is not None:
        return AzureSasCredential(options.sas_token.value), None
    if options.anonymous:
        return None, None
    token = _Identity(options.environment)
    return token, token


class _Identity:
    """azure-identity's default credential, asked in the environment of the trainer: some of what it tries looks there
    again for each token.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        try:
            from azure.identity import DefaultAzureCredential
        except ImportError as error:
            raise DependencyError(
                f"az:// without a key or token needs azure-identity, which is missing ({error}); install it with: "
                "pip install 's3dlio[azure]', or give the option account_key, sas_token, connection_string or anonymous"
            ) from error
        self._environment = environment
        with _applied(environment):
            self._inner = DefaultAzureCredential()

    def get_token(self, *scopes: str, **given: Any) -> AccessToken:
        """What the SDK calls before a request, once it holds no token that lasts five more minutes."""
        with _applied(self._environment):
            return self._inner.get_token(*scopes, **given)

    def close(self) -> None:
        self._inner.close()


@contextmanager
def _applied(environment: Mapping[str, str]) -> Iterator[None]:
    """The variables of the trainer, in place of those that this process began with."""
    with _environment_lock:
        before = {name: value for name, value in os.environ.items() if name.startswith(IDENTITY)}
        _replace(before, environment)
        try:
            yield
        finally:
            _replace(environment, before)


def _replace(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for name in old.keys() - new.keys():
        os.environ.pop(name, None)
    os.environ.update(new)


def _quiet() -> None:
    logging.getLogger(_VERBOSE).setLevel(logging.ERROR)
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _NoQueries) for known in logger.filters):
            logger.addFilter(_NoQueries())
