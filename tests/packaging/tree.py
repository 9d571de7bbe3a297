"""The repository as a folder: where it is, what it ships, and Python started in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {"engine": "s3dlio/engine", "s3dlio": "s3dlio"}
"""Folders of the tree and where an installation has them."""


def shipped(root: Path = ROOT) -> dict[str, Path]:
    """Every file of the two packages: its installed name and where the tree has it."""
    files: dict[str, Path] = {}
    for folder, installed in SHIPPED.items():
        # os.walk and not rglob: before Python 3.13 rglob follows the link s3dlio/engine
        for base, _, names in os.walk(root / folder):
            for path in (Path(base, name) for name in names):
                if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts:
                    files[f"{installed}/{path.relative_to(root / folder).as_posix()}"] = path
    return files


def python(
    *arguments: str, cwd: Path, path: tuple[Path, ...] = (), site: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Python in ``cwd`` with ``path`` on ``PYTHONPATH``; ``site=False`` leaves the installed packages out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, *([] if site else ["-S"]), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60)
