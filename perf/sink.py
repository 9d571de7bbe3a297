"""The sink: a peer for measuring *clients* that speaks S3 and Azure Blob and costs little. It is no object store.

It checks no signature and no checksum but those of small bodies, by which clients find out whether a store does; it
keeps nothing when it ends, and every number taken with it must say "sink".
``discard`` drops bodies within the kernel and sends a pattern instead; only objects of at most ``KEPT`` bytes that are
sent whole (manifests, pointers, indexes) are kept, so that a checkpoint can be committed. ``store`` keeps all bytes.
``--latency-ms`` and ``--mbps`` model a far store. ``python -m perf.sink`` runs it; benchmarks and tests call
``running_sink``.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import sink_azure, sink_s3
from .sink_memory import SMALL, Piece
from .sink_store import Store
from .sink_wire import Connection, Far, Reply, Request

MODES = ("discard", "store")
KEPT = 1 << 20
HOST = "127.0.0.1"
_ACCOUNT = "sink"
_KEY = "c2luaw=="  # base64 of "sink": clients want to sign, and nobody checks it
_TEXT_MOST = 16 << 20


@dataclass(frozen=True, slots=True)
class Sink:
    """A running sink; ``label`` belongs beside every number, the options are what a store of ours needs to reach it."""

    endpoint: str
    label: str
    pid: int

    @property
    def s3_options(self) -> dict[str, str]:
        return {
            "endpoint_url": self.endpoint,
            "access_key_id": "sink",
            "secret_access_key": "sink",
            "region": "us-east-1",
        }

    @property
    def az_options(self) -> dict[str, str]:
        """For ``az://sink/CONTAINER``."""
        return {"endpoint_url": f"{self.endpoint}/{_ACCOUNT}", "account_key": _KEY}


@contextmanager
def running_sink(mode: str = "store", *, latency_ms: float = 0, mbps: float = 0, get_size: int = 0) -> Iterator[Sink]:
    """A sink as a process of its own, on a free port; it ends with the context, or with this process."""
    command = [sys.executable, "-m", __name__, "--until-eof", "--mode", mode, "--get-size", str(get_size)]
    command += ["--latency-ms", str(latency_ms), "--mbps", str(mbps)]
    folder = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, text=True) as process:
        assert process.stdout is not None
        try:
            label, found, endpoint = process.stdout.readline().strip().rpartition(" at ")
            if not found:
                raise RuntimeError(f"the sink did not start: {' '.join(command)}")
            yield Sink(endpoint, label, process.pid)
        finally:
            process.kill()  # it holds nothing but memory


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m perf.sink", description="A peer for client benchmarks: no store.")
    parser.add_argument("--port", type=int, default=0, help="port of the loopback (default: a free one)")
    parser.add_argument("--mode", choices=MODES, default="discard", help="what becomes of bodies (default: discard)")
    parser.add_argument("--latency-ms", type=float, default=0, metavar="MS", help="wait before each reply")
    parser.add_argument("--mbps", type=float, default=0, metavar="MB/S", help="most that one connection moves")
    parser.add_argument("--get-size", type=int, default=0, metavar="BYTES", help="objects never stored have this size")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    found = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a file of memory for each part
    far = Far(found.latency_ms / 1e3, found.mbps * 1e6)
    told = [f"sink ({found.mode}"]
    told += [f"{found.latency_ms:g} ms"] if far.latency else []
    told += [f"{found.mbps:g} MB/s a connection"] if far.rate else []
    listener = socket.create_server((HOST, found.port), backlog=256)
    if found.until_eof:
        threading.Thread(target=_end_with_input, daemon=True).start()
    print(f"{', '.join(told)}) at http://{HOST}:{listener.getsockname()[1]}", flush=True)
    store = Store(found.get_size)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_serve, args=(sock, far, store, found.mode == "store"), daemon=True).start()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _serve(sock: socket.socket, far: Far, store: Store, keep: bool) -> None:
    """Answer a client until it leaves."""
    try:
        with sock:
            connection = Connection(sock, far)
            while (request := connection.request()) is not None:
                if not connection.reply(request, _answer(connection, store, request, keep)):
                    return
    except OSError:  # the client is gone, and nobody else is concerned
        return


def _answer(connection: Connection, store: Store, request: Request, keep: bool) -> Reply:
    protocol = sink_azure if "x-ms-version" in request.headers else sink_s3
    if "chunked" in request.headers.get("transfer-encoding", "") or "aws-chunked" in request.headers.get(
        "content-encoding", ""
    ):
        return Reply(501, {"Connection": "close"}, b"the sink takes no chunked bodies")
    piece: Piece | None = None
    text = b""
    if protocol.is_data(request):
        whole = not {"uploadId", "blockid"} & request.query.keys()
        kept = keep or request.length <= (KEPT if whole else SMALL)
        piece = connection.keep(request.length) if kept else connection.drop(request.length)
    elif request.length > _TEXT_MOST:
        return Reply(413, {"Connection": "close"}, b"the sink takes documents of 16 MiB")
    else:
        text = connection.text(request.length)
    reply: Reply = protocol.answer(store, request, piece, text)
    return reply


if __name__ == "__main__":
    main()
