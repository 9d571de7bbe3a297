"""A bucket or a container behind a fault proxy, as the fault catalogue sees both: how to open it, what lies in it, and
which requests carry what.

Owns the differences between S3 and Azure on the wire; breaks nothing itself: tests make rules of the requests that it
names (``place.proxy.rule(action, **place.part(2))``).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from s3dlio import CheckpointStore
from tests.servers.azurite import Container
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import Bucket

MIB = 1 << 20
SMALL: dict[str, Any] = {"memory": 64 * MIB, "workers": 2, "chunk_size": 5 * MIB, "multipart_threshold": 2 * MIB}
"""Parts as small as S3 takes them; one pool for all tests of a module."""

Which = dict[str, Any]
"""The arguments of ``FaultProxy.rule`` and ``requests`` that choose requests."""

SHARD = r"ckpt-2-.*rank-0\.bin$"
INDEX = r"ckpt-2-.*rank-0\.idx$"
MANIFEST = r"manifests/ckpt-2-"
POINTER = r"manifests/latest\.json$"


@dataclass(frozen=True)
class Place:
    """``where`` the store is, in truth, below ``prefix``, and the ``proxy`` before it; ``kind`` is ``s3`` or ``az``."""

    kind: str
    where: Bucket | Container
    proxy: FaultProxy
    prefix: str

    @property
    def uri(self) -> str:
        return f"{self.where.uri}/{self.prefix}"

    @property
    def options(self) -> dict[str, str]:
        """Options of a store behind the proxy."""
        return self.where.through(self.proxy.endpoint).options

    def open(
        self, *, uri: str | None = None, options: dict[str, Any] | None = None, **settings: Any
    ) -> CheckpointStore:
        """A store behind the proxy in the small pool; ``options`` replace the proxy's, ``None`` takes one away."""
        chosen = {name: value for name, value in {**self.options, **(options or {})}.items() if value is not None}
        return CheckpointStore(uri or self.uri, options=chosen, **{**SMALL, **settings})

    # What lies there, asked without the proxy

    def keys(self, text: str = "") -> list[str]:
        """All keys with ``text`` in them, the store's prefix left out."""
        start = f"{self.prefix}/"
        found = [key.removeprefix(start) for key in self.where.keys() if key.startswith(start)]  # noqa: SIM118 - no dict
        return [key for key in found if text in key]

    def uploads(self) -> list[str]:
        """The keys that have open uploads, or in Azure uncommitted blocks only."""
        if isinstance(self.where, Bucket):
            return [key for key in self.where.uploads() if key.startswith(f"{self.prefix}/")]
        with self.where.server.client() as client:
            container = client.get_container_client(self.where.name)
            blobs = container.list_blobs(name_starts_with=f"{self.prefix}/", include=["uncommittedblobs"])
            names = [blob.name for blob in blobs]
        return sorted(set(names) - set(self.where.keys()))

    def read(self, key: str) -> bytes:
        return self.where.read(f"{self.prefix}/{key}")

    # Requests

    @property
    def busy(self) -> str:
        """The code of a 503."""
        return "SlowDown" if self.kind == "s3" else "ServerBusy"

    def part(self, number: int | None = None) -> Which:
        """Storing this part of the shard of step 2, or any."""
        if self.kind == "s3":
            return {"method": "PUT", "path": SHARD, "query": rf"partNumber={number or ''}{'(&|$)' if number else ''}"}
        # Azure's block is named by base64 of the upload (24 characters), "-", the number (5 digits) and the size.
        digits = "" if number is None else "LTAw" + base64.b64encode(b"%03d" % number).decode()
        return {"method": "PUT", "path": SHARD, "query": f"blockid=.*{digits}"}

    @property
    def complete(self) -> Which:
        """Making the shard of step 2 of its parts."""
        if self.kind == "s3":
            return {"method": "POST", "path": SHARD, "query": "uploadId="}
        return {"method": "PUT", "path": SHARD, "query": "comp=blocklist"}

    @property
    def listing(self) -> Which:
        """Listing keys."""
        return {"method": "GET", "query": "list-type=2" if self.kind == "s3" else "comp=list"}

    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of every read of the shard of step 2 that went through the proxy, in order."""
        asked = [
            request.headers.get("range") or request.headers["x-ms-range"]
            for request in self.proxy.requests("GET", SHARD)
        ]
        return [(int(first), int(last)) for first, last in (text.removeprefix("bytes=").split("-") for text in asked)]


def put(path: str) -> Which:
    """Storing an object in one request."""
    return {"method": "PUT", "path": path}


def get(path: str) -> Which:
    """Reading an object or a range of it."""
    return {"method": "GET", "path": path}
