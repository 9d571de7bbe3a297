"""Which checksums an endpoint is believed to verify, and that it is asked once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3dlio.engine.backends import azure_probe
from s3dlio.engine.backends.azure import SMALL, AzureBackend
from s3dlio.engine.contract import PROBE
from s3dlio.engine.errors import AccessDeniedError, ThrottledError
from s3dlio.leftovers import Leftovers, find_leftovers
from tests.engine.azure_stores import store
from tests.engine.conformance import data, view
from tests.engine.waiters import Waiters
from tests.servers.azurite import Container
from tests.servers.faults import Action, Hold, Status
from tests.servers.proxy import FaultProxy

LARGE = view(data(SMALL + 1))
CRC = "x-ms-content-crc64"
MD5 = "content-md5"
TAKEN = Status(201, "")


@pytest.fixture
def backend(az_container: Container, az_proxy: FaultProxy) -> Iterator[AzureBackend]:
    """Its endpoint has a port of its own, of which nothing is known."""
    azure_probe.forget()
    with store(az_container.through(az_proxy.endpoint)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("crc", "md5", "large", "small", "sent"),
    [
        (None, None, "crc64nvme", "md5", CRC),
        (None, TAKEN, "crc64nvme", "", CRC),
        (Status(500, "FeatureNotSupported"), None, "md5", "md5", MD5),
        (Status(400, "UnsupportedHeader"), None, "md5", "md5", MD5),
        (Status(501, "NotImplemented"), None, "md5", "md5", MD5),
        (TAKEN, None, "md5", "md5", MD5),
        (TAKEN, Status(400, "InvalidOperation"), "md5", "md5", MD5),
        (TAKEN, TAKEN, "", "", None),
    ],
)
def test_only_what_refuses_a_wrong_checksum_verifies_it(
    backend: AzureBackend,
    az_proxy: FaultProxy,
    caplog: pytest.LogCaptureFixture,
    crc: Action | None,
    md5: Action | None,
    large: str,
    small: str,
    sent: str | None,
) -> None:
    for header, action in ((CRC, crc), (MD5, md5)):
        if action is not None:
            az_proxy.rule(action, path=r"/\.s3dlio-probe-", header=f"^{header}:")
    name = backend.begin("k")
    part = backend.put_part("k", name, 1, 0, LARGE)
    assert (part.verified, part.crc64 is None) == (large, sent != CRC)
    assert backend.complete("k", name, [part]).verified == large
    assert backend.put("large", LARGE).verified == large
    assert backend.put("small", view(b"x")).verified == small
    request = az_proxy.requests(query="comp=block&", path="/runs/k$")[-1]
    assert {header for header in (CRC, MD5) if header in request.headers} == ({sent} if sent else set())
    assert MD5 in az_proxy.requests(path="/runs/small$")[-1].headers  # for whoever reads it whole
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (1 if not large and not small else 0)
    assert all(record.__dict__["once"] for record in warnings)


def test_lanes_ask_once(backend: AzureBackend, az_container: Container, az_proxy: FaultProxy) -> None:
    with store(az_container.through(az_proxy.endpoint), prefix="other") as other, ThreadPoolExecutor(4) as lanes:
        puts = [lanes.submit(to.put, f"k{n}", view(b"x")) for n in range(4) for to in (backend, other)]
        assert [put.result().size for put in puts] == [1] * 8
    assert len(az_proxy.requests(path="s3dlio-probe")) == 2


def test_a_failure_is_shared_by_all_lanes_that_waited(
    backend: AzureBackend, az_proxy: FaultProxy, waiters: Waiters
) -> None:
    """One of them asks: an endpoint that hangs costs all of them one time-out, not one after the other."""
    count = 4
    held = az_proxy.rule(Hold(), header=f"^{CRC}:")
    az_proxy.rule(Status(503, "ServerBusy"), header=f"^{MD5}:")
    with ThreadPoolExecutor(count) as lanes:
        puts = [lanes.submit(backend.put, f"k{number}", view(b"x")) for number in range(count)]
        waiters.wait(count - 1)
        held.release()
        for put in puts:
            with pytest.raises(ThrottledError, match=f"asking {az_proxy.endpoint} for its checksums"):
                put.result()
    assert len(az_proxy.requests(path=PROBE)) == 2
    assert backend.put("k", view(b"x")).verified == "md5"
    assert len(az_proxy.requests(path=PROBE)) == 4


def test_a_question_without_an_answer_is_asked_again(backend: AzureBackend, az_proxy: FaultProxy) -> None:
    for action, error in ((Status(503, "ServerBusy"), ThrottledError), (Status(403, ""), AccessDeniedError)):
        az_proxy.rule(action)
        with pytest.raises(error, match=f"asking {az_proxy.endpoint} for its checksums"):
            backend.put("k", view(b"x"))
    assert backend.put("k", view(b"x")).verified == "md5"


def test_azure_itself_is_known() -> None:
    def send(headers: object) -> None:
        raise AssertionError("asked")

    for host in ("account.blob.core.windows.net", "account.z01.blob.storage.azure.net"):
        assert azure_probe.verified_by(f"https://{host}", host, send) == {"crc64nvme", "md5"}
    with pytest.raises(AssertionError, match="asked"):
        azure_probe.verified_by("https://x", "account.blob.core.windows.net.example.com", send)


def test_a_question_leaves_nothing_that_a_listing_shows(backend: AzureBackend, az_proxy: FaultProxy) -> None:
    az_proxy.rule(Status(500, "FeatureNotSupported"), header=f"^{CRC}:")
    backend.put("k", view(b"x"))
    assert [info.key for info in backend.list()] == ["k"]
    assert list(backend.list(PROBE)) == []
    assert list(backend.uploads()) == []
    assert find_leftovers(backend, min_age=0, now=2**40) == Leftovers((), ())
    assert len(az_proxy.requests(path=rf"/runs/{PROBE}")) == 2
