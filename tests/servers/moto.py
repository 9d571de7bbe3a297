"""Moto's S3 server: checks no signature and no checksum, and keeps all bytes in memory; for small objects only.

Owns its settings. ``make servers`` installs it in an environment of its own. Fixtures call ``running``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import process
from .s3_server import S3Server


@contextmanager
def running() -> Iterator[S3Server]:
    """A server on a free port of the loopback, as a process: within the test's own it would share the GIL."""
    main = process.installed("moto/bin/moto_server")
    with process.serving("moto", lambda host, port, _: [main, "-H", host, "-p", str(port)]) as (endpoint, pid):
        yield S3Server("moto", endpoint, pid)
