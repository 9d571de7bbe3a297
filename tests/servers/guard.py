"""Becomes a command that the kernel ends with the process that started it: ``python guard.py PARENT COMMAND ...``.

A test session that is killed must not leave servers behind. ``process`` starts every server through it. The signal
comes when the starting *thread* ends, so servers are started from the main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arm the signal, then replace this process by the command."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(parent):  # it ended before the signal was armed
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
