"""Any S3 server of the tests: where it is, how to sign in, and fresh buckets.

Owns no process; ``localstack``, ``moto`` and ``radosgw`` yield these records, tests use them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config

from .server import Server, Space, fresh_name


@dataclass(frozen=True, slots=True)
class S3Server(Server):
    """A running server of S3."""

    access_key: str = "test"
    secret_key: str = field(default="test", repr=False)
    region: str = "us-east-1"

    @property
    def options(self) -> dict[str, str]:
        return {
            "endpoint_url": self.endpoint,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "region": self.region,
        }

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A plain boto3 client, closed afterwards: for what a test prepares or compares, not what it tests."""
        client = _session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        try:
            yield client
        finally:
            client.close()

    def make_bucket(self, name: str | None = None) -> Bucket:
        """A new empty bucket, of a name not used before unless one is given."""
        name = name or fresh_name()
        with self.client() as client:
            client.create_bucket(Bucket=name)
        return Bucket(self, name)


@dataclass(frozen=True, slots=True)
class Bucket(Space[S3Server]):
    """A bucket of a server."""

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def keys(self) -> list[str]:
        """All keys, in order."""
        with self.server.client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
            return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def uploads(self) -> list[str]:
        """The keys of all open uploads, in order."""
        with self.server.client() as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name)
            return [found["Key"] for page in pages for found in page.get("Uploads", [])]

    def read(self, key: str) -> bytes:
        """A whole object."""
        with self.server.client() as client:
            body: bytes = client.get_object(Bucket=self.name, Key=key)["Body"].read()
            return body

    def write(self, key: str, body: bytes) -> None:
        """Store an object, whatever was there."""
        with self.server.client() as client:
            client.put_object(Bucket=self.name, Key=key, Body=body)


@functools.cache
def _session() -> Any:
    """One for all clients: the first client of a session takes 0.1 s, the next 4 ms."""
    return boto3.session.Session()
