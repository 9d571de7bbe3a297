"""Azure stores for tests: the container of a test as a bare backend, by any endpoint and credential."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta

from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from s3dlio.engine.backends import azure, azure_options
from s3dlio.engine.backends.azure import AzureBackend
from s3dlio.engine.contract import Location
from tests.servers.azurite import Container


def location(container: Container, options: Mapping[str, object] | None = None, prefix: str = "runs") -> Location:
    """The store below ``prefix``; ``options`` replace those of the container, but for its endpoint."""
    rest = f"{container.uri.removeprefix('az://')}/{prefix}"
    credential = {"account_key": container.server.account_key}
    given = credential if options is None or not options.keys() & {"sas_token", "anonymous"} else {}
    return azure_options.parse(rest, {"endpoint_url": container.endpoint, **given, **(options or {})}, {})


@contextmanager
def store(
    container: Container, options: Mapping[str, object] | None = None, prefix: str = "runs"
) -> Iterator[AzureBackend]:
    """The bare backend: each call is one attempt."""
    opened = azure.open_location(location(container, options, prefix))
    try:
        yield opened
    finally:
        opened.close()


def token(container: Container, expires: datetime, permission: str = "rwdlc") -> str:
    """A SAS of the container."""
    permissions = ContainerSasPermissions(**{_NAMES[letter]: True for letter in permission})
    return generate_container_sas(
        container.server.account,
        container.name,
        account_key=container.server.account_key,
        permission=permissions,
        start=expires - timedelta(hours=2),
        expiry=expires,
    )


_NAMES = {"r": "read", "w": "write", "d": "delete", "l": "list", "c": "create"}
