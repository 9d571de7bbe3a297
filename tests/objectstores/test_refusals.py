"""The store refuses for good: credentials, clocks, permissions, a bucket or container that is not there.

Nothing is tried again, the error says what to do and to which key, and what is allowed still works.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from s3dlio import CheckpointStore
from s3dlio.cli import main
from s3dlio.engine.errors import AccessDeniedError, NotFoundError
from tests.faults import states
from tests.objectstores.checks import new, old, unharmed
from tests.objectstores.places import Place
from tests.servers.azurite import Container
from tests.servers.faults import Status

WRONG_KEY = base64.b64encode(b"a key that the account does not have").decode()
CALLS: dict[str, Callable[[CheckpointStore], object]] = {
    "save": lambda store: store.save(2, old()),
    "load": lambda store: store.load(1),
    "list": lambda store: store.list(),
    "delete": lambda store: store.delete(1),
}
CODES = {
    "InvalidAccessKeyId": (403, "does not know this access key"),
    "SignatureDoesNotMatch": (403, "secret access key does not fit"),
    "ExpiredToken": (400, "session token has expired"),
    "RequestTimeTooSkewed": (403, "clock is wrong"),
    "AccessDenied": (403, "the credentials do not allow it"),
}


def sas(place: Place, *, hours: float = 1.0, **permissions: bool) -> str:
    """A token for the container."""
    assert isinstance(place.where, Container)
    now = datetime.now(timezone.utc)
    return generate_container_sas(
        place.where.server.account,
        place.where.name,
        account_key=place.where.server.account_key,
        permission=ContainerSasPermissions(**permissions),
        start=now - timedelta(days=1),
        expiry=now + timedelta(hours=hours),
    )


def refuses(place: Place, store: CheckpointStore, told: str, *calls: str) -> None:
    """Each call fails at once with the text ``told``."""
    for call in calls or CALLS:
        with pytest.raises(AccessDeniedError, match=told) as caught:
            CALLS[call](store)
        assert not caught.value.transient
        assert place.where.name in str(caught.value)


@pytest.mark.parametrize("site", ["s3"], indirect=True)
@pytest.mark.parametrize("code", CODES)
def test_what_s3_says_of_credentials(place: Place, code: str) -> None:
    """LocalStack checks none, so the proxy answers for it."""
    status, told = CODES[code]
    with place.open() as store:
        store.save(1, old())
        rule = place.proxy.rule(Status(status, code), times=None)
        with place.open() as refused:
            refuses(place, refused, told)
        assert rule.fired == len(CALLS)  # each asked once
        place.proxy.clear()
        unharmed(place, store, [1])


@pytest.mark.parametrize("site", ["az"], indirect=True)
@pytest.mark.parametrize(
    ("credential", "told"),
    [
        (lambda _: {"account_key": WRONG_KEY}, "the key or the token is wrong"),
        (lambda place: {"sas_token": sas(place, hours=-1, read=True, list=True)}, "the SAS token has expired"),
        (lambda _: {"anonymous": True}, "container needs a credential|does not allow|key or the token is wrong"),
    ],
    ids=["wrong key", "expired token", "none"],
)
def test_wrong_credentials_for_azure(
    place: Place, credential: Callable[[Place], dict[str, Any]], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.open() as store:
        store.save(1, old())
        place.proxy.clear()
        with place.open(options={"account_key": None, **credential(place)}) as refused:
            refuses(place, refused, told)
        assert len(place.proxy.log) == len(CALLS)
        unharmed(place, store, [1])


@pytest.mark.parametrize("site", ["az"], indirect=True)
def test_a_clock_that_azure_does_not_accept(place: Place) -> None:
    with place.open() as store:
        store.save(1, old())
        elsewhere = format_datetime(datetime.now(timezone.utc) - timedelta(hours=2), usegmt=True)
        place.proxy.rule(Status(403, "AuthenticationFailed", (("Date", elsewhere),)), times=None)
        refuses(place, store, "the clock of this machine is 1(19|20) minutes off")
        place.proxy.clear()
        unharmed(place, store, [1])


@pytest.mark.parametrize("site", ["az"], indirect=True)
def test_a_token_that_may_only_read(place: Place) -> None:
    """Real permissions, checked by Azurite."""
    with place.open() as store:
        store.save(1, old())
        with place.open(options={"account_key": None, "sas_token": sas(place, read=True, list=True)}) as reader:
            assert states.same(reader.load(), old())
            assert [info.step for info in reader.list()] == [1]
            refuses(place, reader, "lacks the permission|does not allow", "save", "delete")
        unharmed(place, store, [1])


def deny(place: Place, method: str) -> None:
    """Refuse one verb from now on."""
    which = place.listing if method == "LIST" else {"method": method}
    code = "AccessDenied" if place.kind == "s3" else "AuthorizationPermissionMismatch"
    place.proxy.rule(Status(403, code), times=None, **which)


def test_without_permission_to_write(place: Place) -> None:
    with place.open() as store:
        store.save(1, old())
        deny(place, "PUT")
        for state in (old(), new()):  # one request, and parts
            with pytest.raises(AccessDeniedError, match=r"do(es)? not allow|lacks the permission"):
                store.save(2, state)
        assert states.same(store.load(), old())
        unharmed(place, store, [1])
        place.proxy.clear()
        store.save(3, new())
        assert states.same(store.load(), new())


def test_without_permission_to_delete(place: Place) -> None:
    """Saves work; only what removes does not, and it removes nothing by halves."""
    with place.open() as store:
        store.save(1, old())
        deny(place, "DELETE")
        store.save(2, new())
        assert states.same(store.load(), new())
        removals: list[Callable[[], object]] = [lambda: store.delete(1), lambda: store.prune(1)]
        for remove in removals:
            with pytest.raises(AccessDeniedError, match=r"ckpt-1-.*(do(es)? not allow|lacks the permission)"):
                remove()
        unharmed(place, store, [1, 2])


def test_without_permission_to_delete_a_save_that_prunes_succeeds(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with place.open(keep_last=1) as store:
        store.save(1, old())
        deny(place, "DELETE")
        store.save(2, new())
        unharmed(place, store, [1, 2])
    assert "older checkpoints were not pruned" in caplog.text


def test_without_permission_to_list(place: Place) -> None:
    """A checkpoint whose name is known can be loaded; whatever has to find one cannot work."""
    with place.open() as store:
        info = store.save(1, old())
        deny(place, "LIST")
        with place.open() as stranger:  # a store that has saved knows the newest name already
            refuses(place, stranger, r"do(es)? not allow|lacks the permission", "save", "list", "load", "delete")
            assert states.same(stranger.load(id=info.id), old())
        place.proxy.clear()
        unharmed(place, store, [1])


def test_without_permission_to_head(place: Place) -> None:
    """What is stored is looked at before it is committed."""
    with place.open() as store:
        store.save(1, old())
        deny(place, "HEAD")
        with pytest.raises(AccessDeniedError, match=r"ckpt-2-.*(do(es)? not allow|lacks the permission)"):
            store.save(2, old())
        assert states.same(store.load(), old())
        assert [info.step for info in store.list()] == [1]
        place.proxy.clear()
        store.save(3, old())
        store.cleanup(min_age=0)
        unharmed(place, store, [1, 3])


def test_a_place_that_does_not_exist(place: Place) -> None:
    uri = place.uri.replace(place.where.name, "not-there-at-all")
    with place.open(uri=uri) as store:
        for call in CALLS.values():
            with pytest.raises(NotFoundError, match=r"(bucket|container).*does not exist.*create it") as caught:
                call(store)
            assert "not-there-at-all" in str(caught.value)
            assert not caught.value.transient
        with pytest.raises(NotFoundError, match="does not exist"):
            store.latest()


@pytest.mark.parametrize("site", ["s3"], indirect=True)
def test_ls_of_a_bucket_that_does_not_exist(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.proxy.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert main(["ls", "s3://not-there-at-all/x"]) != 0
    told = capsys.readouterr()
    assert "the bucket does not exist" in told.err
    assert "Traceback" not in told.err + told.out
