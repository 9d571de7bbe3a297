"""What is lost, cut or changed between the ``azure`` backend and a store: told truthfully, and mended by retries."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from s3dlio.engine.backends import open_backend
from s3dlio.engine.backends.azure import SMALL, AzureBackend
from s3dlio.engine.backends.azure_client import Client
from s3dlio.engine.backends.pace import Timing
from s3dlio.engine.backends.retry import RetryBackend, RetryPolicy
from s3dlio.engine.contract import Backend, ObjectInfo
from s3dlio.engine.errors import (
    BrokenReadError,
    CorruptError,
    NotFoundError,
    PreconditionError,
    StorageError,
    ThrottledError,
)
from tests.engine.azure_stores import location, store
from tests.engine.conformance import data, view
from tests.servers.azurite import Container
from tests.servers.faults import (
    Action,
    FlipReply,
    FlipRequest,
    LostReply,
    ResetBefore,
    ResetMid,
    ResetReply,
    Status,
    Truncate,
)
from tests.servers.proxy import FaultProxy

BODY = data(3 << 20)
BUSY = Status(503, "ServerBusy")
LOST: list[Action] = [ResetBefore(), ResetMid(at=1000), LostReply(), Status(500, "InternalError"), BUSY]


def names(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


@pytest.fixture
def through(az_container: Container, az_proxy: FaultProxy) -> Container:
    return az_container.through(az_proxy.endpoint)


@pytest.fixture
def bare(through: Container) -> Iterator[AzureBackend]:
    """One attempt a call, and the endpoint has been asked for its checksums."""
    with store(through) as opened:
        opened.put("first", view(b"x"))
        yield opened


@pytest.fixture
def wrapped(through: Container) -> Iterator[Backend]:
    opened = open_backend(location(through), retry=RetryPolicy(attempts=10, base=0.01, cap=0.02))
    opened.put("first", view(b"x"))
    yield opened
    opened.close()


# Parts and puts


@pytest.mark.parametrize("action", LOST, ids=names(LOST))
def test_a_part_whose_request_fails_is_sent_again(wrapped: Backend, az_proxy: FaultProxy, action: Action) -> None:
    rule = az_proxy.rule(action, method="PUT", query="comp=block&", times=2)
    name = wrapped.begin("k")
    part = wrapped.put_part("k", name, 1, 0, view(BODY))
    assert rule.fired == 2
    assert wrapped.complete("k", name, [part]).verified == "crc64nvme"
    into = bytearray(len(BODY))
    wrapped.get_range("k", 0, memoryview(into))
    assert into == BODY


@pytest.mark.parametrize("action", LOST, ids=names(LOST))
def test_a_put_whose_request_fails_is_sent_again(wrapped: Backend, az_proxy: FaultProxy, action: Action) -> None:
    rule = az_proxy.rule(action, method="PUT", path="runs/k$", times=2)
    assert wrapped.put("k", view(BODY)).size == len(BODY)
    assert rule.fired == 2
    assert wrapped.read("k", limit=len(BODY))[0] == BODY


@pytest.mark.parametrize("size", [1000, SMALL, SMALL + 1, len(BODY)])
def test_a_put_that_changes_on_the_way_is_refused(
    bare: AzureBackend, wrapped: Backend, az_proxy: FaultProxy, size: int
) -> None:
    rule = az_proxy.rule(FlipRequest(at=size // 2), method="PUT", path="runs/k$", times=2)
    with pytest.raises(StorageError, match="did not arrive as they were sent") as caught:
        bare.put("k", view(BODY[:size]))
    assert caught.value.transient
    with pytest.raises(NotFoundError):
        bare.head("k")
    assert wrapped.put("k", view(BODY[:size])).verified == ("md5" if size <= SMALL else "crc64nvme")
    assert rule.fired == 2
    assert bare.read("k", limit=size)[0] == BODY[:size]


@pytest.mark.parametrize("cuts", [[], [5, 1 << 20]])
def test_a_part_that_changes_on_the_way_is_refused(bare: AzureBackend, az_proxy: FaultProxy, cuts: list[int]) -> None:
    az_proxy.rule(FlipRequest(at=2 << 20), method="PUT", query="comp=block&")
    name = bare.begin("k")
    edges = [0, *cuts, len(BODY)]
    segments = [memoryview(BODY)[begin:end] for begin, end in itertools.pairwise(edges)]
    with pytest.raises(StorageError, match=r"part 1 of .*did not arrive") as caught:
        bare.put_part("k", name, 1, 0, segments)
    assert caught.value.transient
    assert list(bare.uploads()) == []
    part = bare.put_part("k", name, 1, 0, segments)
    assert part.crc64 is not None
    assert bare.complete("k", name, [part]).size == len(BODY)


def test_a_lost_reply_of_a_conditional_put_is_told_as_a_refusal(
    bare: AzureBackend, wrapped: Backend, az_proxy: FaultProxy
) -> None:
    """Whoever asked compares what is stored."""
    az_proxy.rule(LostReply(), method="PUT", path="runs/k$")
    with pytest.raises(PreconditionError):
        wrapped.put("k", view(b"mine"), if_absent=True)
    assert bare.read("k", limit=9)[0] == b"mine"


# Completing


def finish(store: Backend, body: list[memoryview]) -> ObjectInfo:
    """Store ``k`` by an upload of its own."""
    name = store.begin("k")
    return store.complete("k", name, [store.put_part("k", name, 1, 0, body)])


def test_a_lost_reply_of_a_commit_is_settled(bare: AzureBackend, wrapped: Backend, az_proxy: FaultProxy) -> None:
    name = bare.begin("k")
    part = bare.put_part("k", name, 1, 0, view(BODY))
    rule = az_proxy.rule(LostReply(), method="PUT", query="comp=blocklist")
    with pytest.raises(StorageError) as caught:
        bare.complete("k", name, [part])
    assert caught.value.transient
    assert rule.fired == 1
    found = bare.head("k")
    assert wrapped.complete("k", name, [part]) == found
    assert len(az_proxy.requests("PUT", query="comp=blocklist")) == 1


def test_a_commit_whose_blocks_are_gone_is_not_settled_by_the_blob_of_another(bare: AzureBackend) -> None:
    name = bare.begin("k")
    part = bare.put_part("k", name, 1, 0, view(BODY))
    other = finish(bare, view(BODY))  # of the same size, and its commit drops the blocks
    with pytest.raises(NotFoundError, match=f"no open upload {name}: its blocks expired, or somebody else"):
        bare.complete("k", name, [part])
    assert bare.head("k") == other


def test_a_commit_without_its_parts_makes_nothing(bare: AzureBackend) -> None:
    name = bare.begin("k")
    part = bare.put_part("k", bare.begin("other"), 1, 0, view(BODY))
    forged = replace(part, tag=part.tag.replace(part.tag[:24], name))
    with pytest.raises(NotFoundError, match="no open upload"):
        bare.complete("k", name, [forged])
    with pytest.raises(NotFoundError):
        bare.head("k")


def test_a_finished_upload_of_another_size_is_corrupt(bare: AzureBackend) -> None:
    name = bare.begin("k")
    parts = [bare.put_part("k", name, 1, 0, view(b"12")), bare.put_part("k", name, 2, 2, view(b"34"))]
    bare.complete("k", name, parts)
    with pytest.raises(CorruptError, match="holds 4 bytes after parts of 2"):
        bare.complete("k", name, parts[:1])


def test_an_empty_upload_completes_once(bare: AzureBackend) -> None:
    name = bare.begin("k")
    part = bare.put_part("k", name, 1, 0, [])
    info = bare.complete("k", name, [part])
    assert info.size == 0
    assert bare.complete("k", name, [part]) == info


# Reads


CUTS: list[Action] = [Truncate(at=1_500_000), ResetReply(at=2_500_000)]


@pytest.mark.parametrize("action", CUTS, ids=names(CUTS))
def test_a_range_that_breaks_off_tells_how_far_it_came(
    bare: AzureBackend, az_proxy: FaultProxy, action: Action
) -> None:
    """Of a reset, which may cost bytes that have arrived, all may be lost: then it is no broken read."""
    bare.put("k", view(BODY))
    az_proxy.rule(action, method="GET")
    into = bytearray(len(BODY) - 7)
    with pytest.raises(BrokenReadError if isinstance(action, Truncate) else StorageError) as caught:
        bare.get_range("k", 7, memoryview(into))
    reached = getattr(caught.value, "reached", 0)
    assert caught.value.transient
    assert reached <= 2_500_000
    assert into[:reached] == BODY[7 : 7 + reached]


def test_a_range_goes_on_where_it_broke_off(wrapped: Backend, az_proxy: FaultProxy) -> None:
    wrapped.put("k", view(BODY))
    rule = az_proxy.rule(Truncate(at=(1 << 20) + 5), method="GET", times=2)
    into = bytearray(len(BODY))
    wrapped.get_range("k", 0, memoryview(into))
    assert into == BODY
    assert rule.fired == 2
    ranges = [request.headers["x-ms-range"] for request in az_proxy.requests("GET")]
    assert ranges == [f"bytes={begin}-{len(BODY) - 1}" for begin in (0, (1 << 20) + 5, (2 << 20) + 10)]


def test_a_stream_goes_on_where_it_broke_off(wrapped: Backend, az_proxy: FaultProxy) -> None:
    """With every byte that had arrived, also those of a piece that did not become whole."""
    wrapped.put("k", view(BODY))
    rule = az_proxy.rule(Truncate(at=(1 << 20) + 5), method="GET", times=2)
    pieces = wrapped.stream_range("k", 0, len(BODY), memoryview(bytearray(300_000)))
    assert b"".join(map(bytes, pieces)) == BODY
    assert rule.fired == 2
    ranges = [request.headers["x-ms-range"] for request in az_proxy.requests("GET")]
    assert ranges == [f"bytes={begin}-{len(BODY) - 1}" for begin in (0, (1 << 20) + 5, (2 << 20) + 10)]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_broken_range_never_goes_on_with_another_version(
    bare: AzureBackend, az_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """Not even where the endpoint takes no notice of the condition."""
    download = Client.download
    if not keeps:
        monkeypatch.setattr(Client, "download", lambda self, *given: download(self, *given[:3]))
    etag = bare.put("k", view(BODY)).etag
    az_proxy.rule(Truncate(at=(1 << 20) + 5), method="GET")

    def replace_it(_: float) -> None:
        bare.put("k", view(BODY[::-1]))

    into = bytearray(len(BODY))
    with pytest.raises(PreconditionError, match="k was overwritten while it was read") as caught:
        RetryBackend(bare, RetryPolicy(), Timing(replace_it)).get_range("k", 0, memoryview(into))
    assert not caught.value.transient
    assert into == BODY[: (1 << 20) + 5] + bytes(len(BODY) - (1 << 20) - 5)
    conditions = [request.headers.get("if-match") for request in az_proxy.requests("GET")]
    assert conditions == [None, f'"{etag}"' if keeps else None]


def test_a_range_whose_answer_never_came_is_no_broken_read(bare: AzureBackend, az_proxy: FaultProxy) -> None:
    bare.put("k", view(BODY))
    az_proxy.rule(BUSY, method="GET")
    with pytest.raises(ThrottledError):
        bare.get_range("k", 0, memoryview(bytearray(10)))


@pytest.mark.parametrize("size", [1, 5000, SMALL])
def test_a_small_blob_that_changes_on_the_way_is_read_again(
    bare: AzureBackend, wrapped: Backend, az_proxy: FaultProxy, size: int
) -> None:
    bare.put("k", view(BODY[:size]))
    az_proxy.rule(FlipReply(at=size // 2), method="GET", times=2)
    with pytest.raises(StorageError, match="do not match the blob's MD5") as caught:
        bare.read("k", limit=size)
    assert caught.value.transient
    assert wrapped.read("k", limit=size)[0] == BODY[:size]


def test_a_read_that_breaks_off_begins_anew(bare: AzureBackend, wrapped: Backend, az_proxy: FaultProxy) -> None:
    bare.put("k", view(BODY))
    az_proxy.rule(Truncate(at=100), method="GET", times=2)
    with pytest.raises(StorageError) as caught:
        bare.read("k", limit=len(BODY))
    assert caught.value.transient
    assert wrapped.read("k", limit=len(BODY))[0] == BODY


def test_a_large_blob_is_not_received_to_be_refused(bare: AzureBackend, az_proxy: FaultProxy) -> None:
    bare.put("k", view(BODY))
    with pytest.raises(StorageError, match=f"holds {len(BODY)} bytes, more than the 10"):
        bare.read("k", limit=10)
    assert bare.read("first", limit=10)[0] == b"x"
