"""Where a demo run puts its files.

Owns the naming of the run's folder and store; never opens a store. ``story`` calls it. Every run gets a fresh folder
below the URI it was given, since it prunes its own checkpoints and must never touch anybody else's.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from s3dlio.engine.errors import ConfigError

from .options import DEFAULT_FOLDER

LOCAL = ("file", "direct")


@dataclass(frozen=True, slots=True)
class Place:
    """``store`` is the store's URI. ``folder`` is where trainers run and write their blocking saves.

    ``temporary``: the folder is not below the URI (an object store), and goes when the run ends.
    """

    store: str
    folder: Path
    temporary: bool


def choose_place(uri: str | None, stamp: str, cwd: Path) -> Place:
    """Name the fresh run ``stamp`` below ``uri`` (default ``file://<cwd>/s3dlio-demo``) and make its local folder.

    Raises ``ConfigError`` where ``uri`` is no URI, or a local one that is relative or cannot be made.
    """
    uri = uri or f"file://{cwd / DEFAULT_FOLDER}"
    scheme, found, rest = uri.partition("://")
    if not found or not rest:
        raise ConfigError(f"{uri!r} is not a URI: expected file:///folder, direct:///folder, s3://bucket/prefix ...")
    run = f"run-{stamp}"
    if scheme not in LOCAL:
        return Place(f"{uri.rstrip('/')}/{run}", Path(tempfile.mkdtemp(prefix="s3dlio-demo-")), temporary=True)
    if not rest.startswith("/"):
        raise ConfigError(f"{uri!r} names a relative folder: write {scheme}:///absolute/folder")
    folder = Path(rest) / run
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make the demo's folder {folder}: {error.strerror}") from error
    return Place(f"{scheme}://{folder}/checkpoints", folder, temporary=False)
