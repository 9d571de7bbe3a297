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
from .server import Server, Space, fresh_name

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The published key of every emulator: no secret."""


@dataclass(frozen=True, slots=True)
class AzureServer(Server):
    """A running server of Azure Blob."""

    account: str = ACCOUNT
    account_key: str = field(default=KEY, repr=False)

    @property
    def options(self) -> dict[str, str]:
        return {"endpoint_url": self.endpoint, "account_key": self.account_key}

    @contextmanager
    def client(self) -> Iterator[BlobServiceClient]:
        """A plain client, closed afterwards: for what a test prepares or compares, not what it tests."""
        with BlobServiceClient(self.endpoint, credential=self.account_key) as client:
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
def running() -> Iterator[AzureServer]:
    """A server on a free port of the loopback."""
    main = process.installed("azurite/node_modules/azurite/dist/src/blob/main.js")
    node = shutil.which("node")
    if node is None:
        raise process.ServerError("Azurite needs node, which is not on the PATH: install Node.js 20 or later")

    def command(host: str, port: int, folder: Path) -> list[str]:
        place = ["--blobHost", host, "--blobPort", str(port), "--location", str(folder / "data")]
        # The SDK speaks a newer version of the protocol than the emulator knows.
        return [node, main, *place, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    with process.serving("azurite", command) as (endpoint, pid):
        yield AzureServer("Azurite", f"{endpoint}/{ACCOUNT}", pid)
