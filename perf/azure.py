"""Azure Blob: saves and loads against the sink, whose limit is a bare loop of azure-storage-blob; against Azurite.

The sink shows what the client costs and no real store could (SINK in every title); Azurite keeps every byte on disk,
verifies MD5 only, and is itself the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import object_cases as objects
from . import object_peers, object_servers, object_sink, state
from .harness import Options, Report
from .object_peers import Saver
from .savers import roomy

AZURITE = "Azurite on disk"


def run(options: Options) -> Report:
    """Measure everything."""
    tree = state.reference(options.size)
    nbytes = state.size(tree)
    state.warm_machine(7 * nbytes)
    report = Report("azure", {"bytes": nbytes, "repeat": options.repeat, "peers": options.peers})
    object_sink.run(report, options, "az", tree)
    objects.attempt(report, AZURITE, lambda: _azurite(report, options, tree))
    return report


def _azurite(report: Report, options: Options, tree: Any) -> None:
    from tests.servers import azurite

    nbytes = state.size(tree)
    with azurite.running() as server, server.client() as client:
        ours = server.make_container("ours")
        makers: list[Callable[[], Saver]] = [
            lambda: object_peers.Ours(ours.uri, ours.options, tree, memory=roomy(nbytes))
        ]
        if options.peers:
            sdk = client.get_container_client(server.make_container("sdk").name)
            makers.append(lambda: object_peers.AzureFiles(sdk, tree))
        object_servers.run(report, AZURITE, server.pid, nbytes, options.repeat, makers)
