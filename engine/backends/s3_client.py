"""The client of a store, by botocore (boto3 without its files and tables), set up for large bodies in shared memory.

Owns the settings and the environment in which a client is made; never makes a request. ``s3`` makes one client for each
location with the first call. Measured for 16 MiB parts over http: 2.0 CPU seconds per GiB with boto3's defaults, 0.26
with these and a checksum that the caller computes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader
from botocore.session import Session

from ..errors import ConfigError
from . import s3_errors
from .s3_options import S3Options

CONNECTIONS = 128
"""Kept open to one store by one process; more than its lanes, so that none is closed to make room."""
_AWS = (".amazonaws.com", ".amazonaws.com.cn")
_RENEWED = 600
"""Seconds before their end within which the SDK signs nothing with credentials that it could not renew."""

# At debug level they tell whole requests and answers, with session tokens and the credentials that STS gives.
_TALKATIVE = ("botocore.auth", "botocore.endpoint", "botocore.parsers")

_environment = threading.Lock()


def make(options: S3Options) -> Any:
    """A client as boto3's usual chain and ``options`` make it; ``ConfigError`` if they make none."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)
    with _environment, _applied(options.environment):
        try:
            session = _session(options)
            client = session.create_client(
                "s3",
                region_name=options.region,
                endpoint_url=options.endpoint_url,
                verify=_verify(options),
                config=_config(options),
                **_keys(options),
            )
            found = None if options.anonymous or options.access_key_id else session.get_credentials()
        except BotoCoreError as error:
            raise s3_errors.translate(error, f"s3://{options.bucket}") from error
        except ValueError as error:  # an endpoint from the environment or a profile that is no URL
            raise ConfigError(f"s3://{options.bucket}: the client cannot be made: {error}") from error
    client.meta.events.register_last("before-call.s3", _send_at_once)
    if hasattr(found, "refresh_needed"):
        client.meta.events.register("before-sign.s3", _Renewal(found, options.environment))
    return client


class _Renewal:
    """Renews credentials that end soon, in the environment of the trainer: some of their sources look there again.

    As the SDK does by itself: at first one request tries, and the others go on; in the end all wait for that.
    """

    def __init__(self, credentials: Any, environment: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._environment = environment
        self._lock = threading.Lock()

    def __call__(self, **_: object) -> None:
        if not self._credentials.refresh_needed() or not self._lock.acquire(
            blocking=self._credentials.refresh_needed(_RENEWED)
        ):
            return
        try:
            with _environment, _applied(self._environment):
                self._credentials.get_frozen_credentials()
        finally:
            self._lock.release()


def _send_at_once(params: dict[str, Any], **_: object) -> None:
    """Do not ask before each body whether the store will take it: that is a round trip for every part."""
    params["headers"].pop("Expect", None)


def endpoint_of(client: Any) -> str:
    """Where the client sends its requests."""
    return str(client.meta.endpoint_url)


def is_amazon(endpoint: str) -> bool:
    """Whether Amazon's own servers answer, whose abilities are known."""
    return (urlsplit(endpoint).hostname or "").endswith(_AWS)


def _session(options: S3Options) -> Any:
    """A session of its own for each client, since it remembers the environment; the SDK's data are shared."""
    session = Session(profile=options.profile)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    # For the clients that fetch credentials: all lanes wait for them, and the SDK's own 60 s, retried, are too long.
    session.set_default_client_config(
        Config(
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            retries={"total_max_attempts": 2, "mode": "standard"},
        )
    )
    return session


@functools.cache
def _loader(path: str | None) -> Loader:
    """What the SDK knows of services: 55 of the 67 ms that a client takes without it."""
    return create_loader(path)


def _keys(options: S3Options) -> dict[str, str]:
    """The credentials that were given; none where the chain finds them."""
    given = {
        "aws_access_key_id": options.access_key_id,
        "aws_secret_access_key": options.secret_access_key,
        "aws_session_token": options.session_token,
    }
    return {name: secret.value for name, secret in given.items() if secret is not None}


def _verify(options: S3Options) -> bool | str | None:
    """``None`` leaves it to the chain (``AWS_CA_BUNDLE``, a profile's ``ca_bundle``), which ``True`` would hide."""
    return None if options.verify is True else options.verify


def _config(options: S3Options) -> Config:
    s3: dict[str, object] = {"payload_signing_enabled": False}  # SHA-256 alone takes 1 CPU second per GiB
    if options.addressing != "auto":
        s3["addressing_style"] = options.addressing
    return Config(
        s3=s3,
        signature_version=UNSIGNED if options.anonymous else None,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},  # ``retry`` does that, for all stores alike
        max_pool_connections=CONNECTIONS,
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        tcp_keepalive=True,
        user_agent_extra="s3dlio",
    )


@contextlib.contextmanager
def _applied(variables: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with exactly these ``AWS_…`` variables; the caller holds the lock."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    _replace(before, variables)
    try:
        yield
    finally:
        _replace(variables, before)


def _replace(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for name in old.keys() - new.keys():
        os.environ.pop(name, None)
    os.environ.update(new)
