"""Workers that wait a two-hundredth as long between their tries: what takes a store a minute takes a test a second.

Runs in worker processes only, in front of the real bootstrap; the number of tries and all else stay as they are.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

_SHELL = """\
#!/bin/sh
exec '{python}' -I '{script}' "$@"
"""
_SCRIPT = """\
import sys
sys.path.append({root!r})
from tests.objectstores.hurried import main
main()
"""
_FASTER = 200


def executable(folder: Path) -> str:
    """A program to put in the place of ``sys.executable``."""
    script, shell = folder / "hurried.py", folder / "python"
    script.write_text(_SCRIPT.format(root=str(Path(__file__).parents[2])))
    shell.write_text(_SHELL.format(python=sys.executable, script=script))
    shell.chmod(0o755)
    return str(shell)


def main() -> None:
    """Patch this process, then become the worker that the command line asks for."""
    from s3dlio.engine import backends, tasks
    from s3dlio.engine.backends import retry
    from s3dlio.engine.backends.pace import Pace

    waits = retry.REMOTE
    vars(backends)["REMOTE"] = replace(
        waits, base=waits.base / _FASTER, cap=waits.cap / _FASTER, warn_after=waits.warn_after / _FASTER
    )
    vars(tasks)["Pace"] = partial(Pace, base=0.1 / _FASTER, cap=10.0 / _FASTER)
    bootstrap = sys.argv[3]  # [script, "-I", "-c", bootstrap, ...]
    sys.argv = ["-c", *sys.argv[4:]]
    exec(compile(bootstrap, "<bootstrap>", "exec"), {"__name__": "__main__"})  # as `python -c` would
