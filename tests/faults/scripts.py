"""Trainers of their own: small scripts in processes that a test may kill, limit, signal or leave to end.

A script talks to its test in lines of its output. It runs in a session of its own, so a signal to its group reaches
its workers and nothing of the test's.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.faults.processes import MARK, marked, our_memory
from tests.faults.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]

_PROLOGUE = """\
import faulthandler, json, os, signal, sys
faulthandler.register(signal.SIGUSR1, all_threads=True)  # a test that hangs asks where
ARGS = json.loads(sys.argv[1])
if ARGS["python"]:
    sys.executable = ARGS["python"]

from s3dlio import CheckpointStore
from tests.faults import states

def open_store(**options):
    settings = {"chunk_size": states.MIB, "workers": 2, "memory": 24 * states.MIB, "multipart_threshold": 0, **options}
    return CheckpointStore(ARGS["uri"], **settings)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece, whoever else is saying something

"""


class Script:
    """A running script. ``body`` finds ``open_store(**options)``, ``states``, ``say(...)`` and ``ARGS``."""

    def __init__(
        self,
        uri: str,
        body: str,
        where: Path,
        *,
        python: str | None = None,
        prefix: Sequence[str] = (),
        cwd: Path | None = None,
        **args: object,
    ) -> None:
        self.mark = uuid.uuid4().hex
        path = where / f"{self.mark}.py"
        path.write_text(_PROLOGUE + textwrap.dedent(body))
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(path), json.dumps({"uri": uri, "python": python, **args})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
            cwd=cwd,
            start_new_session=True,
            bufsize=0,
        )
        self._heard = {1: b"", 2: b""}
        self.output = ""
        self.errors = ""

    @property
    def pid(self) -> int:
        """The trainer: a ``prefix`` must exec it."""
        return self.process.pid

    def line(self) -> str:
        """The next line that the script says."""
        return self._line(self.process.stdout, 1)

    def error_line(self, text: str) -> str:
        """The next line of its standard error with this text."""
        while text not in (line := self._line(self.process.stderr, 2)):
            self.errors += line + "\n"
        return line

    def _line(self, stream: IO[bytes] | None, number: int) -> str:
        assert stream is not None
        while b"\n" not in self._heard[number]:
            ready, _, _ = select.select([stream], [], [], PATIENCE)
            more = os.read(stream.fileno(), 4096) if ready else b""
            if not ready:
                self._tell_where()
            assert more, f"the script said no more, and ended with {self.end()}:\n{self.errors}"
            self._heard[number] += more
        line, _, self._heard[number] = self._heard[number].partition(b"\n")
        return line.decode()

    def _tell_where(self) -> None:
        """Of a script that hangs: have it print its stacks, then end it."""
        self.process.send_signal(signal.SIGUSR1)
        select.select([self.process.stderr.fileno()] if self.process.stderr else [], [], [], 1.0)
        self.process.kill()

    def end(self, signal_: signal.Signals | None = None) -> int:
        """Wait for its end, after sending it a signal; its status, with the rest of its output in ``output``."""
        if signal_ is not None:
            self.process.send_signal(signal_)
        out, errors = self.process.communicate(timeout=PATIENCE)
        self.output += (self._heard[1] + out).decode()
        self.errors += (self._heard[2] + errors).decode()
        self._heard = {1: b"", 2: b""}
        return self.process.returncode

    def signal_group(self, signal_: signal.Signals) -> None:
        """As a terminal or a scheduler does it."""
        os.killpg(self.pid, signal_)

    def leftovers(self) -> dict[int, list[str]]:
        """What it started and still lives, with the shared memory of ours that it holds."""
        return {pid: our_memory(pid) for pid in marked(self.mark)}

    def all_gone(self) -> None:
        """Wait until nothing that it started lives."""
        until(lambda: not self.leftovers(), f"processes of a dead trainer to end: {self.leftovers()}", patience=10)

    def close(self) -> None:
        """End everything; called by the fixture."""
        for pid in marked(self.mark):
            os.kill(pid, signal.SIGKILL)
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate()
