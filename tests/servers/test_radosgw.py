"""That Ceph's gateway is what the tests believe: strict in signatures, deaf to checksums and to some conditions."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from tests.servers.s3_server import Bucket, S3Server

pytestmark = [pytest.mark.rgw, pytest.mark.slow]


@pytest.fixture
def bucket(radosgw: S3Server) -> Bucket:
    return radosgw.make_bucket()


def test_it_keeps_objects(bucket: Bucket) -> None:
    bucket.write("a/b", b"body")
    assert (bucket.keys(), bucket.read("a/b")) == (["a/b"], b"body")


def test_it_ignores_checksums(bucket: Bucket) -> None:
    with bucket.server.client() as client:
        sent = client.put_object(Bucket=bucket.name, Key="key", Body=b"body", ChecksumCRC64NVME="AAAAAAAAAAA=")
    assert "ChecksumCRC64NVME" not in sent
    assert bucket.read("key") == b"body"


def test_it_keeps_the_condition_of_a_put(bucket: Bucket) -> None:
    bucket.write("key", b"first")
    with bucket.server.client() as client, pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket.name, Key="key", Body=b"second", IfNoneMatch="*")
    assert bucket.read("key") == b"first"
