"""No log, message, traceback or repr of the ``azure`` backend shows a key or a token, whatever the SDK says."""

from __future__ import annotations

import io
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs

import pytest

from s3dlio.engine.backends import open_backend
from s3dlio.engine.backends.azure_client import Client, _applied
from s3dlio.engine.backends.azure_options import read
from s3dlio.engine.backends.azure_wire import new_upload
from s3dlio.engine.backends.retry import RetryPolicy
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import S3dlioError
from tests.engine.azure_stores import location, token
from tests.engine.conformance import view
from tests.servers.azurite import KEY, Container
from tests.servers.faults import Action, Hang, LostReply, ResetBefore, Status, Truncate
from tests.servers.process import free_port
from tests.servers.proxy import FaultProxy

ONCE = RetryPolicy(attempts=1)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that any library logs at debug level; as text, since a record keeps a traceback, and that keeps sockets."""
    text, formatter, root = io.StringIO(), logging.Formatter(), logging.getLogger()

    def write(logger: logging.Logger, record: logging.LogRecord) -> None:
        text.write(f"{formatter.format(record)}\n")

    monkeypatch.setattr(logging.Logger, "callHandlers", write)
    before = root.level
    root.setLevel(logging.DEBUG)
    yield text
    root.setLevel(before)


@pytest.fixture
def sas(az_container: Container) -> str:
    return token(az_container, datetime.now(timezone.utc) + timedelta(hours=1))


def secrets_in(text: str, sas: str) -> list[str]:
    """Credentials that stand in ``text``, as they are or encoded for a URL."""
    encoded = next(part for part in sas.split("&") if part.startswith("sig="))
    signature = parse_qs(sas)["sig"][0]
    return [secret for secret in (encoded, encoded[4:], signature, KEY) if secret in text]


def use(store: Location) -> str:
    """Call everything; returns all that the errors show."""
    backend, told, name = open_backend(store, retry=ONCE), "", new_upload()
    calls: list[Callable[[], object]] = [
        lambda: backend.begin("k"),
        lambda: backend.put("k", view(b"body")),
        lambda: backend.read("k", limit=10),
        lambda: backend.get_range("k", 0, memoryview(bytearray(4))),
        lambda: backend.head("k"),
        lambda: list(backend.list()),
        lambda: list(backend.uploads()),
        lambda: backend.complete("k", name, [backend.put_part("k", name, 1, 0, view(b"body"))]),
        lambda: backend.delete("k"),
    ]
    for call in calls:
        try:
            call()
        except S3dlioError as error:
            told += f"{traceback.format_exc()}{error!r}{error}\n"
    backend.close()
    return told


def test_the_log_at_debug_level_holds_requests_and_no_token(
    az_container: Container, sas: str, logged: io.StringIO
) -> None:
    assert use(location(az_container, {"sas_token": sas})) == ""
    assert use(location(az_container)) == ""
    assert "PUT /devstoreaccount1" in logged.getvalue()
    assert secrets_in(logged.getvalue(), sas) == []


FAULTS: list[Action] = [
    Status(403, "AuthenticationFailed"),
    Status(400, "InvalidHeaderValue"),
    Status(500, "InternalError"),
    ResetBefore(),
    LostReply(),
    Truncate(),
    Hang(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{type(fault).__name__}{getattr(fault, 'status', '')}")
def test_no_error_shows_a_token(
    az_container: Container, az_proxy: FaultProxy, sas: str, logged: io.StringIO, fault: Action
) -> None:
    az_proxy.rule(fault, times=None)
    told = use(location(az_container.through(az_proxy.endpoint), {"sas_token": sas, "read_timeout": 0.1}))
    assert told
    assert secrets_in(told + logged.getvalue(), sas) == []


def test_no_error_of_a_connection_shows_a_token(az_container: Container, sas: str, logged: io.StringIO) -> None:
    nobody = az_container.through(f"http://127.0.0.1:{free_port('127.0.0.1')}/devstoreaccount1")
    told = use(location(nobody, {"sas_token": sas}))
    assert "ConnectionRefusedError" in told
    assert secrets_in(told + logged.getvalue(), sas) == []


def test_no_repr_shows_a_credential(az_container: Container, sas: str) -> None:
    for store in (location(az_container), location(az_container, {"sas_token": sas})):
        options = read(store)
        client = Client(options)
        assert secrets_in(f"{store!r}{options!r}{client!r}{client.container!r}{client.__dict__!r}", sas) == []
        client.close()


def test_a_netrc_file_does_not_replace_the_credential(
    az_container: Container, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    netrc = os.path.join(tmp_path, "netrc")
    with open(netrc, "w", encoding="ascii") as file:
        file.write("default login somebody password else\n")
    monkeypatch.setenv("NETRC", netrc)
    assert use(location(az_container)) == ""


def test_the_environment_is_that_of_the_trainer_while_a_credential_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", "of the worker")
    monkeypatch.setenv("AZURE_TENANT_ID", "of the worker")
    monkeypatch.delenv("IDENTITY_ENDPOINT", raising=False)
    given = {"AZURE_CLIENT_ID": "of the trainer", "IDENTITY_ENDPOINT": "there"}
    before = dict(os.environ)
    with _applied(given):
        found = {name: os.environ.get(name) for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "IDENTITY_ENDPOINT")}
    assert found == {**given, "AZURE_TENANT_ID": None}
    assert dict(os.environ) == before
