"""Places with faults of their own: small disks, folders in another mount namespace, processes without root's powers.

Each is a command to put before a script's. Those that need a right that the machine does not give skip their test with
the reason, which pytest's summary shows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

_DROP = """\
import ctypes, os, sys
for power in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root, too, is to be refused by a folder's mode
    ctypes.CDLL(None).prctl(24, power, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""

without_root_powers: Sequence[str] = (sys.executable, "-c", _DROP)
"""As a user whom the modes of files bind; changes nothing for one who is no root."""


def mounted(kind: str, where: Path, options: str = "size=8m") -> list[str]:
    """A new file system of this kind at ``where``, seen by the command alone; gone with it."""
    where.mkdir(exist_ok=True)
    return _in_namespace(f"mount -t {kind} -o {options} none '{where}'")


def ext4(where: Path, image: Path, mib: int = 24) -> list[str]:
    """A disk of ``mib`` MiB with ext4 at ``where``."""
    where.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(mib << 20)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image], check=True)
    return _in_namespace(f"mount -o loop '{image}' '{where}'")


def read_only(where: Path) -> list[str]:
    """``where`` as it is, but read-only."""
    return _in_namespace(f"mount --bind '{where}' '{where}' && mount -o remount,bind,ro '{where}'")


def _in_namespace(mount: str) -> list[str]:
    tool = _namespace()
    command = [*tool, "sh", "-c", f'{mount} && exec "$@"', "sh"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False) if tool else None
    if tried is None or tried.returncode:
        pytest.skip(f"this machine lets no test mount: {tried.stderr.strip() if tried else 'unshare is refused'}")
    return command


@cache
def _namespace() -> Sequence[str]:
    """The command that gives a mount namespace of our own, as root or as a user."""
    for tool in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        if shutil.which("unshare") and not subprocess.run([*tool, "true"], capture_output=True, check=False).returncode:
            return tool
    return ()
