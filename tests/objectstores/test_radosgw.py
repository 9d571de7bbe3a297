"""A store that takes checksum headers and ignores them: Content-MD5 is used instead, and the result says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import states
from tests.objectstores.checks import commits, old
from tests.objectstores.places import MIB, SHARD, Place, put
from tests.servers.faults import FlipRequest, LostReply
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import S3Server

pytestmark = [pytest.mark.rgw, pytest.mark.slow]


@pytest.fixture
def place(radosgw: S3Server) -> Iterator[Place]:
    with FaultProxy(radosgw.endpoint) as proxy:
        yield Place("s3", radosgw.make_bucket(), proxy, "runs/a")


def test_what_is_damaged_on_its_way_is_refused_and_sent_again(place: Place) -> None:
    """A part, a small object and, of another store, a shard in one request."""
    with place.open() as store:
        assert store.save(1, old()).verified == "md5"
        rules = [
            place.proxy.rule(FlipRequest(MIB), **place.part(2)),
            place.proxy.rule(FlipRequest(20), **put("manifests/ckpt-2-")),
            place.proxy.rule(LostReply(), **place.complete),
        ]
        info = commits(place, store)
        assert [rule.fired for rule in rules] == [1, 1, 1]
        assert (info.verified, store.info(2).verified) == ("md5", "md5")
        assert store.verify(2).ok
    with place.open(multipart_threshold=64 * MIB) as store:
        place.proxy.rule(FlipRequest(MIB), **put(SHARD.replace("2", "3")))
        assert store.save(3, states.noise(3, 6)).verified == "md5"
        assert states.same(store.load(3), states.noise(3, 6))
        assert store.delete(3)
