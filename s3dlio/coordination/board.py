"""The board: where the ranks of a job leave words for each other.

Owns the interface that each way of coordination implements, and how a word of any size goes through stores that limit
theirs. Decides nothing and knows no checkpoint. ``council`` talks through it.

Two directions suffice, and are all that is promised: words of rank 0 reach every rank, words of a rank reach rank 0.
"""

from __future__ import annotations

import time
from typing import Protocol

PIECE = 1 << 20
"""Bytes of a word under one key: torch's store refuses 8 MiB, gRPC's default limit is 4 MiB."""


class Board(Protocol):
    """Keys and values of little more than ``PIECE`` bytes. Thread-safe. A lost connection is a ``StorageError``."""

    rank: int
    world_size: int

    def put(self, key: str, value: bytes) -> None:
        """Leave a value; each key is put once."""

    def get(self, key: str, timeout: float) -> bytes | None:
        """The value, waiting up to ``timeout`` seconds for it; ``None`` if it did not come. A rank gets a key once."""

    def drop(self, key: str) -> None:
        """Forget a key that nobody will read any more, where the board can."""


def put_word(board: Board, key: str, word: bytes) -> int:
    """Leave a word of any size: its number of pieces and the first of them under ``key``, the others behind it.

    Returns the number of pieces.
    """
    pieces = [word[at : at + PIECE] for at in range(0, len(word), PIECE)] or [b""]
    for number, piece in enumerate(pieces[1:], 1):
        board.put(f"{key}/{number}", piece)
    board.put(key, len(pieces).to_bytes(4, "big") + pieces[0])
    return len(pieces)


def get_word(board: Board, key: str, timeout: float, *, last: bool = False) -> bytes | None:
    """A word, or ``None`` if it did not come in time; ``last``: nobody else will read it, forget it."""
    deadline = time.monotonic() + timeout
    first = board.get(key, timeout)
    if first is None:
        return None
    pieces = [first[4:]]
    for number in range(1, int.from_bytes(first[:4], "big")):
        piece = board.get(f"{key}/{number}", max(1.0, deadline - time.monotonic()))
        if piece is None:
            return None
        pieces.append(piece)
    if last:
        drop_word(board, key, len(pieces))
    return b"".join(pieces)


def drop_word(board: Board, key: str, pieces: int) -> None:
    """Forget a word of so many pieces."""
    for number in range(1, pieces):
        board.drop(f"{key}/{number}")
    board.drop(key)
