"""The benchmarks of object stores at tiny sizes: what they count, compare and refuse; how fast is not tested."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from perf import (
    latency,
    object_bench,
    object_cases,
    object_memory,
    object_peers,
    object_servers,
    object_sink,
    s3,
    state,
)
from perf.harness import GIB, Options, Report, Results, alternate
from perf.object_bench import Running
from perf.object_loop_worker import PART, View
from perf.object_loops import Loop
from perf.object_peers import Saver
from perf.sink import Sink, running_sink
from tests.servers.azurite import AzureServer
from tests.servers.s3_server import S3Server

MIB = 1 << 20

# Answers once it has used a tenth of a CPU second more.
_BUSY = """
import sys, time
for line in sys.stdin:
    until = time.process_time() + 0.1
    while time.process_time() < until: pass
    print("ok", flush=True)
"""
_PEER = """
import os, sys
print("ok", flush=True)
for line in sys.stdin:
    if line.strip() == "load": print("ValueError: no", flush=True)
    elif line.strip() == "check": sys.exit(3)
    else: print("ok" if len(os.environ["AWS_SECRET_ACCESS_KEY"]) == 4 else "no key", flush=True)
"""


@pytest.fixture
def sink() -> Iterator[Sink]:
    with running_sink("store") as found:
        yield found


def _options(tmp_path: Path, size: int = MIB) -> Options:
    return Options(size, 1, tmp_path, 1, peers=False)


def test_the_seconds_of_the_server_are_not_the_clients() -> None:
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:

        def ask() -> object:
            assert server.stdin
            assert server.stdout
            server.stdin.write(b"\n")
            server.stdin.flush()
            return server.stdout.readline()

        case = object_cases.case("busy", ask, server.pid, then=lambda: {"more": 7.0})
        numbers = alternate([case], 1).rounds[0]["busy"]
    assert numbers["server"] >= 0.09  # the kernel counts in steps of a hundredth
    assert numbers["client"] < numbers["server"]
    assert numbers["more"] == 7.0


def _results() -> Results:
    results = Results()
    first = {"seconds": 1.0, "client": 0.5, "server": 0.25}
    results.rounds = [{"first": first, "second": {"seconds": 2.0, "client": 1.5, "server": 0.5}}]
    return results


def test_tables_are_rates_and_ratios_to_the_first_row() -> None:
    nbytes = 2 * GIB
    table = object_cases.limit_table("title", _results(), nbytes, ("first", "second", "failed"), "sink")
    assert table.columns[-1] == "sink CPU s/GiB"
    assert list(table.rows) == [
        ("first", nbytes / 1e9, 1.0, 0.25, 0.125),
        ("second", nbytes / 2e9, 0.5, 0.75, 0.25),
    ]
    peers = object_cases.peer_table("title", _results(), nbytes, ("first", "second"), "LocalStack")
    assert list(peers.rows)[1] == ("second", 2.0, nbytes / 2e9, 0.75, 0.25, 2.0, 3.0)


def test_a_part_that_cannot_run_leaves_a_note() -> None:
    report = Report("s3", {})

    def broken() -> None:
        raise OSError("no server")

    object_cases.attempt(report, "LocalStack", broken)
    assert report.notes == ["left out: LocalStack: OSError: no server"]


def test_states_are_compared_bit_for_bit() -> None:
    tree = {"a": torch.tensor([0.0, 1.0]), "b": torch.zeros(3, dtype=torch.int64)}
    object_cases.check_same("it", tree, {name: tensor.clone() for name, tensor in tree.items()})
    for other in (
        {**tree, "a": torch.tensor([-0.0, 1.0])},  # equal, but not the same bits
        {**tree, "a": tree["a"].double()},
        {"a": tree["a"]},
    ):
        with pytest.raises(ValueError, match="it gave back"):
            object_cases.check_same("it", tree, other)


def test_a_view_is_a_file_that_can_be_read_again_in_large_pieces() -> None:
    content = bytes(range(256)) * (5 * MIB // 256)
    view = View(memoryview(content))
    assert len(view) == len(content)
    pieces = [bytes(view.read(131072)) for _ in range(3)]
    assert [len(piece) for piece in pieces] == [4 * MIB, MIB, 0]
    assert b"".join(pieces) == content
    assert (view.seek(-2, 2), bytes(view.read()), view.tell()) == (len(content) - 2, content[-2:], len(content))
    assert (view.seek(0), view.seek(1, 1), bytes(view.read())) == (0, 1, content[1:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "az"])
def test_the_bare_loop_gives_back_what_it_saved(sink: Sink, kind: str) -> None:
    data = torch.arange(3 * PART // 8 + 5, dtype=torch.int64).view(torch.uint8)  # three parts and a bit
    loop = Loop(kind, sink.s3_options if kind == "s3" else sink.az_options, "bucket", data)
    try:
        loop.threads = dict.fromkeys(loop.threads, 2)
        loop.save()
        loop.check()
        loop.clear()
        loop.clear()
        with pytest.raises(RuntimeError, match="ended with code"):
            loop.load()
    finally:
        loop.close()


@pytest.mark.slow
def test_the_tables_against_the_sink(tmp_path: Path) -> None:
    report = Report("s3", {})
    object_sink.run(report, _options(tmp_path), "s3", state.reference(MIB))
    assert [table.title.rpartition(", ")[2] for table in report.tables] == ["sink (store)"] * 3 + ["sink (discard)"]
    assert all(len(table.rows) == 2 for table in report.tables)
    assert len(report.notes) == 1
    assert "verified by crc64nvme" in report.notes[0]


@pytest.mark.slow
def test_the_tables_against_localstack(localstack: S3Server, tmp_path: Path) -> None:
    tree = state.reference(MIB)
    options = _options(tmp_path)
    access = localstack.options
    bucket = localstack.make_bucket()

    def broken() -> Saver:
        saver = object_peers.Boto3Files(localstack.endpoint, access, "absent", tree)
        saver.name = "broken"
        return saver

    def missing() -> Saver:
        raise ImportError("not installed")

    makers: list[Callable[[], Saver]] = [
        lambda: object_peers.Ours(bucket.uri, access, tree, memory=64 * MIB),
        broken,
        missing,
        lambda: object_peers.Boto3Files(localstack.endpoint, access, bucket.name, tree),
    ]
    report = Report("s3", {})
    object_servers.run(report, "LocalStack", localstack.pid, MIB, 1, makers)
    assert [len(table.rows) for table in report.tables] == [2, 2]
    assert report.notes[0] == "left out: opening a saver: ImportError: not installed"
    assert "broken failed: NoSuchBucket" in report.notes[1]
    assert not bucket.keys()
    table, _ = object_memory.table(options, MIB, "LocalStack", bucket.uri, access)
    assert table.rows[0][1] == 256 + 64 + 2 * 80
    assert table.rows[0][-1] == 3
    bucket.write("left", b"")
    s3._empty(bucket)
    assert not bucket.keys()


@pytest.mark.slow
def test_a_benchmark_goes_to_the_sink_and_to_the_server(azurite: AzureServer, tmp_path: Path) -> None:
    container = azurite.make_container()

    @contextmanager
    def serve(_options: Options, tree: object) -> Iterator[Running]:
        with azurite.client() as client:
            makers: list[Callable[[], Saver]] = [
                lambda: object_peers.Ours(container.uri, container.options, tree, memory=64 * MIB),
                lambda: object_peers.AzureFiles(client.get_container_client(container.name), tree),
            ]
            yield Running(azurite.pid, makers, lambda report: report.notes.append("more"))

    report = object_bench.run(_options(tmp_path), "azure", "az", "Azurite", serve)
    places = ["sink (store)"] * 3 + ["sink (discard)"] + ["Azurite"] * 2
    assert [table.title.rpartition(", ")[2] for table in report.tables] == places
    assert all(len(table.rows) == 2 for table in report.tables)
    assert len(report.notes) == 2
    assert "verified by crc64nvme" in report.notes[0]
    assert report.notes[1] == "more"
    assert not container.keys()


def test_a_peer_is_told_where_the_server_is_and_fails_in_its_own_name() -> None:
    server = {"endpoint_url": "http://x", "access_key_id": "k", "secret_access_key": "hush", "region": "r"}
    emptied: list[bool] = []
    peer = object_peers.Scripted("a peer", [sys.executable, "-c", _PEER], server, lambda: emptied.append(True))
    try:
        peer.save()
        peer.clear()
        assert emptied
        command = Path(f"/proc/{peer._process.pid}/cmdline").read_text()
        assert "hush" not in command
        with pytest.raises(RuntimeError, match="a peer: load: ValueError: no"):
            peer.load()
        with pytest.raises(RuntimeError, match="a peer: check: its process ended with code 3"):
            peer.check()
    finally:
        peer.close()


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "encoded"), [("none", 0.0), ("zstd-grouped", 1.0)])
def test_a_save_tells_how_much_of_it_was_encoded(sink: Sink, compression: str, encoded: float) -> None:
    tree = {"weights": torch.zeros(MIB, dtype=torch.float32)}
    ours = object_peers.Ours("s3://bucket/x", sink.s3_options, tree, memory=64 * MIB, compression=compression)
    try:
        ours.save()
        stored, share = ours.stored()
        assert share == encoded
        assert (stored < 0.1) == bool(encoded)
    finally:
        ours.close()


def test_rates_of_a_far_store_are_shares_of_the_least() -> None:
    saves = Results()
    saves.rounds = [
        {
            "without latency and rate": {"seconds": 2.0},  # 0.5 GB/s
            "2 workers × 1": {"seconds": 10.0},
            "2 workers × 8": {"seconds": 4.0},
            "bare loop of 2 × 8: boto3": {"seconds": 5.0},
        }
    ]
    rows = {row[0]: row for row in latency._far_table("title", saves, Results(), 10**9).rows}
    assert rows["2 workers × 1"][1:4] == (pytest.approx(0.18), 0.1, pytest.approx(0.1 / 0.18))
    assert rows["2 workers × 8"][1:4] == (pytest.approx(1.44), 0.25, 0.5)
    assert rows["2 workers × 8"][4:] == (None, None)
    assert rows["bare loop of 2 × 8: boto3"][1:4] == (pytest.approx(1.44), 0.2, pytest.approx(0.4))
    assert rows["2 workers × 2"][2:4] == (None, None)


@pytest.mark.slow
def test_a_trained_state_has_its_size() -> None:
    tree = latency.trained(1, steps=1)
    assert {tensor.dtype for tensor in tree.values()} == {torch.float32, torch.bfloat16}
    assert list(latency.trained(3 * state.size(tree), steps=1))[-1] == "2.weights"
