"""Sabotage as tests see it: which tasks of the workers suffer what, and whether they have.

Workers are exec'd from ``sys.executable``, so a script in its place reaches every worker of this process, or of a
script that sets it, without a line of the product knowing. ``injected`` holds the other end.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from tests.faults.injected import Rule
from tests.faults.waiting import until

ROOT = Path(__file__).parents[2]

_SHELL = """\
#!/bin/sh
exec '{python}' -I '{script}' "$@"
"""
_SCRIPT = """\
import sys
sys.path.append({root!r})
from tests.faults.injected import main
main({folder!r}, {rules!r})
"""


class Sabotage:
    """Rules for workers started by ``executable``; ``hold`` rules hold until ``release``."""

    def __init__(self, folder: Path, *rules: Rule) -> None:
        folder.mkdir()
        self._folder = folder
        script = folder / "worker.py"
        described = json.dumps([asdict(rule) for rule in rules])
        script.write_text(_SCRIPT.format(root=str(ROOT), folder=str(folder), rules=described))
        shell = folder / "python"
        shell.write_text(_SHELL.format(python=sys.executable, script=script))
        shell.chmod(0o755)
        self.executable = str(shell)
        self._gate = os.open(folder / "gate", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def struck(self, rule: int = 0) -> int:
        """How often a rule has struck."""
        return len(list(self._folder.glob(f"{rule}.struck.*")))

    def wait(self, rule: int = 0, times: int = 1) -> None:
        """Until a rule has struck so often."""
        until(lambda: self.struck(rule) >= times, f"rule {rule} to strike {times} times")

    def release(self) -> None:
        """Let everybody who is held go on, now and later."""
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release, for good."""
        if self._gate >= 0:
            os.close(self._gate)
        self._gate = -1
