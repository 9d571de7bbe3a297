"""A folder tree read as keys in order.

Owns the walk and nothing else: no key is judged here, hidden files are given too. Tolerates files and folders that
vanish meanwhile. Called by ``posix``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from .checks import folder_of
from .oserrors import translated

_Identity = tuple[int, int]


def walk(root: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below ``root`` whose folder can hold keys with ``prefix``: key and stat, in key order.

    Links to files and folders are followed, a link to a folder it lies in is not. An absent folder is empty;
    ``AccessDeniedError`` if a folder may not be read.
    """
    folder = folder_of(prefix)
    path = os.path.join(root, folder) if folder else root
    yield from _walk(path, folder, prefix, frozenset())


def _walk(path: str, folder: str, prefix: str, above: frozenset[_Identity]) -> Iterator[tuple[str, os.stat_result]]:
    for name, found in _entries(path):
        key = f"{folder}/{name}" if folder else name
        if not stat.S_ISDIR(found.st_mode):
            yield key, found
            continue
        identity = (found.st_dev, found.st_ino)
        below = key + "/"
        if identity not in above and (below.startswith(prefix) or prefix.startswith(below)):
            yield from _walk(os.path.join(path, name), key, prefix, above | {identity})


def _entries(path: str) -> list[tuple[str, os.stat_result]]:
    """Files and folders of one folder, in the order of the keys they make: ``a.b`` comes before ``a/b``."""
    found: list[tuple[str, os.stat_result]] = []
    with translated(f"listing of {path}"):
        try:
            entries = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        with entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except FileNotFoundError:  # gone, or a dangling link
                    continue
                if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                    found.append((entry.name, status))
    found.sort(key=lambda item: item[0] + "/" if stat.S_ISDIR(item[1].st_mode) else item[0])
    return found
