"""S3: saves and loads against the sink, whose limit is a bare loop of boto3; against LocalStack, beside peers; memory.

The sink shows what the client costs and no real store could (SINK in every title); LocalStack verifies and keeps every
byte, and is itself the bottleneck. Memory is measured with a shard of ``MEMORY_TIMES`` the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from . import object_bench, object_memory, object_peers, state
from . import object_cases as objects
from .harness import Options, Report
from .object_bench import Running
from .object_peers import Saver
from .savers import roomy

MEMORY_TIMES = 4
LOCALSTACK = "LocalStack 4.12"


def run(options: Options) -> Report:
    """Measure everything."""
    return object_bench.run(options, "s3", "s3", LOCALSTACK, _localstack)


@contextmanager
def _localstack(options: Options, tree: Any) -> Iterator[Running]:
    from tests.servers import localstack

    with localstack.running(ipv4=True) as server:
        bucket = server.make_bucket("memory")
        yield Running(server.pid, _makers(server, options, tree), lambda report: _memory(report, options, bucket))


def _memory(report: Report, options: Options, bucket: Any) -> None:
    def measure() -> None:
        size = MEMORY_TIMES * options.size
        table, results = object_memory.table(options, size, LOCALSTACK, f"{bucket.uri}/ours", bucket.options)
        report.add(table)
        report.take({f"memory, {LOCALSTACK}": results})

    objects.attempt(report, "memory", measure)


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
