"""LocalStack's S3 provider alone: verifies every checksum and keeps every condition, but checks no signature.

Owns its settings. ``make servers`` installs it in an environment of its own, since it pins old packages. Fixtures and
benchmarks call ``running``.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from . import process
from .s3_server import S3Server

_SETTINGS = {
    "SERVICES": "s3",
    "EAGER_SERVICE_LOADING": "1",
    "STRICT_SERVICE_LOADING": "1",
    "DISABLE_EVENTS": "1",
    "SKIP_SSL_CERT_DOWNLOAD": "1",
    "DNS_ADDRESS": "0",
    "LS_LOG": "warn",
}
"""S3 only, and nothing that would look for another machine."""


@contextmanager
def running(*, ipv4: bool = False) -> Iterator[S3Server]:
    """A server on a free port of the loopback; ``ipv4``: reachable by 127.0.0.1, for clients that take nothing else."""
    python = process.installed("localstack/bin/python")
    # Its default server binds all addresses when given an IPv4 one and obeys an IPv6 one only; the other server obeys
    # both and is a third slower.
    host, kind = ("::1", "twisted") if _has_ipv6() else ("127.0.0.1", "hypercorn")
    port = process.free_port("127.0.0.1" if ipv4 else host)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    listen = f"[::ffff:127.0.0.1]:{port}" if ipv4 and kind == "twisted" else place
    place = f"127.0.0.1:{port}" if ipv4 else place
    with process.scratch("localstack") as folder:
        for name in ("tmp", "cache"):
            (folder / name).mkdir()
        environ = _SETTINGS | {
            "GATEWAY_LISTEN": listen,
            "GATEWAY_SERVER": kind,
            "TMPDIR": str(folder / "tmp"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        endpoint = f"http://{place}"
        command = [python, "-m", "localstack.runtime.main"]
        ready = lambda: _is_healthy(endpoint)  # noqa: E731
        with process.running("localstack", command, ready, folder=folder, environ=environ) as pid:
            yield S3Server("LocalStack", endpoint, pid)


def _is_healthy(endpoint: str) -> bool:
    body = process.answers(f"{endpoint}/_localstack/health")
    return body is not None and json.loads(body).get("services", {}).get("s3") in ("available", "running")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
