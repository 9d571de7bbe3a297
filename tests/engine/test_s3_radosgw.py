"""The suite of the contract against Ceph's gateway, an older store that checks signatures and ignores much else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

from s3dlio.engine.backends import s3, s3_options
from s3dlio.engine.contract import Backend, Location
from s3dlio.engine.errors import AccessDeniedError, PreconditionError
from tests.engine.conformance import KEY, Conformance, get, view
from tests.engine.test_s3_conformance import CLOCK_SLACK, fresh
from tests.servers.s3_server import Bucket, S3Server

pytestmark = [pytest.mark.rgw, pytest.mark.slow]


@pytest.fixture(scope="module")
def bucket(radosgw: S3Server) -> Bucket:
    return radosgw.make_bucket()


class TestRadosGateway(Conformance):
    clock_slack = CLOCK_SLACK

    @pytest.fixture
    def location(self, bucket: Bucket) -> Location:
        return fresh(bucket)

    @pytest.fixture
    def wrap(self) -> Callable[[Location], Backend]:
        return s3.open_location

    # Where it differs, so does the test.

    def test_if_match_has_one_winner(self, backend: Backend, other: Backend) -> None:
        """It refuses every If-Match, so that the key is looked at before: of two at one moment both may win."""
        etag = backend.put(KEY, view(b"before")).etag
        writers = [backend, other] * 4

        def attempt(number: int) -> bytes | None:
            body = b"%d" % number * 100
            try:
                writers[number].put(KEY, view(body), if_match=etag)
            except PreconditionError:
                return None
            return body

        with ThreadPoolExecutor(len(writers)) as threads:
            won = [body for body in threads.map(attempt, range(len(writers))) if body is not None]
        assert get(other, KEY) in won
        with pytest.raises(PreconditionError, match="somebody else wrote or deleted it"):
            backend.put(KEY, view(b"late"), if_match=etag)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"access_key_id": "nobody"}, "does not know this access key"),
        ({"secret_access_key": "wrong"}, "secret access key does not fit"),
        ({"anonymous": True, "access_key_id": None, "secret_access_key": None}, "credentials do not allow it"),
    ],
)
def test_wrong_credentials(bucket: Bucket, wrong: dict[str, object], told: str) -> None:
    """Which no other server of the tests checks for S3."""
    backend = s3.open_location(s3_options.parse(f"{bucket.name}/wrong", {**bucket.options, **wrong}, {}))
    calls: list[Callable[[], object]] = [
        lambda: list(backend.list()),
        lambda: backend.put(KEY, view(b"x")),
        lambda: backend.read(KEY, limit=1),
        lambda: backend.delete(KEY),
    ]
    for call in calls:
        with pytest.raises(AccessDeniedError, match=told) as caught:
            call()
        assert not caught.value.transient
    backend.close()


def test_a_clock_that_is_wrong(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(timezone.utc)
    for signer in ("botocore.auth", "botocore.crt.auth"):
        monkeypatch.setattr(f"{signer}.get_current_datetime", lambda *_, **__: now - timedelta(hours=1))
    backend = s3.open_location(s3_options.parse(f"{bucket.name}/late", bucket.options, {}))
    with pytest.raises(AccessDeniedError, match=r"this machine's clock is wrong: set it \(NTP\)"):
        list(backend.list())
    backend.close()
