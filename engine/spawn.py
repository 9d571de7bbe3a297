"""Starting a worker process: exec'd, never forked from the trainer's state, never through multiprocessing.

Owns the command line and the bootstrap; knows nothing of tasks. The supervisor calls ``start_worker``. Daemonic
processes may start workers this way, the user's ``__main__`` is not imported again, and a CUDA context or a held lock
of the trainer is not inherited.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass

from .errors import S3dlioError

# Isolated (-I), so that neither PYTHON* variables nor a `socket.py` in the working folder reach the worker; the
# parent's sys.path goes behind the standard library, so that the worker can import whatever the parent can.
_BOOTSTRAP = """\
import json, sys
sys.path += [p for p in json.loads(sys.argv[1]) if p not in sys.path]
from s3dlio.engine.worker import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A started worker and the parent's end of its socketpair."""

    process: subprocess.Popen[bytes]
    sock: socket.socket


def start_worker(lanes: int) -> WorkerProcess:
    """Start one worker with ``lanes`` lanes; ``S3dlioError`` if the system refuses."""
    if not sys.executable:
        raise S3dlioError("sys.executable is not set: workers need a Python interpreter to run in")
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise S3dlioError(f"cannot start a worker: {error}; raise the limit of open files (ulimit -n)") from error
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-c",
                _BOOTSTRAP,
                json.dumps([str(p) for p in sys.path]),
                str(theirs.fileno()),
                str(lanes),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        ours.close()
        raise S3dlioError(f"cannot start a worker: {error}") from error
    finally:
        theirs.close()
    return WorkerProcess(process, ours)
