"""Folders and files of ``file://`` and ``direct://``: the file system's own, made durable.

Owns names and their durability; bytes go through the pool. ``storage`` calls it, and ``OSError`` leaves it, as
torch_checkpointing expects.
"""

from __future__ import annotations

import errno
import os
import shutil

from ...engine.backends.durable import Folders
from ...engine.errors import ExistsError
from ...object_uri import Place, split
from .places import Spot

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)


class LocalTree:
    """The folders and files of this machine."""

    def __init__(self) -> None:
        self._folders = Folders()

    def readable(self, spot: Spot) -> tuple[Place, int]:
        """Where a file is, and its size."""
        if os.path.isdir(spot.path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), spot.path)
        return self._place(spot), os.path.getsize(spot.path)

    def writable(self, spot: Spot) -> Place:
        """Where a file is to be written."""
        return self._place(spot)

    def exists(self, spot: Spot) -> bool:
        """Whether there is a file or a folder."""
        return os.path.exists(spot.path)

    def is_folder(self, spot: Spot) -> bool:
        """Whether there is a folder."""
        return os.path.isdir(spot.path)

    def names(self, spot: Spot) -> list[str]:
        """What lies in a folder."""
        return sorted(os.listdir(spot.path))

    def make_folder(self, spot: Spot, *, above: bool) -> None:
        """Make a folder, and with ``above`` those it lies in; then it may be there."""
        if above:
            os.makedirs(spot.path, exist_ok=True)
        else:
            os.mkdir(spot.path)

    def remove_file(self, spot: Spot) -> None:
        """Remove a file."""
        os.remove(spot.path)

    def remove_folder(self, spot: Spot) -> None:
        """Remove a folder and all in it."""
        shutil.rmtree(spot.path)

    def move(self, source: Spot, target: Spot) -> None:
        """Give a file or folder another name; ``ExistsError`` if that is taken, but a file replaces a file."""
        try:
            if os.path.isdir(source.path):
                os.rename(source.path, target.path)
            else:
                os.replace(source.path, target.path)
        except OSError as error:
            if error.errno in _TAKEN:
                raise ExistsError(f"{target} is there already: remove it before {source} may take its name") from error
            raise
        for path in {os.path.dirname(source.path), os.path.dirname(target.path)}:
            self._folders.settle(path)

    def _place(self, spot: Spot) -> Place:
        return split(f"{spot.location.scheme}://{spot.path}")
