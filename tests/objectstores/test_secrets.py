"""No credential is seen anywhere: no log record of any library, no repr, message or traceback, no object, no command
line; whether a save succeeds or fails.
"""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest

from s3dlio import CheckpointConfig, CheckpointStore
from s3dlio.engine.errors import S3dlioError
from tests.objectstores.checks import commits, new, old
from tests.objectstores.places import MIB, Place, get
from tests.objectstores.test_refusals import sas
from tests.servers.azurite import KEY
from tests.servers.faults import Action, FlipReply, Hang, LostReply, ResetBefore, Status, Truncate
from tests.store.live import worker_pids

pytestmark = pytest.mark.slow

SECRET_KEY = "a-secret-access-key/of+no=account"
SESSION_TOKEN = "a-session-token/that+nobody=may-see"
LIBRARIES = ("asyncio", "azure", "boto3", "botocore", "msal", "requests", "s3dlio", "s3transfer", "urllib3")
FAULTS: list[Action] = [
    Status(403, "SignatureDoesNotMatch"),
    Status(500, "InternalError"),
    ResetBefore(),
    LostReply(),
    Truncate(0),
    Hang(),
]


def given(place: Place, how: str) -> tuple[dict[str, Any], list[str]]:
    """Options with a credential, and what nobody may see."""
    if how == "keys":
        options = {"secret_access_key": SECRET_KEY, "session_token": SESSION_TOKEN}
        return options, [SECRET_KEY, SESSION_TOKEN]
    if how == "account key":
        return {"account_key": KEY}, [KEY]
    if how == "connection string":
        text = f"AccountName=devstoreaccount1;AccountKey={KEY};BlobEndpoint={place.options['endpoint_url']};"
        return {"account_key": None, "endpoint_url": None, "connection_string": text}, [KEY]
    token = sas(place, read=True, list=True, write=True, create=True, delete=True, add=True)
    return {"account_key": None, "sas_token": token}, [parse_qs(token)["sig"][0]]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[io.StringIO]:
    """All that is logged here and in the workers at debug level, as text."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    yield text
    caplog.get_records("call").clear()  # they hold sockets
    for logger, level, propagate in before:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def forms(secret: str) -> set[str]:
    """A secret as it is, and as URLs, headers and reprs carry it."""
    return {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1], secret.replace("=", "%3D")}


def check(secrets: list[str], seen: dict[str, str]) -> None:
    """None of ``secrets`` in any form occurs in what was ``seen``; what was is not empty."""
    for where, text in seen.items():
        assert text, where
        for secret in secrets:
            found = [form for form in forms(secret) if form in text]
            lines = [line[:400] for line in text.splitlines() if any(form in line for form in found)]
            assert not found, f"{where} shows a credential: {lines[:3]}"


def command_lines(store: CheckpointStore) -> str:
    return "\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in worker_pids(store))


WAYS = [("s3", "keys"), ("az", "account key"), ("az", "connection string"), ("az", "token")]


@pytest.mark.parametrize(("site", "how"), WAYS, indirect=["site"])
def test_a_save_that_succeeds_shows_none(place: Place, logged: io.StringIO, how: str) -> None:
    options, secrets = given(place, how)
    with place.open(options=options, memory=48 * MIB) as store:  # its workers log from their first word on
        store.save(1, old())
        place.proxy.rule(LostReply(), **place.part(2))
        place.proxy.rule(LostReply(), **place.complete)
        place.proxy.rule(Truncate(20), **get("rank-0"))
        place.proxy.rule(FlipReply(20), **get("rank-0"))
        commits(place, store)
        handle = store.save_async(3, b"bytes")
        handle.result()
        chosen = {name: value for name, value in {**place.options, **options}.items() if value is not None}
        config = CheckpointConfig(options=chosen)
        stored = b"".join(place.read(key) for key in place.keys("latest") + place.keys("manifests/"))
        check(
            secrets,
            {
                "the log": logged.getvalue(),
                "a repr": "\n".join(map(repr, (store, handle, store.location, store.config, config, store.reader()))),
                "the location's URI": store.location.uri,
                "an object": stored.decode(),
                "a command line": command_lines(store),
            },
        )
    assert "put_part 2" in logged.getvalue()
    assert ("Event before-call" if place.kind == "s3" else "Request URL") in logged.getvalue()  # the SDK's in a worker


@pytest.mark.parametrize(("site", "how"), [way for way in WAYS if way[1] != "connection string"], indirect=["site"])
@pytest.mark.parametrize("action", FAULTS, ids=lambda action: type(action).__name__)
def test_a_save_that_fails_shows_none(place: Place, logged: io.StringIO, how: str, action: Action) -> None:
    """Every operation fails in turn, alike."""
    options, secrets = given(place, how)
    calls: list[Callable[[CheckpointStore], object]] = [
        lambda store: store.list(),
        lambda store: store.load(1),
        lambda store: store.delete(1),
        lambda store: store.cleanup(),
    ]
    if not isinstance(action, Truncate):  # most answers to a save's requests have no body to be cut
        calls.append(lambda store: store.save(2, new()))
    errors = ""
    with place.open(options={**options, "retry_deadline": 0.05, "read_timeout": 0.3}) as store:
        store.save(1, old())
        place.proxy.rule(action, times=None)
        for call in calls:
            with pytest.raises(S3dlioError) as caught:
                call(store)
            error = caught.value
            errors += f"{error!r}\n{error}\n{''.join(traceback.format_exception(error))}"
        check(
            secrets,
            {
                "the log": logged.getvalue(),
                "an error": errors,
                "a repr": f"{store!r} {store.location!r}",
                "a command line": command_lines(store),
            },
        )
        place.proxy.clear()
