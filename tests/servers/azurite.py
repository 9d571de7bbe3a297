"""Azurite, the emulator of Azure Blob, on disk: verifies MD5 and the shared key, refuses CRC-64.

Owns its settings and the handle of an account and its containers. ``make servers`` installs it. Fixtures and benchmarks
call ``running``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from azure.storage.blob import BlobServiceClient

from . import process
from .certificate import Certificate
from .server import Server, Space, fresh_name

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The published key of every emulator: no secret."""


@dataclass(frozen=True, slots=True)
class AzureServer(Server):
    """A running server of Azure Blob; ``authority``: the file by which the certificate of an https one is checked."""

    account: str = ACCOUNT
    account_key: str = field(default=KEY, repr=False)
    authority: str | None = None

    @property
    def options(self) -> dict[str, str]:
        trusted = {"verify": self.authority} if self.authority else {}
        return {"endpoint_url": self.endpoint, "account_key": self.account_key, **trusted}

    @contextmanager
    def client(self) -> Iterator[BlobServiceClient]:
        """A plain client, closed afterwards: for what a test prepares or compares, not what it tests."""
        trusted = self.authority or True
        with BlobServiceClient(self.endpoint, credential=self.account_key, connection_verify=trusted) as client:
            yield client

    def make_container(self, name: str | None = None) -> Container:
        """A new empty container, of a name not used before unless one is given."""
        name = name or fresh_name()
        with self.client() as client:
            client.create_container(name)
        return Container(self, name)


@dataclass(frozen=True, slots=True)
class Container(Space[AzureServer]):
    """A container of a server."""

    @property
    def uri(self) -> str:
        return f"az://{self.server.account}/{self.name}"

    def keys(self) -> list[str]:
        """All names of blobs, in order; uncommitted ones are not among them."""
        with self.server.client() as client:
            return [blob.name for blob in client.get_container_client(self.name).list_blobs()]

    def read(self, key: str) -> bytes:
        """A whole blob."""
        with self.server.client() as client:
            return client.get_blob_client(self.name, key).download_blob().readall()

    def write(self, key: str, body: bytes) -> None:
        """Store a blob, whatever was there."""
        with self.server.client() as client:
            client.get_blob_client(self.name, key).upload_blob(body, overwrite=True)


@contextmanager
def running(certificate: Certificate | None = None) -> Iterator[AzureServer]:
    """A server on a free port of the loopback; with a ``certificate`` it speaks https only, and takes tokens too.

    It believes any signature of a token, and checks issuer, audience and times.
    """
    main = process.installed("azurite/node_modules/azurite/dist/src/blob/main.js")
    node = shutil.which("node")
    if node is None:
        raise process.ServerError("Azurite needs node, which is not on the PATH: install Node.js 20 or later")

    def command(host: str, port: int, folder: Path) -> list[str]:
        place = ["--blobHost", host, "--blobPort", str(port), "--location", str(folder / "data")]
        # The SDK speaks a newer version of the protocol than the emulator knows.
        secure = ["--cert", certificate.chain, "--key", certificate.key, "--oauth", "basic"] if certificate else []
        return [node, main, *place, *secure, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    with process.serving("azurite", command) as (endpoint, pid):
        where = endpoint.replace("http:", "https:") if certificate else endpoint
        authority = certificate.chain if certificate else None
        yield AzureServer("Azurite", f"{where}/{ACCOUNT}", pid, authority=authority)
