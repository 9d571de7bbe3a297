"""The S3 backend while requests fail on their way: what one attempt tells, and what trying again makes of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from s3dlio.engine.backends import open_backend, s3, s3_options
from s3dlio.engine.backends.pace import Pace, Timing
from s3dlio.engine.backends.retry import RetryBackend, RetryPolicy
from s3dlio.engine.contract import Backend, Location
from s3dlio.engine.errors import (
    AccessDeniedError,
    BrokenReadError,
    ConfigError,
    CorruptError,
    NotFoundError,
    PreconditionError,
    S3dlioError,
    StorageError,
    StorageFullError,
    ThrottledError,
)
from tests.engine.conformance import KEY, data, store_parts, view
from tests.servers.faults import (
    ErrorIn200,
    FlipReply,
    FlipRequest,
    Hang,
    LostReply,
    ResetBefore,
    ResetMid,
    ResetReply,
    Status,
    Truncate,
)
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import Bucket, S3Server

MIB = 1 << 20
SOON = RetryPolicy(attempts=4, base=0.001, cap=0.002)


@pytest.fixture(scope="module")
def bucket(localstack: S3Server) -> Bucket:
    return localstack.make_bucket()


@pytest.fixture
def location(bucket: Bucket, s3_proxy: FaultProxy) -> Location:
    options = {**bucket.through(s3_proxy.endpoint).options, "read_timeout": 5}
    return s3_options.parse(f"{bucket.name}/{uuid.uuid4().hex}", options, {})


@pytest.fixture
def bare(location: Location, s3_proxy: FaultProxy) -> Iterator[Backend]:
    """One attempt a call; the server has told what it can do, and the rules see none of that."""
    backend = s3.open_location(location)
    backend.put("asked", view(b"asked"), if_absent=True)
    s3_proxy.clear()
    yield backend
    backend.close()


@pytest.fixture
def patient(bare: Backend, location: Location) -> Iterator[Backend]:
    """The same store by one that tries again."""
    backend = open_backend(location, retry=SOON, pace=Pace(base=0.001, cap=0.002))
    yield backend
    backend.close()


@pytest.mark.parametrize(
    ("action", "error", "transient"),
    [
        (Status(503, "SlowDown"), ThrottledError, True),
        (Status(503, "ServiceUnavailable"), ThrottledError, True),
        (Status(429, "TooManyRequests"), ThrottledError, True),
        (Status(500, "InternalError"), StorageError, True),
        (Status(502, "BadGateway"), StorageError, True),
        (Status(400, "RequestTimeout"), StorageError, True),
        (Status(400, "BadDigest"), StorageError, True),
        (Status(409, "OperationAborted"), StorageError, True),
        (Status(403, "AccessDenied"), AccessDeniedError, False),
        (Status(403, "InvalidAccessKeyId"), AccessDeniedError, False),
        (Status(403, "SignatureDoesNotMatch"), AccessDeniedError, False),
        (Status(403, "RequestTimeTooSkewed"), AccessDeniedError, False),
        (Status(400, "ExpiredToken"), AccessDeniedError, False),
        (Status(404, "NoSuchBucket"), NotFoundError, False),
        (Status(507, "InsufficientStorage"), StorageFullError, False),
        (ResetBefore(), StorageError, True),
        (ResetMid(70_000), StorageError, True),
        (LostReply(), StorageError, True),
        (FlipRequest(70_000), StorageError, True),
    ],
)
def test_a_put_tells_what_happened_and_to_which_key(
    bare: Backend, s3_proxy: FaultProxy, action: object, error: type[StorageError], transient: bool
) -> None:
    rule = s3_proxy.rule(action, method="PUT", path=KEY)  # type: ignore[arg-type]
    with pytest.raises(error, match=KEY) as caught:
        bare.put(KEY, view(data(MIB)))
    assert type(caught.value) is error
    assert caught.value.transient is transient
    assert rule.fired == 1
    assert len(s3_proxy.requests("PUT", KEY)) == 1  # the SDK does not try again by itself
    bare.put(KEY, view(b"after"))
    assert bare.read(KEY, limit=5)[0] == b"after"


@pytest.mark.parametrize(
    "action", [Status(503, "SlowDown"), ResetBefore(), ResetMid(3 * MIB), LostReply(), FlipRequest(4 * MIB)]
)
def test_a_part_is_sent_again(patient: Backend, s3_proxy: FaultProxy, action: object) -> None:
    rule = s3_proxy.rule(action, query="partNumber=2", times=2)  # type: ignore[arg-type]
    body = data(11 * MIB)
    name = patient.begin(KEY)
    receipts = store_parts(patient, KEY, name, body)
    assert {receipt.verified for receipt in receipts} == {"crc64nvme"}
    assert patient.complete(KEY, name, receipts).verified == "crc64nvme"
    assert rule.fired == 2
    into = bytearray(len(body))
    patient.get_range(KEY, 0, memoryview(into))
    assert into == body


def test_a_refusal_for_ever_ends_with_its_cause(patient: Backend, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(503, "SlowDown"), query="partNumber", times=None)
    name = patient.begin(KEY)
    with pytest.raises(ThrottledError, match=f"put_part 1 of '{KEY}' failed 4 times .*SlowDown"):
        patient.put_part(KEY, name, 1, 0, view(b"x"))


def test_a_hang_ends_at_the_time_out(bucket: Bucket, s3_proxy: FaultProxy) -> None:
    options = {**bucket.through(s3_proxy.endpoint).options, "read_timeout": 0.2}
    backend = s3.open_location(s3_options.parse(f"{bucket.name}/{uuid.uuid4().hex}", options, {}))
    s3_proxy.rule(Hang(), method="HEAD")
    with pytest.raises(StorageError, match="Timeout") as caught:
        backend.head(KEY)
    assert caught.value.transient
    backend.close()


# Complete


@pytest.mark.parametrize(
    "action", [Status(503, "SlowDown"), Status(500, "InternalError"), ErrorIn200(), ResetBefore(), LostReply()]
)
def test_completing_is_settled(patient: Backend, bare: Backend, s3_proxy: FaultProxy, action: object) -> None:
    body = data(6 * MIB)
    name = patient.begin(KEY)
    receipts = store_parts(patient, KEY, name, body)
    rule = s3_proxy.rule(action, method="POST", query="uploadId")  # type: ignore[arg-type]
    info = patient.complete(KEY, name, receipts)
    assert (info.size, info.verified, rule.fired) == (len(body), "crc64nvme", 1)
    assert patient.head(KEY).etag == info.etag
    assert list(patient.uploads()) == []


def test_an_error_within_a_success_is_no_success(bare: Backend, s3_proxy: FaultProxy) -> None:
    name = bare.begin(KEY)
    receipts = store_parts(bare, KEY, name, b"body")
    s3_proxy.rule(ErrorIn200(), method="POST", query="uploadId")
    with pytest.raises(StorageError) as caught:
        bare.complete(KEY, name, receipts)
    assert caught.value.transient
    with pytest.raises(NotFoundError):
        bare.head(KEY)
    bare.abort(KEY, name)


def test_a_lost_completion_is_not_taken_for_the_object_that_was_there(bare: Backend) -> None:
    bare.put(KEY, view(b"old!"))
    name = bare.begin(KEY)
    receipts = store_parts(bare, KEY, name, b"new!")
    bare.abort(KEY, name)
    with pytest.raises(NotFoundError, match="something else"):
        bare.complete(KEY, name, receipts)


@pytest.mark.parametrize("code", ["BadDigest", "InvalidPart", "InvalidRequest"])
def test_a_refused_completion_is_corruption_and_ends_there(patient: Backend, s3_proxy: FaultProxy, code: str) -> None:
    name = patient.begin(KEY)
    receipts = store_parts(patient, KEY, name, b"body")
    s3_proxy.rule(Status(400, code), method="POST", query="uploadId")
    with pytest.raises(CorruptError, match=KEY):
        patient.complete(KEY, name, receipts)
    assert len(s3_proxy.requests("POST", query="uploadId")) == 1
    patient.abort(KEY, name)


def test_a_part_that_is_not_what_its_receipt_says_is_found_by_the_store(bare: Backend) -> None:
    name = bare.begin(KEY)
    receipts = store_parts(bare, KEY, name, data(6 * MIB))
    bare.put_part(KEY, name, 2, 5 * MIB, view(data(MIB, seed=2)))  # replaces the part after its receipt was given
    with pytest.raises(CorruptError, match=KEY):
        bare.complete(KEY, name, receipts)
    bare.abort(KEY, name)


# Conditions


def test_a_lost_answer_to_a_conditional_put_is_a_failed_condition(patient: Backend, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(LostReply(), method="PUT", path=KEY)
    with pytest.raises(PreconditionError, match=KEY):
        patient.put(KEY, view(b"mine"), if_absent=True)
    assert patient.read(KEY, limit=4)[0] == b"mine"  # whoever asked compares


def test_a_conflict_of_conditions_is_tried_again(patient: Backend, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(409, "ConditionalRequestConflict"), method="PUT", path=KEY)
    assert patient.put(KEY, view(b"mine"), if_absent=True).size == 4


def test_if_match_of_a_key_that_is_gone(bare: Backend, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(404, "NoSuchKey"), method="PUT", path=KEY)
    with pytest.raises(PreconditionError, match="wrote or deleted"):
        bare.put(KEY, view(b"x"), if_match='"tag"')
    s3_proxy.rule(Status(404, "NoSuchBucket"), method="PUT", path=KEY)
    with pytest.raises(NotFoundError, match="bucket"):
        bare.put(KEY, view(b"x"), if_match='"tag"')


# Downloads


@pytest.mark.parametrize("action", [Truncate, ResetReply])
@pytest.mark.parametrize("reached", [0, 1, MIB + 77])
def test_a_broken_download_tells_how_far_it_came(
    bare: Backend, s3_proxy: FaultProxy, action: Callable[[int], Truncate | ResetReply], reached: int
) -> None:
    body = data(3 * MIB)
    bare.put(KEY, view(body))
    s3_proxy.rule(action(reached), method="GET", path=KEY)
    into = bytearray(2 * MIB)
    with pytest.raises(BrokenReadError, match=KEY) as caught:
        bare.get_range(KEY, 99, memoryview(into))
    assert caught.value.transient
    assert caught.value.reached <= reached
    if action is Truncate:
        assert caught.value.reached >= reached // MIB * MIB  # whole slices, and what the SDK gave of the last
    assert into[: caught.value.reached] == body[99 : 99 + caught.value.reached]
    bare.get_range(KEY, 99, memoryview(into))
    assert into == body[99 : 99 + len(into)]


def test_a_broken_download_goes_on_where_it_ended(patient: Backend, s3_proxy: FaultProxy) -> None:
    body = data(4 * MIB)
    patient.put(KEY, view(body))
    rule = s3_proxy.rule(Truncate(MIB + 5), method="GET", path=KEY, times=3)
    into = bytearray(len(body))
    patient.get_range(KEY, 0, memoryview(into))
    assert into == body
    assert rule.fired == 3
    ranges = [request.headers["range"] for request in s3_proxy.requests("GET", KEY)]
    assert len(ranges) == 4
    assert ranges == sorted(set(ranges), key=lambda text: int(text[len("bytes=") :].split("-")[0]))


def test_a_stream_goes_on_where_it_ended(patient: Backend, s3_proxy: FaultProxy) -> None:
    """With every byte that had arrived, also those of a piece that did not become whole."""
    body = data(4 * MIB)
    patient.put(KEY, view(body))
    rule = s3_proxy.rule(Truncate(MIB + 5), method="GET", path=KEY, times=2)
    pieces = patient.stream_range(KEY, 7, len(body) - 7, memoryview(bytearray(300_000)))
    assert b"".join(map(bytes, pieces)) == body[7:]
    assert rule.fired == 2
    begins = [
        int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
        for request in s3_proxy.requests("GET", KEY)
    ]
    assert begins == [7, 7 + MIB + 5, 7 + 2 * (MIB + 5)]


def test_a_stream_that_breaks_for_ever_is_told(bare: Backend, s3_proxy: FaultProxy) -> None:
    bare.put(KEY, view(data(2 * MIB)))
    s3_proxy.rule(Truncate(MIB + 5), method="GET", path=KEY)
    pieces = bare.stream_range(KEY, 0, 2 * MIB, memoryview(bytearray(MIB)))
    assert len(next(pieces)) == MIB
    assert len(next(pieces)) == 5
    with pytest.raises(
        BrokenReadError, match=rf"{KEY}: the download ended after {MIB + 5} of {2 * MIB} bytes"
    ) as caught:
        next(pieces)
    assert caught.value.reached == MIB + 5


@pytest.mark.parametrize("keeps", [True, False])
def test_a_broken_download_never_goes_on_with_another_version(
    bare: Backend, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """Not even where the store takes no notice of the condition."""
    client = bare._bucket.client  # type: ignore[attr-defined]
    get_object = client.get_object
    if not keeps:
        monkeypatch.setattr(client, "get_object", lambda IfMatch="", **given: get_object(**given))
    etag = bare.put(KEY, view(data(3 * MIB))).etag
    s3_proxy.rule(Truncate(MIB + 5), method="GET", path=KEY)

    def replace_it(_: float) -> None:
        bare.put(KEY, view(data(3 * MIB, seed=2)))

    into = bytearray(3 * MIB)
    with pytest.raises(PreconditionError, match=rf"{KEY} .*was overwritten while it was read") as caught:
        RetryBackend(bare, SOON, Timing(replace_it)).get_range(KEY, 0, memoryview(into))
    assert not caught.value.transient
    assert into == data(3 * MIB)[: MIB + 5] + bytes(2 * MIB - 5)
    conditions = [request.headers.get("if-match") for request in s3_proxy.requests("GET", KEY)]
    assert conditions == [None, etag if keeps else None]


@pytest.mark.parametrize("action", [Truncate(2), ResetReply(2), FlipReply(2)])
def test_a_small_object_is_right_or_read_again(
    bare: Backend, patient: Backend, s3_proxy: FaultProxy, action: object
) -> None:
    bare.put(KEY, view(b"manifest"))
    for _ in range(2):
        s3_proxy.rule(action, method="GET", path=KEY)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=KEY) as caught:
        bare.read(KEY, limit=100)
    assert caught.value.transient
    assert patient.read(KEY, limit=100)[0] == b"manifest"


def test_a_store_that_serves_no_ranges_is_told(bare: Backend, s3_proxy: FaultProxy) -> None:
    bare.put(KEY, view(b"0123456789"))
    s3_proxy.rule(Status(200, "nothing"), method="GET", path=KEY)
    with pytest.raises(S3dlioError, match="serves no ranges"):
        bare.get_range(KEY, 2, memoryview(bytearray(3)))


# Listings


@pytest.mark.parametrize("operation", ["list", "uploads"])
def test_listings_are_tried_again(patient: Backend, s3_proxy: FaultProxy, operation: str) -> None:
    patient.put("x/1", view(b"1"))
    name = patient.begin("x/2")
    s3_proxy.rule(Status(503, "SlowDown"), method="GET")
    found = [info.key for info in getattr(patient, operation)("x/")]
    assert found == (["x/1"] if operation == "list" else ["x/2"])
    patient.abort("x/2", name)


# Whole stores


def test_a_bucket_that_does_not_exist_is_told(localstack: S3Server) -> None:
    backend = s3.open_location(s3_options.parse(f"none-{uuid.uuid4().hex[:8]}", localstack.options, {}))
    calls: list[Callable[[], object]] = [
        lambda: list(backend.list()),
        lambda: backend.put(KEY, view(b"x")),
        lambda: backend.begin(KEY),
        lambda: backend.read(KEY, limit=1),
        lambda: backend.delete(KEY),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match="the bucket does not exist"):
            call()
    with pytest.raises(NotFoundError):
        backend.head(KEY)
    backend.close()


def test_nobody_listens(bucket: Bucket) -> None:
    with FaultProxy(bucket.endpoint) as proxy:
        endpoint = proxy.endpoint
    backend = s3.open_location(s3_options.parse(bucket.name, bucket.through(endpoint).options, {}))
    with pytest.raises(StorageError, match=endpoint) as caught:
        backend.put(KEY, view(b"x"))
    assert caught.value.transient
    backend.close()


def test_a_redirect_is_a_matter_of_configuration(bare: Backend, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(301, "PermanentRedirect"), method="GET", path=KEY, times=None)
    with pytest.raises(ConfigError, match="region or endpoint_url"):
        bare.read(KEY, limit=1)


def test_an_answer_that_lacks_what_is_needed(bare: Backend, s3_proxy: FaultProxy) -> None:
    s3_proxy.rule(Status(200, "nothing"), method="HEAD", path=KEY)
    with pytest.raises(StorageError, match=r"the store's answer lacks '(ETag|LastModified)'"):
        bare.head(KEY)


def test_an_answer_that_is_no_answer_of_s3(bare: Backend, s3_proxy: FaultProxy) -> None:
    bare.put(KEY, view(b"x"))
    s3_proxy.rule(Truncate(10), method="GET", query="list-type")
    with pytest.raises(StorageError) as caught:
        list(bare.list())
    assert caught.value.transient
