"""What a store really does is found out once, from what it does and not from what it says."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from s3dlio.engine.backends import s3, s3_abilities, s3_errors, s3_options
from s3dlio.engine.backends.pace import Pace
from s3dlio.engine.backends.retry import RetryBackend, RetryPolicy
from s3dlio.engine.backends.s3_abilities import Abilities, ChecksumEvidence, Conditions, Mode, mode_of
from s3dlio.engine.contract import PROBE, Backend
from s3dlio.engine.errors import AccessDeniedError, ConfigError, PreconditionError, StorageError, ThrottledError
from s3dlio.leftovers import find_leftovers, remove_leftovers
from tests.engine.conformance import KEY, data, get, store_parts, view
from tests.engine.waiters import Waiters
from tests.servers.faults import Action, Hold, LostReply, Status, Truncate
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import Bucket, S3Server

ALL = ChecksumEvidence(True, True, True, True, True, True)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("found", "mode"),
    [
        (ALL, "full"),  # Amazon, LocalStack
        (ChecksumEvidence(True, True, True, True, False, True), "part"),  # refuses the object's even if it is right
        (ChecksumEvidence(True, True, True, False, False, True), "part"),  # does not compare the object's
        (ChecksumEvidence(True, True, True, True, False, False, True), "md5"),
        (ChecksumEvidence(True, True, False, wrong_md5_refused=True), "md5"),  # compares and does not say so
        (ChecksumEvidence(True, False, True, wrong_md5_refused=True), "md5"),  # echoes and does not compare
        (ChecksumEvidence(True, wrong_md5_refused=True), "md5"),  # RGW ignores the new checksums
        (ChecksumEvidence(wrong_md5_refused=True), "md5"),
        (ChecksumEvidence(True), "none"),  # moto
        (ChecksumEvidence(), "none"),
    ],
)
def test_answers_make_a_way_of_working(found: ChecksumEvidence, mode: Mode) -> None:
    assert mode_of(found) == mode


def unasked() -> s3_abilities.Probe:
    raise AssertionError("asked")


def test_amazon_is_known_and_not_asked() -> None:
    for endpoint in ("https://s3.eu-west-1.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn"):
        known = Abilities(endpoint, "bucket")
        assert known.mode(unasked) == "full"
        assert known.conditions(unasked) == Conditions(True, True)
    with pytest.raises(AssertionError):
        Abilities("https://amazonaws.com.example.org", "bucket").mode(unasked)


@pytest.fixture(scope="module")
def bucket(localstack: S3Server) -> Bucket:
    return localstack.make_bucket()


Open = Callable[[], Backend]


@pytest.fixture
def open_(bucket: Bucket, s3_proxy: FaultProxy) -> Iterator[Open]:
    """Opens a store behind the proxy, whose endpoint nobody has asked yet."""
    location = s3_options.parse(f"{bucket.name}/{uuid.uuid4().hex}", bucket.through(s3_proxy.endpoint).options, {})
    opened: list[Backend] = []

    def open_one() -> Backend:
        opened.append(s3.open_location(location))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


def write(backend: Backend) -> str:
    """Store an object of two parts and read it back; how the store has verified it."""
    body = data(6 * MIB)
    name = backend.begin(KEY)
    receipts = store_parts(backend, KEY, name, body)
    info = backend.complete(KEY, name, receipts)
    assert get(backend, KEY) == body
    assert info.verified == receipts[0].verified == backend.put("small", view(b"x")).verified
    return info.verified


def test_a_store_that_verifies_all(open_: Open, s3_proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    backend = open_()
    assert write(backend) == "crc64nvme"
    assert [info.key for info in backend.list()] == [KEY, "small"]
    assert list(backend.uploads()) == []
    (completed,) = s3_proxy.requests("POST", KEY, "uploadId")
    assert completed.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert completed.headers["x-amz-mp-object-size"] == str(6 * MIB)
    assert "x-amz-checksum-crc64nvme" in completed.headers
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_store_is_asked_once_by_all_of_the_process(open_: Open, s3_proxy: FaultProxy) -> None:
    for _ in range(2):
        write(open_())
    assert len(s3_proxy.requests("DELETE", PROBE, r"^(x-id=.*)?$")) == 1
    s3_abilities.forget()
    write(open_())
    assert len(s3_proxy.requests("DELETE", PROBE, r"^(x-id=.*)?$")) == 2


def test_reading_and_listing_ask_nothing(open_: Open, s3_proxy: FaultProxy) -> None:
    backend = open_()
    assert list(backend.list()) == []
    assert list(backend.uploads()) == []
    backend.delete(KEY)
    assert not [request for request in s3_proxy.log if request.method in ("PUT", "POST")]


def test_a_store_that_refuses_the_checksum_of_the_object(open_: Open, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(400, "InvalidRequest"), method="POST", header="x-amz-checksum-crc64nvme", times=None)
    assert write(open_()) == "crc64nvme"
    (completed,) = s3_proxy.requests("POST", KEY, "uploadId")
    assert "x-amz-checksum-crc64nvme" not in completed.headers
    assert len(s3_proxy.requests("GET", KEY, "uploadId")) == 1  # the parts are compared instead


def test_a_store_without_the_checksum_has_md5(open_: Open, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(501, "NotImplemented"), method="POST", query="uploads", header="x-amz-checksum-type")
    assert write(open_()) == "md5"
    parts = s3_proxy.requests("PUT", KEY, "partNumber")
    assert len(parts) == 2
    assert all("content-md5" in part.headers for part in parts)
    assert not any(name.startswith("x-amz-checksum") for part in parts for name in part.headers)


def test_a_store_that_verifies_nothing_is_told_once(moto: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    bucket = moto.make_bucket()
    for _ in range(2):
        backend = s3.open_location(s3_options.parse(bucket.name, bucket.options, {}))
        assert write(backend) == ""
        backend.close()
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert bucket.name in told[0].getMessage()
    assert "neither CRC-64/NVME nor MD5" in told[0].getMessage()
    assert vars(told[0])["once"] is True
    assert bucket.keys() == [KEY, "small"]


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (Status(503, "SlowDown"), StorageError),
        (Status(500, "InternalError"), StorageError),
        (Status(403, "AccessDenied"), AccessDeniedError),
        (Status(400, "ExpiredToken"), AccessDeniedError),
        (Status(400, "AuthorizationHeaderMalformed"), ConfigError),
    ],
)
@pytest.mark.parametrize("query", ["uploads", "partNumber", "uploadId"])
def test_a_failure_is_no_answer(
    open_: Open, s3_proxy: FaultProxy, action: Status, error: type[Exception], query: str
) -> None:
    backend = open_()
    s3_proxy.rule(action, path=PROBE, query=query)
    with pytest.raises(error):
        backend.put(KEY, view(b"x"))
    assert list(backend.list()) == []
    assert backend.put(KEY, view(b"x")).verified == "crc64nvme"
    assert list(backend.uploads()) == []


def test_a_failure_is_shared_by_all_lanes_that_waited(open_: Open, s3_proxy: FaultProxy, waiters: Waiters) -> None:
    """One of them asks: a store that hangs costs all of them one time-out, not one after the other."""
    backend, count = open_(), 4
    held = s3_proxy.rule(Hold(), path=PROBE, query="uploads")
    s3_proxy.rule(Status(503, "SlowDown"), path=PROBE, query="partNumber")
    with ThreadPoolExecutor(count) as lanes:
        puts = [lanes.submit(backend.put, f"k{number}", view(b"x")) for number in range(count)]
        waiters.wait(count - 1)
        held.release()
        for put in puts:
            with pytest.raises(ThrottledError, match=r"s3://.*/k\d: .*SlowDown"):
                put.result()
    assert len(s3_proxy.requests("POST", PROBE, "uploads")) == 1
    assert backend.put(KEY, view(b"x")).verified == "crc64nvme"
    assert len(s3_proxy.requests("POST", PROBE, "uploads")) == 2


def test_an_answer_that_was_cut_is_no_answer(open_: Open, s3_proxy: FaultProxy) -> None:
    backend = open_()
    s3_proxy.rule(Truncate(0), path=PROBE, query="uploads", times=2)
    with pytest.raises(StorageError, match="cut on its way") as caught:
        backend.put(KEY, view(b"x"))
    assert caught.value.transient
    patient = RetryBackend(backend, RetryPolicy(base=0.001, cap=0.002), pace=Pace(base=0.001, cap=0.002))
    assert patient.put(KEY, view(b"x")).verified == "crc64nvme"
    lost = list(backend.uploads())  # what the answers would have named
    assert [upload.key.startswith(PROBE) for upload in lost] == [True] * 2
    assert remove_leftovers(backend, find_leftovers(backend, min_age=0, now=2**40)) == 2
    assert list(backend.uploads()) == []


@pytest.mark.parametrize(
    ("action", "which", "deleted"),
    [
        (Status(503, "SlowDown"), {"query": "uploads"}, 0),
        (Status(501, "NotImplemented"), {"query": "uploads"}, 0),  # then MD5 is asked for, and the object refused
        (Status(503, "SlowDown"), {"query": "partNumber"}, 0),
        (Status(400, "InvalidRequest"), {"method": "POST", "query": "uploadId", "times": None}, 0),
        (Status(500, "InternalError"), {"method": "POST", "query": "uploadId"}, 1),
        (LostReply(), {"method": "POST", "query": "uploadId"}, 1),
        (Status(200, "nothing"), {"header": "^content-md5"}, 1),
    ],
)
def test_only_what_may_be_there_is_deleted(
    open_: Open, s3_proxy: FaultProxy, action: Action, which: dict[str, Any], deleted: int
) -> None:
    if "header" in which:
        s3_proxy.rule(Status(501, "NotImplemented"), path=PROBE, query="uploads")
    s3_proxy.rule(action, path=PROBE, **which)
    probe = open_()._bucket._probe()  # type: ignore[attr-defined]
    with contextlib.suppress(*s3_errors.FAILURES):
        probe.checksums()
    assert len(s3_proxy.requests("DELETE", PROBE, r"^(x-id=.*)?$")) == deleted


def test_what_a_killed_process_left_is_not_listed_and_is_removed(bucket: Bucket, open_: Open) -> None:
    """Neither here nor in a store that this one lies in."""
    backend = open_()
    backend.put(KEY, view(b"x"))
    inner = backend._bucket.prefix  # type: ignore[attr-defined]
    bucket.write(f"{inner}{PROBE}0123", b"")
    outer = s3.open_location(s3_options.parse(bucket.name, bucket.options, {}))
    assert [info.key for info in outer.list(inner)] == [f"{inner}{KEY}"]
    assert list(outer.list(PROBE)) == []
    outer.close()
    assert [info.key for info in backend.list()] == [KEY]
    assert [info.key for info in backend.list(PROBE)] == [f"{PROBE}0123"]
    assert find_leftovers(backend).objects == ()
    assert remove_leftovers(backend, find_leftovers(backend, min_age=0, now=2**40)) == 1
    assert [key for key in bucket.keys() if key.startswith(inner)] == [f"{inner}{KEY}"]  # noqa: SIM118 - no dict


def test_an_echo_that_is_missing_is_an_error(open_: Open, s3_proxy: FaultProxy) -> None:
    backend = open_()
    backend.put(KEY, view(b"x"))
    s3_proxy.rule(Status(201, "nothing", (("ETag", "x"),)), method="PUT", path=KEY)
    with pytest.raises(StorageError, match="stored with None") as caught:
        backend.put(KEY, view(b"x"))
    assert caught.value.transient


# Conditions


@pytest.mark.parametrize("server", ["localstack", "moto"])
def test_stores_that_keep_conditions(server: str, localstack: S3Server, moto: S3Server) -> None:
    bucket = (localstack if server == "localstack" else moto).make_bucket()
    backend = s3.open_location(s3_options.parse(bucket.name, bucket.options, {}))
    backend.put(KEY, view(b"x"), if_absent=True)
    assert s3_abilities.of(bucket.endpoint, bucket.name).conditions(unasked) == Conditions(True, True)
    assert bucket.keys() == [KEY]
    backend.close()


def test_a_store_that_does_not_is_told_and_looked_at_before(
    open_: Open, s3_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    s3_proxy.rule(Status(501, "NotImplemented"), method="PUT", header="^if-none-match", times=None)
    s3_proxy.rule(Status(412, "PreconditionFailed"), method="PUT", header="^if-match", times=None)  # as RGW does
    backend = open_()
    first = backend.put(KEY, view(b"1"), if_absent=True)
    with pytest.raises(PreconditionError, match="exists already"):
        backend.put(KEY, view(b"2"), if_absent=True)
    with pytest.raises(PreconditionError, match="not the version"):
        backend.put(KEY, view(b"2"), if_match='"other"')
    with pytest.raises(PreconditionError, match="not the version"):
        backend.put("none", view(b"2"), if_match=first.etag)
    second = backend.put(KEY, view(b"2"), if_match=first.etag)
    assert backend.head(KEY).etag == second.etag
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "does not keep If-None-Match and If-Match" in told[0]


def test_a_failure_is_no_answer_about_conditions(open_: Open, s3_proxy: FaultProxy) -> None:
    backend = open_()
    s3_proxy.rule(Status(503, "SlowDown"), method="PUT", header="^if-none-match")
    with pytest.raises(StorageError):
        backend.put(KEY, view(b"1"), if_absent=True)
    assert backend.put(KEY, view(b"1"), if_absent=True).size == 1
    with pytest.raises(PreconditionError):
        backend.put(KEY, view(b"1"), if_absent=True)


def test_a_look_before_that_fails_is_a_failure(open_: Open, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(501, "NotImplemented"), method="PUT", header="^if-none-match", times=None)
    backend = open_()
    s3_proxy.rule(Status(503, "SlowDown"), method="HEAD", path=KEY)
    with pytest.raises(StorageError):
        backend.put(KEY, view(b"1"), if_absent=True)
    assert list(backend.list()) == []
