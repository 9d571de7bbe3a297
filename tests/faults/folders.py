"""A store seen as files: what is in it, what is hidden in it, and damage done to it."""

from __future__ import annotations

import hashlib
from pathlib import Path


def contents(root: Path) -> dict[str, str]:
    """Every file below ``root`` with a digest of its bytes; hidden ones and folders too."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def hidden(root: Path) -> list[str]:
    """Unfinished uploads and locks."""
    return [str(path.relative_to(root)) for path in sorted(root.rglob(".*"))]


def unfinished(root: Path) -> list[str]:
    """Unfinished uploads: what a clean-up owes to remove. A lock goes with its object."""
    return [name for name in hidden(root) if name.endswith(".part")]


def only(root: Path, pattern: str) -> Path:
    """The one file that matches."""
    (found,) = root.glob(pattern)
    return found


def flip(path: Path, bit: int) -> None:
    """Turn one bit over; twice is not at all."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
