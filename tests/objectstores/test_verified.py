"""How a store verified what it received is part of the answer, whether it did so or not."""

from __future__ import annotations

import pytest

from tests.faults import states
from tests.objectstores.checks import new, old
from tests.objectstores.places import MIB, Place
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import S3Server


def test_a_store_that_verifies(place: Place) -> None:
    """Azurite keeps the MD5 of a small blob, by which whoever reads it whole can tell."""
    with place.open() as store:
        assert store.save(1, new()).verified == "crc64nvme"
        assert store.save(2, old()).verified == "crc64nvme"
        small = store.save(3, b"small").verified
        assert small == ("crc64nvme" if place.kind == "s3" else "md5")
        assert [info.verified for info in store.list()] == ["crc64nvme", "crc64nvme", small]


def test_a_store_that_verifies_nothing(moto: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, and all works; what is damaged on the way would be found by the loading."""
    bucket = moto.make_bucket()
    with FaultProxy(moto.endpoint) as proxy:
        place = Place("s3", bucket, proxy, "runs/a")
        with place.open(multipart_threshold=MIB // 2) as store:
            for step in (1, 2):
                info = store.save(step, old())
                assert info.verified == ""
                assert states.same(store.load(), old())
            assert store.verify(1).ok
            assert [info.verified for info in store.list()] == ["", ""]
            assert store.delete(1)
    told = [record.getMessage() for record in caplog.records if "verifies neither" in record.getMessage()]
    assert len(told) == 1
    assert f"s3://{bucket.name} at {proxy.endpoint}" in told[0]
