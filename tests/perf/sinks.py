"""Clients of the sink: the real SDKs, set to fail at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from azure.storage.blob import BlobServiceClient, ContainerClient
from botocore.config import Config

from perf.sink import Sink

MIB = 1 << 20
BUCKET = "bucket"
_names = itertools.count()


def new_folder() -> str:
    """Where no other test has keys: a module's tests share a sink."""
    return f"folder-{next(_names)}"


@contextmanager
def s3(sink: Sink) -> Iterator[Any]:
    options = sink.s3_options
    client = boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=options["access_key_id"],
        aws_secret_access_key=options["secret_access_key"],
        region_name=options["region"],
        config=Config(
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    try:
        yield client
    finally:
        client.close()


@contextmanager
def azure(sink: Sink) -> Iterator[ContainerClient]:
    options = sink.az_options
    credential = {"account_name": "sink", "account_key": options["account_key"]}
    with BlobServiceClient(options["endpoint_url"], credential=credential, retry_total=0) as client:
        yield client.get_container_client("container")
