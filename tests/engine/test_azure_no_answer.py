"""What a failure on the way to Azure becomes when no answer came: names, connections, certificates, time-outs."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

import pytest
import requests
import urllib3
from azure.core.exceptions import ClientAuthenticationError, DecodeError, ServiceRequestError, ServiceResponseError

from s3dlio.engine.backends import azure, azure_options
from s3dlio.engine.backends.azure import AzureBackend
from s3dlio.engine.backends.azure_errors import AzureErrors, scrub
from s3dlio.engine.errors import AccessDeniedError, ConfigError, CorruptError, S3dlioError, StorageError
from tests.engine.azure_stores import store
from tests.servers.azurite import Container
from tests.servers.faults import Hang, ResetBefore
from tests.servers.process import free_port
from tests.servers.proxy import FaultProxy

BODY = [memoryview(b"body")]


@pytest.fixture
def backend(az_container: Container, az_proxy: FaultProxy) -> Iterator[AzureBackend]:
    """A store behind the proxy, whose endpoint has told already what it verifies."""
    with store(az_container.through(az_proxy.endpoint)) as opened:
        opened.put("there", BODY)
        yield opened


def test_nobody_listens(az_container: Container) -> None:
    nobody = az_container.through(f"http://127.0.0.1:{free_port('127.0.0.1')}/devstoreaccount1")
    words = r"no answer \(ConnectionRefusedError"
    with store(nobody) as backend, pytest.raises(StorageError, match=words) as caught:
        backend.put("k", BODY)
    assert caught.value.transient


def test_a_server_that_hangs(az_container: Container, az_proxy: FaultProxy) -> None:
    with store(az_container.through(az_proxy.endpoint), {"read_timeout": 0.1}) as backend:
        az_proxy.rule(Hang(), times=None)
        with pytest.raises(StorageError, match=r"no answer \(TimeoutError") as caught:
            backend.head("k")
        assert caught.value.transient
        assert len(az_proxy.requests()) == 1


def test_a_connection_that_is_reset(backend: AzureBackend, az_proxy: FaultProxy) -> None:
    rule = az_proxy.rule(ResetBefore(), times=1)
    with pytest.raises(StorageError, match="no answer") as caught:
        backend.head("there")
    assert caught.value.transient
    assert rule.fired == 1


def wrapped(cause: Exception) -> ServiceRequestError:
    """A cause as requests, urllib3 and the SDK wrap it."""
    pool = urllib3.HTTPConnectionPool("account.blob.example")
    inner = urllib3.exceptions.MaxRetryError(pool, "/box?sig=SECRET", cause)
    return ServiceRequestError(str(inner), error=requests.ConnectionError(inner))


def name_error(number: int) -> Exception:
    error = urllib3.exceptions.NameResolutionError(
        "account.blob.example", urllib3.connection.HTTPConnection("x"), socket.gaierror(number, "unknown")
    )
    error.__cause__ = socket.gaierror(number, "unknown")
    return error


@pytest.mark.parametrize(
    ("error", "kind", "transient", "words"),
    [
        (wrapped(name_error(socket.EAI_NONAME)), StorageError, False, "account acc has no address"),
        (wrapped(name_error(socket.EAI_AGAIN)), StorageError, True, "no answer"),
        (wrapped(ssl.SSLCertVerificationError("self-signed")), ConfigError, False, "option verify"),
        (wrapped(OSError(errno.EPERM, "not permitted")), AccessDeniedError, False, "allows no connection"),
        (wrapped(OSError(errno.ENETUNREACH, "unreachable")), StorageError, True, "unreachable"),
        (ServiceRequestError("x", error=requests.exceptions.InvalidURL("x")), ConfigError, False, "endpoint_url"),
        (
            ServiceResponseError("cut", error=ConnectionResetError(errno.ECONNRESET, "reset")),
            StorageError,
            True,
            "reset",
        ),
        (urllib3.exceptions.ProtocolError("broken"), StorageError, True, "ProtocolError: broken"),
        (DecodeError("no XML\nat all"), StorageError, True, r"damaged \(no XML\)"),
        (ClientAuthenticationError("no credential\nof many"), AccessDeniedError, False, r"\(no credential\).*az login"),
    ],
)
def test_no_answer_means(error: Exception, kind: type[S3dlioError], transient: bool, words: str) -> None:
    errors = AzureErrors("acc", "box")
    with pytest.raises(kind, match=words) as caught, errors.told("put az://acc/box/k"):
        raise error
    assert type(caught.value) is kind
    assert str(caught.value).startswith("put az://acc/box/k: ")
    assert getattr(caught.value, "transient", False) is transient
    assert "SECRET" not in str(caught.value)


def test_no_credential_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """By the SDK itself, asked for the one credential that needs no network to find out; it logs nothing."""
    environ = {"AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential"}
    backend = azure.open_location(azure_options.parse("account/box", {}, environ))
    words = r"account account was found \(tried Environment \(Environment variables are not fully configured\)\); set"
    with pytest.raises(AccessDeniedError, match=words) as caught:
        backend.head("k")
    backend.close()
    assert "\n" not in str(caught.value)
    assert [record for record in caplog.records if record.name.startswith("azure")] == []


def test_our_own_errors_pass() -> None:
    with pytest.raises(CorruptError, match=r"^as it is$"), AzureErrors("acc", "box").told("put"):
        raise CorruptError("as it is")


def test_a_mistake_of_ours_is_no_storage_error() -> None:
    with pytest.raises(ZeroDivisionError), AzureErrors("acc", "box").told("put"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "text",
    [
        "url: /box/key?sv=1&sig=SECRET (Caused by",
        "https://acc.blob.core.windows.net/box?sp=r&sig=SECRET&se=1'",
        "sig=SECRET",
        "AccountName=acc;AccountKey=SECRET;",
        "SharedAccessSignature=SECRET",
    ],
)
def test_scrubbed_text_has_no_signature(text: str) -> None:
    assert "SECRET" not in scrub(text)
