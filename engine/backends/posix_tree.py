"""A folder tree read as keys in order.

Owns the walk and nothing else: no key is judged here, hidden files are given too. Tolerates files and folders that
vanish meanwhile. Called by ``posix``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from operator import itemgetter

from .checks import folder_of
from .oserrors import translated

_Identity = tuple[int, int]


def walk(root: str, prefix: str, *, after: str = "", shallow: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below ``root`` whose folder can hold keys with ``prefix``: key and stat, in key order.

    ``after``: those behind this key only. ``shallow``: of one folder, its folders among them, with a slash at their
    end. Links to files and folders are followed, a link to a folder it lies in is not. An absent folder is empty;
    ``AccessDeniedError`` if a folder may not be read.
    """
    folder = folder_of(prefix)
    path = os.path.join(root, folder) if folder else root
    base = f"{folder}/" if folder else ""
    yield from _entries(path, base, after) if shallow else _walk(path, base, prefix, after, frozenset())


def _walk(
    path: str, base: str, prefix: str, after: str, above: frozenset[_Identity]
) -> Iterator[tuple[str, os.stat_result]]:
    for key, found in _entries(path, base, after):
        if not key.endswith("/"):
            yield key, found
            continue
        identity = (found.st_dev, found.st_ino)
        if identity not in above and (key.startswith(prefix) or prefix.startswith(key)):
            yield from _walk(os.path.join(path, key[len(base) : -1]), key, prefix, after, above | {identity})


def _entries(path: str, base: str, after: str) -> Iterator[tuple[str, os.stat_result]]:
    """Files and folders of one folder that are, or may hold, something behind ``after``, by the keys they make.

    A folder's ends with a slash, so that ``a.b`` comes before ``a/``. Only what is taken is asked for its stat.
    """
    found: list[tuple[str, os.DirEntry[str]]] = []
    with translated(f"listing of {path}"):
        try:
            entries = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                key = base + entry.name
                folder = key + "/"
                if _is_passed(folder, after):
                    continue
                if entry.is_dir():
                    found.append((folder, entry))
                elif key > after:
                    found.append((key, entry))
    found.sort(key=itemgetter(0))
    for key, entry in found:
        with translated(f"listing of {path}"):
            try:
                status = entry.stat()
            except FileNotFoundError:  # gone, or a dangling link
                continue
        if stat.S_ISDIR(status.st_mode) if key.endswith("/") else stat.S_ISREG(status.st_mode):
            yield key, status


def _is_passed(folder: str, after: str) -> bool:
    """Whether all in a folder comes before ``after``."""
    return folder <= after and not (after.startswith(folder) and after != folder)
