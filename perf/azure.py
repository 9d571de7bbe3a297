"""Azure Blob: saves and loads against the sink, whose limit is a bare loop of azure-storage-blob; against Azurite.

The sink shows what the client costs and no real store could (SINK in every title); Azurite keeps every byte on disk,
verifies MD5 only, and is itself the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import object_bench, object_peers, state
from .harness import Options, Report
from .object_bench import Running
from .object_peers import Saver
from .savers import roomy

AZURITE = "Azurite on disk"


def run(options: Options) -> Report:
    """Measure everything."""
    return object_bench.run(options, "azure", "az", AZURITE, _azurite)


@contextmanager
def _azurite(options: Options, tree: Any) -> Iterator[Running]:
    from tests.servers import azurite

    with azurite.running() as server, server.client() as client:
        ours = server.make_container("ours")
        makers: list[Callable[[], Saver]] = [
            lambda: object_peers.Ours(ours.uri, ours.options, tree, memory=roomy(state.size(tree)))
        ]
        if options.peers:
            sdk = client.get_container_client(server.make_container("sdk").name)
            makers.append(lambda: object_peers.AzureFiles(sdk, tree))
        yield Running(server.pid, makers)
