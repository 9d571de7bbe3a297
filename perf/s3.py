"""S3: saves and loads against the sink, whose limit is a bare loop of boto3; against LocalStack, beside peers; memory.

The sink shows what the client costs and no real store could (SINK in every title); LocalStack verifies and keeps every
byte, and is itself the bottleneck. Memory is measured with a shard of ``MEMORY_TIMES`` the size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import object_cases as objects
from . import object_memory, object_peers, object_servers, object_sink, state
from .harness import Options, Report
from .object_peers import Saver
from .savers import roomy

MEMORY_TIMES = 4
LOCALSTACK = "LocalStack 4.12"


def run(options: Options) -> Report:
    """Measure everything."""
    tree = state.reference(options.size)
    nbytes = state.size(tree)
    state.warm_machine(7 * nbytes)
    report = Report("s3", {"bytes": nbytes, "repeat": options.repeat, "peers": options.peers})
    object_sink.run(report, options, "s3", tree)
    objects.attempt(report, LOCALSTACK, lambda: _localstack(report, options, tree))
    return report


def _localstack(report: Report, options: Options, tree: Any) -> None:
    from tests.servers import localstack

    nbytes = state.size(tree)
    with localstack.running(ipv4=True) as server:
        makers = _makers(server, options, tree)
        object_servers.run(report, LOCALSTACK, server.pid, nbytes, options.repeat, makers)
        bucket = server.make_bucket("memory")
        uri, access, size = f"{bucket.uri}/ours", bucket.options, MEMORY_TIMES * options.size
        objects.attempt(report, "memory", lambda: _memory(report, options, size, uri, access))


def _memory(report: Report, options: Options, size: int, uri: str, access: dict[str, str]) -> None:
    table, results = object_memory.table(options, size, LOCALSTACK, uri, access)
    objects.add(report, {f"memory, {LOCALSTACK}": results}, [table])


def _makers(server: Any, options: Options, tree: Any) -> list[Callable[[], Saver]]:
    """Each with a bucket of its own, so that it can be emptied from outside."""
    buckets = {name: server.make_bucket(name) for name in ("ours", "boto3", "wheel", "dcp")}
    access = server.options

    def ours() -> Saver:
        return object_peers.Ours(buckets["ours"].uri, access, tree, memory=roomy(state.size(tree)))

    if not options.peers:
        return [ours]
    return [
        ours,
        lambda: object_peers.Boto3Files(server.endpoint, access, "boto3", tree),
        lambda: object_peers.wheel("wheel", access, tree, options.folder, partial(_empty, buckets["wheel"])),
        lambda: object_peers.dcp("dcp", access, tree, options.folder, partial(_empty, buckets["dcp"])),
    ]


def _empty(bucket: Any) -> None:
    with bucket.server.client() as client:
        found = bucket.keys()
        for key in found:
            client.delete_object(Bucket=bucket.name, Key=key)
