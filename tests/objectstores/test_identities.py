"""Credentials that a cloud gives to its machines and that soon end: the workers find them in the trainer's environment,
whenever they were started, and renew them. Against a server that checks tokens, over https.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import AccessDeniedError, ConfigError
from tests.faults import states
from tests.objectstores.checks import new, old
from tests.objectstores.places import SMALL
from tests.servers import azurite as azurite_server
from tests.servers import certificate, identity
from tests.servers.azurite import Container
from tests.servers.s3_server import Bucket

pytestmark = pytest.mark.slow

SOON, LONG = 60.0, 3600.0
"""Seconds to the end of a credential: the SDKs renew what has only minutes left."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container of a server that speaks https only."""
    with azurite_server.running(certificate.make(tmp_path_factory.mktemp("certificate"))) as server:
        yield server.make_container()


def use(store: CheckpointStore) -> None:
    store.save(1, old())
    store.save(2, new())
    assert states.same(store.load(), new())


def test_a_token_of_azure_is_renewed(secured: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with identity.serving(lambda: identity.azure_token(SOON)) as service:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        monkeypatch.setenv("IDENTITY_ENDPOINT", service.url)
        monkeypatch.setenv("IDENTITY_HEADER", "of the trainer")
        options = {name: value for name, value in secured.options.items() if name != "account_key"}
        with CheckpointStore(secured.uri, options=options, **SMALL) as store:
            use(store)
            asked = len(service.asked)
            assert asked > 2
            store.list()
            assert len(service.asked) > asked
    assert {headers["x-identity-header"] for headers in service.asked} == {"of the trainer"}


def test_a_token_that_has_ended(secured: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with identity.serving(lambda: identity.azure_token(-SOON)) as service:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        monkeypatch.setenv("IDENTITY_ENDPOINT", service.url)
        monkeypatch.setenv("IDENTITY_HEADER", "of the trainer")
        options = {name: value for name, value in secured.options.items() if name != "account_key"}
        with (
            CheckpointStore(f"{secured.uri}/ended", options=options, **SMALL) as store,
            pytest.raises(AccessDeniedError, match="the token is wrong or has expired"),
        ):
            store.list()


def test_a_certificate_that_nobody_vouches_for(secured: Container) -> None:
    options = {**secured.options, "verify": True}
    told = r"certificate is not trusted \(option verify"
    with (
        CheckpointStore(f"{secured.uri}/tls", options=options, **SMALL) as store,
        pytest.raises(ConfigError, match=told),
    ):
        store.list()
    with CheckpointStore(f"{secured.uri}/tls", options={**options, "verify": False}, **SMALL) as store:
        assert store.list() == []


def test_the_credentials_of_an_amazon_role_are_renewed(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = iter([SOON])
    with identity.serving(lambda: identity.amazon_role(next(lives, LONG))) as service:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", service.url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of the trainer")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_bucket.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        with CheckpointStore(s3_bucket.uri, **SMALL) as store:
            use(store)
            asked = len(service.asked)
            assert asked in (2, 3)  # once by each worker that made a client, and once more by the first
            use(store)
            assert len(service.asked) in (asked, 3)
    assert {headers.get("authorization") for headers in service.asked} == {"of the trainer"}
