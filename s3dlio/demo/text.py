"""The text the demo trains on: the standard library's own sources, which every machine has.

Owns the order and the split of the bytes and which bytes belong to which step; never touches torch. ``training`` calls
it. Everything is a pure function of the files, the seed and the step, so that a resumed run needs no reader position.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from s3dlio.engine.errors import ConfigError

TEXT_LIMIT = 2_000_000
"""Bytes read at most: some 60 files, read in 10 ms, and more than the demo's steps can visit."""

HELD_OUT = 0.1
"""Share of the text that is never trained on."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Bytes to train on and bytes held out."""

    train: bytes
    held_out: bytes


def library_folder() -> Path:
    """Where the running interpreter keeps its standard library."""
    return Path(os.__file__).parent


def load_corpus(folder: Path | None = None, *, limit: int = TEXT_LIMIT) -> Corpus:
    """The ``.py`` files of ``folder`` (default: the standard library) in name order, cut after ``limit`` bytes.

    Raises ``ConfigError`` where there is too little text to train on (an interpreter without sources).
    """
    folder = folder or library_folder()
    pieces: list[bytes] = []
    size = 0
    for path in sorted(folder.glob("*.py"), key=lambda path: path.name):
        if size >= limit:
            break
        piece = path.read_bytes()[: limit - size]
        pieces.append(piece)
        size += len(piece)
    if size < 10_000:
        raise ConfigError(f"{folder} holds {size} bytes of Python source: too little to train on")
    text = b"".join(pieces)
    cut = int(len(text) * (1 - HELD_OUT))
    return Corpus(text[:cut], text[cut:])


def offsets(seed: int, step: int, count: int, room: int) -> list[int]:
    """Where the ``count`` samples of ``step`` begin, each in ``0 .. room - 1``; the same for every run of this seed."""
    return [random.Random(f"{seed}/{step}/{number}").randrange(room) for number in range(count)]
