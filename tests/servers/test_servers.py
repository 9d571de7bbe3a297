"""That the servers of the tests are what the tests believe: private, and as strict as documented."""

from __future__ import annotations

import base64
import ipaddress

import psutil
import pytest
from azure.core.exceptions import HttpResponseError
from botocore.exceptions import ClientError

from tests.servers.azurite import AzureServer, Container
from tests.servers.s3_server import Bucket, S3Server


def listening(pid: int) -> set[str]:
    """Addresses that a process accepts connections on."""
    found = psutil.Process(pid).net_connections("inet")
    return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}


def test_servers_listen_on_the_loopback_only(localstack: S3Server, azurite: AzureServer, moto: S3Server) -> None:
    for server in (localstack, azurite, moto):
        addresses = listening(server.pid)
        assert addresses, server.name
        assert all(ipaddress.ip_address(address).is_loopback for address in addresses), server.name


def test_a_bucket_is_fresh_and_keeps_objects(s3_bucket: Bucket) -> None:
    assert s3_bucket.keys() == s3_bucket.uploads() == []
    s3_bucket.write("a/b", b"body")
    assert s3_bucket.keys() == ["a/b"]
    assert s3_bucket.read("a/b") == b"body"
    assert s3_bucket.uri == f"s3://{s3_bucket.name}"
    assert s3_bucket.options["endpoint_url"] == s3_bucket.endpoint


def test_moto_keeps_objects(moto: S3Server) -> None:
    bucket = moto.make_bucket()
    bucket.write("key", b"body")
    assert bucket.read("key") == b"body"


def test_localstack_verifies_crc64(s3_bucket: Bucket) -> None:
    body, right, wrong = b"123456789", 0xAE8B14860A799888, 0xAE8B14860A799889  # the algorithm's check value
    with s3_bucket.server.client() as client:
        client.put_object(Bucket=s3_bucket.name, Key="key", Body=body, ChecksumCRC64NVME=_base64(right))
        with pytest.raises(ClientError, match="BadDigest"):
            client.put_object(Bucket=s3_bucket.name, Key="key", Body=body, ChecksumCRC64NVME=_base64(wrong))


def test_localstack_keeps_conditions(s3_bucket: Bucket) -> None:
    with s3_bucket.server.client() as client:
        client.put_object(Bucket=s3_bucket.name, Key="key", Body=b"first", IfNoneMatch="*")
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=s3_bucket.name, Key="key", Body=b"second", IfNoneMatch="*")
    assert s3_bucket.read("key") == b"first"


def test_open_uploads_are_told(s3_bucket: Bucket) -> None:
    with s3_bucket.server.client() as client:
        client.create_multipart_upload(Bucket=s3_bucket.name, Key="key")
    assert s3_bucket.uploads() == ["key"]


def test_a_container_is_fresh_and_keeps_blobs(az_container: Container) -> None:
    assert az_container.keys() == []
    az_container.write("a/b", b"body")
    assert az_container.keys() == ["a/b"]
    assert az_container.read("a/b") == b"body"
    assert az_container.uri == f"az://devstoreaccount1/{az_container.name}"
    assert az_container.options["endpoint_url"] == az_container.endpoint


def test_azurite_verifies_md5(az_container: Container) -> None:
    headers = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
    with az_container.server.client() as client, pytest.raises(HttpResponseError) as caught:
        client.get_blob_client(az_container.name, "key").stage_block("YQ==", b"body", headers=headers)
    assert caught.value.status_code == 400


def test_no_key_is_shown(localstack: S3Server, azurite: AzureServer) -> None:
    assert azurite.account_key not in repr(azurite)
    assert "secret" not in repr(localstack)


def _base64(value: int) -> str:
    return base64.b64encode(value.to_bytes(8, "big")).decode()
