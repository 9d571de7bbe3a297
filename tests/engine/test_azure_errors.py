"""What each refusal of Azure and each failure of the network becomes; through the SDK, from a server or the proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from s3dlio.engine.backends.azure import AzureBackend
from s3dlio.engine.backends.azure_wire import block_id
from s3dlio.engine.contract import PartReceipt
from s3dlio.engine.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionError,
    S3dlioError,
    StorageError,
    StorageFullError,
    ThrottledError,
)
from tests.engine.azure_stores import store, token
from tests.servers.azurite import Container
from tests.servers.faults import Status
from tests.servers.proxy import FaultProxy

BODY = [memoryview(b"body")]
WRONG_KEY = "d3Jvbmc="


@pytest.fixture
def backend(az_container: Container, az_proxy: FaultProxy) -> Iterator[AzureBackend]:
    """A store behind the proxy, whose endpoint has told already what it verifies."""
    with store(az_container.through(az_proxy.endpoint)) as opened:
        opened.put("there", BODY)
        yield opened


ANSWERS: list[tuple[int, str, type[S3dlioError], bool, str]] = [
    (202, "BlobAlreadyExists", StorageError, True, "202 BlobAlreadyExists: this is no answer of the service"),
    (400, "InvalidHeaderValue", StorageError, False, "400 InvalidHeaderValue"),
    (400, "InvalidBlobOrBlock", StorageError, False, "another tool"),
    (400, "Md5Mismatch", StorageError, True, "did not arrive as they were sent"),
    (400, "Crc64Mismatch", StorageError, True, "did not arrive as they were sent"),
    (400, "InvalidOperation", StorageError, True, "did not arrive as they were sent"),
    (400, "InvalidAuthenticationInfo", AccessDeniedError, False, "malformed"),
    (401, "NoAuthenticationInformation", AccessDeniedError, False, "needs a credential"),
    (401, "", AccessDeniedError, False, "does not allow it"),
    (403, "AuthenticationFailed", AccessDeniedError, False, "key or the token is wrong"),
    (403, "AuthorizationFailure", AccessDeniedError, False, "network rules"),
    (403, "AuthorizationPermissionMismatch", AccessDeniedError, False, "Storage Blob Data Contributor"),
    (403, "AuthorizationProtocolMismatch", AccessDeniedError, False, "https:"),
    (403, "AuthorizationResourceTypeMismatch", AccessDeniedError, False, "containers and objects"),
    (403, "AuthorizationServiceMismatch", AccessDeniedError, False, "needs blobs"),
    (403, "AuthorizationSourceIPMismatch", AccessDeniedError, False, "addresses"),
    (403, "AccountIsDisabled", AccessDeniedError, False, "disabled"),
    (403, "InsufficientAccountPermissions", AccessDeniedError, False, "does not allow"),
    (403, "KeyBasedAuthenticationNotPermitted", AccessDeniedError, False, "use an identity"),
    (403, "SomethingNew", AccessDeniedError, False, "does not allow it"),
    (
        404,
        "ContainerNotFound",
        NotFoundError,
        False,
        "container test-.* does not exist in the account devstoreaccount1",
    ),
    (404, "FilesystemNotFound", NotFoundError, False, "container test-.* does not exist"),
    (404, "BlobNotFound", NotFoundError, False, "does not exist"),
    (404, "ResourceNotFound", NotFoundError, False, "does not exist"),
    (408, "RequestTimeout", StorageError, True, "408"),
    (409, "BlobAlreadyExists", PreconditionError, False, "somebody else wrote it"),
    (409, "BlobArchived", StorageError, False, "rehydrate"),
    (409, "BlobBeingRehydrated", StorageError, False, "rehydrated"),
    (409, "BlobImmutableDueToPolicy", AccessDeniedError, False, "policy"),
    (409, "BlockCountExceedsLimit", StorageError, False, "100,000"),
    (409, "ContainerBeingDeleted", NotFoundError, False, "container test-.* is being deleted"),
    (409, "LeaseIdMissing", AccessDeniedError, False, "lease"),
    (409, "PublicAccessNotPermitted", AccessDeniedError, False, "anonymous"),
    (409, "SnapshotsPresent", StorageError, False, "delete them first"),
    (412, "ConditionNotMet", PreconditionError, False, "somebody else wrote it"),
    (412, "LeaseIdMismatchWithBlobOperation", AccessDeniedError, False, "lease"),
    (413, "RequestBodyTooLarge", StorageError, False, "413"),
    (429, "TooManyRequests", ThrottledError, True, "fewer requests"),
    (500, "InternalError", StorageError, True, "500 InternalError"),
    (500, "OperationTimedOut", StorageError, True, "OperationTimedOut"),
    (500, "FeatureNotSupported", StorageError, False, "does not know"),
    (501, "NotImplemented", StorageError, False, "501"),
    (502, "", StorageError, True, "502"),
    (503, "ServerBusy", ThrottledError, True, "fewer requests"),
    (504, "", StorageError, True, "504"),
    (505, "HttpVersionNotSupported", StorageError, False, "505"),
    (507, "InsufficientStorage", StorageFullError, False, "full"),
]


@pytest.mark.parametrize(("status", "code", "kind", "transient", "words"), ANSWERS)
def test_an_answer_means(
    backend: AzureBackend,
    az_proxy: FaultProxy,
    status: int,
    code: str,
    kind: type[S3dlioError],
    transient: bool,
    words: str,
) -> None:
    name = backend.begin("new/key")
    calls: list[Callable[[], object]] = [
        lambda: backend.put("new/key", BODY),
        lambda: backend.put_part("new/key", name, 1, 0, BODY),
    ]
    for call in calls:
        rule = az_proxy.rule(Status(status, code), method="PUT")
        with pytest.raises(kind, match=words) as caught:
            call()
        assert rule.fired == 1
        assert type(caught.value) is kind
        assert "new/key" in str(caught.value)
        assert getattr(caught.value, "transient", False) is transient
        assert caught.value.__suppress_context__


@pytest.mark.parametrize("call", ["read", "head", "list", "delete", "uploads", "get_range", "complete"])
def test_every_call_tells_of_throttling(backend: AzureBackend, az_proxy: FaultProxy, call: str) -> None:
    name = backend.begin("there")
    part = backend.put_part("there", name, 1, 0, BODY)
    az_proxy.rule(Status(503, "ServerBusy"), times=1)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: backend.read("there", limit=9),
        "head": lambda: backend.head("there"),
        "list": lambda: list(backend.list()),
        "delete": lambda: backend.delete("there"),
        "uploads": lambda: list(backend.uploads()),
        "get_range": lambda: backend.get_range("there", 0, memoryview(bytearray(4))),
        "complete": lambda: backend.complete("there", name, [part]),
    }
    with pytest.raises(ThrottledError) as caught:
        calls[call]()
    assert caught.value.transient
    assert len(az_proxy.requests()) == 4 + 1  # two questions, a put, a part; and one attempt
    calls[call]()


def test_a_wrong_key(az_container: Container) -> None:
    with store(az_container, {"account_key": WRONG_KEY}) as backend:
        calls: list[Callable[[], object]] = [
            lambda: backend.head("k"),
            lambda: backend.put("k", BODY),
            lambda: list(backend.list()),
        ]
        for call in calls:
            with pytest.raises(AccessDeniedError, match="key or the token is wrong") as caught:
                call()
            assert not caught.value.transient


def test_an_anonymous_call(az_container: Container) -> None:
    with store(az_container, {"anonymous": True}) as backend, pytest.raises((AccessDeniedError, NotFoundError)):
        backend.put("k", BODY)


def test_an_expired_token(az_container: Container) -> None:
    now = datetime.now(timezone.utc)
    expired = {"sas_token": token(az_container, now - timedelta(minutes=1))}
    with (
        store(az_container, expired) as backend,
        pytest.raises(AccessDeniedError, match="SAS token has expired: make"),
    ):
        backend.read("k", limit=1)


def test_a_token_without_the_permission(az_container: Container) -> None:
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    az_container.write("runs/k", b"body")
    with store(az_container, {"sas_token": token(az_container, soon, "r")}) as backend:
        assert backend.read("k", limit=4)[0] == b"body"
        with pytest.raises(AccessDeniedError, match="lacks the permission"):
            backend.delete("k")
    assert az_container.keys() == ["runs/k"]


def test_a_clock_that_is_wrong(backend: AzureBackend, az_proxy: FaultProxy) -> None:
    date = format_datetime(datetime.now(timezone.utc) - timedelta(minutes=47), usegmt=True)
    az_proxy.rule(Status(403, "AuthenticationFailed", (("Date", date),)))
    with pytest.raises(AccessDeniedError, match="clock of this machine is 47 minutes off"):
        backend.head("there")


def test_a_missing_container(az_container: Container) -> None:
    gone = replace(az_container, name="not-there")
    with store(gone) as backend:
        name = backend.begin("k")
        calls: list[Callable[[], object]] = [
            lambda: backend.head("k"),
            lambda: backend.read("k", limit=1),
            lambda: backend.get_range("k", 0, memoryview(bytearray(1))),
            lambda: backend.get_range("k", 0, memoryview(bytearray(0))),
            lambda: list(backend.list()),
            lambda: list(backend.uploads()),
            lambda: backend.delete("k"),
            lambda: backend.put("k", BODY),
            lambda: backend.put("k", BODY, if_match="0x1"),
            lambda: backend.put_part("k", name, 1, 0, BODY),
            lambda: backend.complete("k", name, [PartReceipt(1, 0, 4, block_id(name, 1, 4))]),
        ]
        for call in calls:
            with pytest.raises(NotFoundError, match="container not-there does not exist in the account devstore"):
                call()


def test_a_lease_of_somebody_else(az_container: Container) -> None:
    az_container.write("runs/k", b"body")
    with az_container.server.client() as client, store(az_container) as backend:
        client.get_blob_client(az_container.name, "runs/k").acquire_lease(15)
        with pytest.raises(AccessDeniedError, match="lease"):
            backend.put("k", BODY)
        with pytest.raises(AccessDeniedError, match="lease"):
            backend.delete("k")


def test_snapshots_are_not_deleted(az_container: Container) -> None:
    az_container.write("runs/k", b"body")
    with az_container.server.client() as client, store(az_container) as backend:
        client.get_blob_client(az_container.name, "runs/k").create_snapshot()
        with pytest.raises(StorageError, match="delete them first") as caught:
            backend.delete("k")
        assert not caught.value.transient
        assert backend.read("k", limit=4)[0] == b"body"
