"""The suite of the contract against S3 servers: LocalStack, which verifies all, and moto, which verifies nothing."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator

import pytest

from s3dlio.engine.backends import open_backend, s3, s3_options
from s3dlio.engine.contract import Backend, Location
from s3dlio.engine.errors import AccessDeniedError, NotFoundError, StorageError
from tests.engine.conformance import KEY, Conformance, keys, store_parts, view
from tests.servers.s3_server import Bucket, S3Server

CLOCK_SLACK = 2.0


def fresh(bucket: Bucket) -> Location:
    """An empty store in ``bucket``, which all tests of a server share: it is asked for its abilities once."""
    return s3_options.parse(f"{bucket.name}/runs/{uuid.uuid4().hex}", bucket.options, {})


@pytest.fixture(scope="module")
def localstack_bucket(localstack: S3Server) -> Bucket:
    return localstack.make_bucket()


@pytest.fixture(scope="module")
def moto_bucket(moto: S3Server) -> Bucket:
    return moto.make_bucket()


class TestLocalStack(Conformance):
    clock_slack = CLOCK_SLACK

    @pytest.fixture
    def location(self, localstack_bucket: Bucket) -> Location:
        return fresh(localstack_bucket)

    @pytest.fixture(params=[s3.open_location, open_backend], ids=["bare", "wrapped"])
    def wrap(self, request: pytest.FixtureRequest) -> Callable[[Location], Backend]:
        wrapper: Callable[[Location], Backend] = request.param
        return wrapper


class TestMoto(Conformance):
    clock_slack = CLOCK_SLACK

    @pytest.fixture
    def location(self, moto_bucket: Bucket) -> Location:
        return fresh(moto_bucket)

    @pytest.fixture
    def wrap(self) -> Callable[[Location], Backend]:
        return s3.open_location

    # Where moto differs, so does the test.

    def test_an_aborted_upload_takes_no_part_and_is_not_completed(self, backend: Backend) -> None:
        """Moto fails with 500 where S3 says that there is no such upload."""
        backend.put(KEY, view(b"body"))
        name = backend.begin(KEY)
        receipts = store_parts(backend, KEY, name, b"BODY")
        backend.abort(KEY, name)
        with pytest.raises(StorageError):
            backend.put_part(KEY, name, 1, 0, view(b"BODY"))
        with pytest.raises(NotFoundError, match="upload"):
            backend.complete(KEY, name, receipts)
        assert backend.read(KEY, limit=10)[0] == b"body"

    def test_open_uploads_are_found_and_not_listed(self, backend: Backend, other: Backend) -> None:
        """Moto does not know when an upload was begun."""
        begun = {backend.begin(key): key for key in ("a/open", "a/open", "b")}
        assert {info.upload: info.key for info in other.uploads()} == begun
        assert {info.key for info in other.uploads("a/")} == {"a/open"}
        assert keys(other) == []
        for name, key in begun.items():
            other.abort(key, name)
        assert list(backend.uploads()) == []


@pytest.fixture
def store(localstack_bucket: Bucket) -> Iterator[Backend]:
    backend = s3.open_location(fresh(localstack_bucket))
    yield backend
    backend.close()


def test_listings_go_over_many_pages(store: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has up to 1000 entries; here the server is asked for three."""
    names = [f"a/{number:02d} +é&%" for number in range(8)]
    for name in names:
        store.put(name, view(b"x"))
    begun = [store.begin(name) for name in names]
    client = store._bucket.client  # type: ignore[attr-defined]
    for operation, parameter in (("list_objects_v2", "MaxKeys"), ("list_multipart_uploads", "MaxUploads")):
        call = getattr(client, operation)
        monkeypatch.setattr(client, operation, functools.partial(call, **{parameter: 3}))
    assert keys(store) == names
    assert [(info.key, info.upload) for info in store.uploads()] == list(zip(names, begun, strict=True))
    for name, upload in zip(names, begun, strict=True):
        store.abort(name, upload)


def test_neighbours_of_the_prefix_are_not_seen(localstack_bucket: Bucket) -> None:
    location = fresh(localstack_bucket)
    store = s3.open_location(location)
    prefix = location.root.partition("/")[2]
    for name in (f"{prefix}x/a", f"{prefix}", f"{prefix}/"):
        localstack_bucket.write(name, b"x")
    store.put("a", view(b"x"))
    assert keys(store) == ["a"]
    store.close()


ODD = ["..", "/", "/lead", "a/", "a/../b", "a//b", "a\\b", "b/./", "plain//"]


@pytest.mark.parametrize("prefix", ["", "runs"])
def test_objects_whose_names_are_no_keys_are_listed_and_deleted(localstack: S3Server, prefix: str) -> None:
    """In the path of a request "/" would be taken for the bucket, and by some "a/../b" for "b"."""
    bucket = localstack.make_bucket()
    begin = f"{prefix}/" if prefix else ""
    odd = ODD if prefix else [name for name in ODD if name != "/"]  # which boto3 itself takes for the bucket
    for name in (*odd, "a/b", "b", "lead"):
        bucket.write(begin + name, b"x")
    store = s3.open_location(s3_options.parse(f"{bucket.name}/{prefix}", bucket.options, {}))
    assert keys(store) == sorted([*odd, "a/b", "b", "lead"])
    for name in odd:
        store.delete(name)
        store.delete(name)
    assert keys(store) == ["a/b", "b", "lead"]
    store.close()


def test_a_refusal_to_delete_by_name_is_told(store: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    client = store._bucket.client  # type: ignore[attr-defined]
    denied = {"Errors": [{"Key": "a/", "Code": "AccessDenied", "Message": "not yours"}]}
    monkeypatch.setattr(client, "delete_objects", lambda **_: denied)
    with pytest.raises(AccessDeniedError, match=r"delete of s3://.*a/: .*AccessDenied"):
        store.delete("a/")


def test_a_store_may_be_a_whole_bucket(localstack: S3Server) -> None:
    bucket = localstack.make_bucket()
    store = s3.open_location(s3_options.parse(bucket.name, bucket.options, {}))
    store.put(KEY, view(b"x"), if_absent=True)
    assert keys(store) == bucket.keys() == [KEY]
    store.close()
