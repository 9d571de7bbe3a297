"""A server as a process of its own: started, waited for, told apart from a dead one, and ended with all it has started.

Owns processes, ports, log files and where `make servers` puts things; knows no kind of server. ``localstack``,
``azurite``, ``moto`` and ``radosgw`` call it.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".cache" / "servers"
PATIENCE = 60.0
"""Seconds to start: 0.5 to 7 were measured, on a busy machine more."""
_HOST = "127.0.0.1"
_GUARD = Path(__file__).with_name("guard.py")
_INTERVAL = 0.05
_LOG_SHOWN = 4000


class ServerError(RuntimeError):
    """A server is not installed, ended by itself or does not answer; the message says what to do."""


def installed(path: str) -> str:
    """The absolute path of what `make servers` has put at ``path``; ``ServerError`` if it has not."""
    found = INSTALLED / path
    if not found.exists():
        raise ServerError(f"{path.split('/', maxsplit=1)[0]} is not installed ({found} is missing): run `make servers`")
    return str(found)


def free_port(host: str) -> int:
    """A port of the loopback ``host`` that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder for a server's data and log, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"s3dlio-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    ready: Callable[[], bool],
    *,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
) -> Iterator[int]:
    """The id of a process that runs ``command`` in ``folder`` and is ``ready``; killed afterwards with its whole group.

    Its output goes to ``folder/NAME.log``; ``ServerError`` shows the end of it. Nothing that such a server holds is
    worth an orderly shutdown.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(environ or {}),
            start_new_session=True,
        )
    try:
        _await(name, process, ready, log, patience)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def serving(name: str, command: Callable[[str, int, Path], Sequence[str]]) -> Iterator[tuple[str, int]]:
    """The endpoint and the process id of a server that accepts connections on a free port of the loopback.

    ``command(host, port, folder)`` starts it; it ends as one of ``running`` does, and its folder goes with it.
    """
    port = free_port(_HOST)
    with (
        scratch(name) as folder,
        running(name, command(_HOST, port, folder), partial(listens, _HOST, port), folder=folder) as pid,
    ):
        yield f"http://{_HOST}:{port}", pid


def answers(url: str, timeout: float = 2.0) -> bytes | None:
    """The body of a successful GET of ``url``; ``None`` if there is none. Knows no proxies, unlike urllib."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/")
        reply = connection.getresponse()
        body = reply.read()
        return body if reply.status < http.HTTPStatus.BAD_REQUEST else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def listens(host: str, port: int) -> bool:
    """Whether a connection is accepted."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2.0):
        return True
    return False


def _await(name: str, process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not ready():
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(_INTERVAL)
            raise ServerError(f"{name} ended with {code} before it was ready:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"{name} is not ready after {patience:.0f} seconds:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_SHOWN:]


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Ours without what would steer the server: its settings come from ``changes`` alone."""
    steering = ("AWS_", "AZURE_", "LOCALSTACK_", "PYTHON", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return {**kept, **changes}
