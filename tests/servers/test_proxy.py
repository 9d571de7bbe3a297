"""The fault proxy before LocalStack and Azurite: what each action does on the wire, and that nothing is left of it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest

from tests.servers.azurite import Container
from tests.servers.faults import (
    Delay,
    ErrorIn200,
    FlipReply,
    FlipRequest,
    Hang,
    Hold,
    LostReply,
    ResetBefore,
    ResetMid,
    ResetReply,
    Status,
    Throttle,
    Truncate,
)
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import Bucket

SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, Signature=none"}
BODY = bytes(range(256)) * 4096


class Client:
    """A connection through a proxy, for one key of a bucket."""

    def __init__(self, proxy: FaultProxy, bucket: Bucket) -> None:
        parts = urlsplit(proxy.endpoint)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        self.path = f"/{bucket.name}/key"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(
        self, method: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        self.connection.request(method, self.path, body, {**SIGNED, **(headers or {})})
        reply = self.connection.getresponse()
        return reply.status, reply.read()


@pytest.fixture
def stored(s3_bucket: Bucket) -> Bucket:
    s3_bucket.write("key", BODY)
    return s3_bucket


def test_without_rules_all_passes_on_one_connection(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    with Client(s3_proxy, s3_bucket) as client:
        assert client.send("PUT", BODY)[0] == 200
        assert client.send("GET") == (200, BODY)
        assert client.send("HEAD") == (200, b"")
        assert client.send("DELETE")[0] == 204
    assert [(found.method, found.action) for found in s3_proxy.log] == [
        (method, None) for method in ("PUT", "GET", "HEAD", "DELETE")
    ]
    assert not s3_proxy.requests(header="authorization")


def test_a_real_client_works_through_it(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    bucket = s3_bucket.through(s3_proxy.endpoint)
    bucket.write("a/b", BODY)
    assert bucket.read("a/b") == BODY
    assert bucket.keys() == ["a/b"]
    assert [found.method for found in s3_proxy.requests(path="/a/b$")] == ["PUT", "GET"]


def test_azure_works_through_it(az_proxy: FaultProxy, az_container: Container) -> None:
    container = az_container.through(az_proxy.endpoint)
    container.write("a/b", BODY)
    assert container.read("a/b") == BODY
    assert container.keys() == ["a/b"]
    assert az_proxy.requests("PUT", "/a/b$")


@pytest.mark.parametrize("expect", [False, True])
def test_a_status_is_answered_instead(s3_proxy: FaultProxy, s3_bucket: Bucket, expect: bool) -> None:
    rule = s3_proxy.rule(Status(503, "SlowDown", (("Retry-After", "1"),)), method="PUT", times=2)
    with Client(s3_proxy, s3_bucket) as client:
        for _ in range(2):
            status, body = client.send("PUT", b"" if expect else BODY, {"Expect": "100-continue"} if expect else None)
            assert (status, b"<Code>SlowDown</Code>" in body) == (503, True)
        assert client.send("PUT", BODY)[0] == 200
    assert rule.fired == 2


def test_a_status_of_head_has_no_body(s3_proxy: FaultProxy, stored: Bucket) -> None:
    s3_proxy.rule(Status(500, "InternalError"))
    with Client(s3_proxy, stored) as client:
        assert client.send("HEAD") == (500, b"")
        assert client.send("HEAD") == (200, b"")


def test_an_error_comes_in_a_200(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    s3_proxy.rule(ErrorIn200())
    with Client(s3_proxy, s3_bucket) as client:
        status, body = client.send("PUT", BODY)
    assert (status, b"<Error><Code>InternalError</Code>" in body) == (200, True)
    assert s3_bucket.keys() == []


def test_a_proxy_answers_who_expects_to_continue(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    with Client(s3_proxy, s3_bucket) as client:
        client.connection.putrequest("PUT", client.path)
        for name, value in {**SIGNED, "Expect": "100-continue", "Content-Length": "4"}.items():
            client.connection.putheader(name, value)
        client.connection.endheaders()
        assert client.connection.sock.recv(25, 0x100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # MSG_WAITALL
        client.connection.send(b"body")
        reply = client.connection.getresponse()
        assert (reply.status, reply.read()) == (200, b"")
    assert s3_bucket.read("key") == b"body"


@pytest.mark.parametrize(
    ("action", "stored"), [(ResetBefore(), False), (ResetMid(at=1000), False), (LostReply(), True)]
)
def test_a_reset_of_a_put(
    s3_proxy: FaultProxy, s3_bucket: Bucket, action: ResetBefore | ResetMid | LostReply, stored: bool
) -> None:
    s3_proxy.rule(action)
    with Client(s3_proxy, s3_bucket) as client, pytest.raises(ConnectionError):
        client.send("PUT", BODY)
    assert s3_bucket.keys() == (["key"] if stored else [])


@pytest.mark.parametrize("at", [0, 1, 500_000])
def test_a_truncated_reply_ends_in_order(s3_proxy: FaultProxy, stored: Bucket, at: int) -> None:
    s3_proxy.rule(Truncate(at))
    with Client(s3_proxy, stored) as client, pytest.raises(http.client.IncompleteRead) as caught:
        client.send("GET")
    assert caught.value.partial == BODY[:at]


def test_a_reply_is_reset(s3_proxy: FaultProxy, stored: Bucket) -> None:
    s3_proxy.rule(ResetReply(1000))
    with Client(s3_proxy, stored) as client, pytest.raises((ConnectionResetError, http.client.HTTPException)):
        client.send("GET")


@pytest.mark.parametrize("at", [0, 700_000, len(BODY) - 1])
def test_one_bit_flips(s3_proxy: FaultProxy, s3_bucket: Bucket, at: int) -> None:
    flipped = bytearray(BODY)
    flipped[at] ^= 1
    s3_proxy.rule(FlipRequest(at), method="PUT")
    s3_proxy.rule(FlipReply(at), method="GET", skip=1)
    with Client(s3_proxy, s3_bucket) as client:
        assert client.send("PUT", BODY)[0] == 200
        assert client.send("GET") == (200, bytes(flipped))
        assert client.send("GET") == (200, BODY)


def test_a_flip_in_chunks_spares_their_framing(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    s3_proxy.rule(FlipRequest(3), method="PUT")
    with Client(s3_proxy, s3_bucket) as client:
        client.connection.request("PUT", client.path, iter([b"ab", b"cd"]), SIGNED, encode_chunked=True)
        assert client.connection.getresponse().status == 200
    assert s3_bucket.read("key") == b"abce"


def test_slow_requests_arrive(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    s3_proxy.rule(Delay(0.01), times=2)
    s3_proxy.rule(Throttle(50), times=2)
    with Client(s3_proxy, s3_bucket) as client:
        for _ in range(2):
            assert client.send("PUT", BODY)[0] == 200
            assert client.send("GET") == (200, BODY)


def test_a_held_request_waits_for_its_release(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    rule = s3_proxy.rule(Hold())
    with Client(s3_proxy, s3_bucket) as client:
        thread = threading.Thread(target=client.send, args=("PUT", BODY))
        thread.start()
        rule.wait()
        assert s3_bucket.keys() == []
        rule.release()
        thread.join()
    assert s3_bucket.keys() == ["key"]


@pytest.mark.parametrize("action", [Hang(), Hold(), Delay(3600), Throttle(1e-6)])
def test_closing_ends_what_would_never_end(
    s3_proxy: FaultProxy, s3_bucket: Bucket, action: Hang | Hold | Delay | Throttle
) -> None:
    rule = s3_proxy.rule(action)
    failures: list[Exception] = []

    def send() -> None:
        try:
            client.send("PUT", BODY)
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    with Client(s3_proxy, s3_bucket) as client:
        thread = threading.Thread(target=send)
        thread.start()
        rule.wait()
        s3_proxy.close()
        thread.join()
    assert len(failures) == 1


def test_a_hang_ends_with_its_client(s3_proxy: FaultProxy, s3_bucket: Bucket) -> None:
    rule = s3_proxy.rule(Hang())
    with Client(s3_proxy, s3_bucket) as client:
        client.connection.request("GET", client.path, headers=SIGNED)
        rule.wait()


def test_after_a_cut_all_is_new(s3_proxy: FaultProxy, stored: Bucket) -> None:
    before = threading.active_count()
    s3_proxy.rule(Status(), times=None)
    with Client(s3_proxy, stored) as client:
        assert client.send("GET")[0] == 503
        s3_proxy.cut()
        assert threading.active_count() == before
        assert s3_proxy.log == []
        with pytest.raises((OSError, http.client.HTTPException)):
            client.send("GET")
        client.connection.close()
        assert client.send("GET") == (200, BODY)


def test_a_server_that_is_gone_is_a_reset(s3_bucket: Bucket) -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy, Client(proxy, s3_bucket) as client, pytest.raises(ConnectionError):
        client.send("GET")


@pytest.mark.parametrize("upstream", ["https://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1"])
def test_an_upstream_must_be_plain(upstream: str) -> None:
    with pytest.raises(ValueError, match="is not http://host:port"):
        FaultProxy(upstream)
