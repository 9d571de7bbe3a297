"""A benchmark of one kind of object store: first against the sink, then against a real server, beside peers.

Owns that order and the report. ``s3`` and ``azure`` bring the server and the savers; ``object_sink`` and
``object_servers`` measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from . import object_cases as objects
from . import object_servers, object_sink, state
from .harness import Options, Report
from .object_peers import Saver


@dataclass(frozen=True, slots=True)
class Running:
    """A real server's process id, the savers to be made for it (ours first), and what is measured there besides."""

    pid: int
    makers: Sequence[Callable[[], Saver]]
    more: Callable[[Report], None] | None = None


Serve = Callable[[Options, Any], AbstractContextManager[Running]]
"""Starts the server, for savers of a state."""


def run(options: Options, name: str, scheme: str, server: str, serve: Serve) -> Report:
    """Measure everything; ``server`` is what tables call the real one."""
    tree = state.reference(options.size)
    state.warm_machine(7 * state.size(tree))
    report = Report(name, {"bytes": state.size(tree), "repeat": options.repeat, "peers": options.peers})
    object_sink.run(report, options, scheme, tree)
    objects.attempt(report, server, lambda: _served(report, options, server, serve, tree))
    return report


def _served(report: Report, options: Options, server: str, serve: Serve, tree: Any) -> None:
    with serve(options, tree) as running:
        object_servers.run(report, server, running.pid, state.size(tree), options.repeat, running.makers)
        if running.more is not None:
            running.more(report)
