"""Page-locked pieces of the arena, which devices copy straight into.

Owns which slots are registered and in which pieces, and that each piece is let go before it is unmapped. Never knows
what page-locks them: a ``Registrar`` is the caller's (``s3dlio.cuda_host`` has one for CUDA). ``arena`` calls it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

PIECE = 64 << 30
"""Bytes of one registration at most: what is refused costs that piece, not those before it."""


class Registrar(Protocol):
    """Page-locks memory for a device. Neither method raises."""

    def register(self, address: int, size: int) -> bool:
        """Page-lock memory that is resident; false if that cannot be done."""

    def unregister(self, address: int) -> bool:
        """Let the piece at ``address`` go; false if it may still be page-locked."""


def pieces(slots: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Runs (first, count) of adjacent numbers in ``slots``, which ascend, of at most ``most`` each.

    None at all if ``most`` is 0: a copy that ends in another piece than it began in is refused by CUDA, so a slot that
    is larger than a piece stays as it is.
    """
    found: list[tuple[int, int]] = []
    for slot in slots if most else ():
        first, count = found[-1] if found else (slot, most)
        if slot == first + count and count < most:
            found[-1] = first, count + 1
        else:
            found.append((slot, 1))
    return found


class Pins:
    """Which slots of ``slot_size`` bytes, the first at address ``base``, are page-locked, and by whom."""

    def __init__(self, base: int, slot_size: int, *, piece: int = PIECE) -> None:
        self._base = base
        self._slot_size = slot_size
        self._most = piece // slot_size
        self._claimed: set[int] = set()
        self._held: dict[int, Registrar] = {}  # by the address of a piece
        self._lock = threading.Lock()

    def __contains__(self, slot: int) -> bool:
        """Whether a slot is page-locked, or is about to be: its pages must not be given back to the machine.

        A device would go on with the old ones, and nobody else would see what it writes.
        """
        return slot in self._claimed

    def claim(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Note those of ``slots`` that are not claimed yet; the pieces to ``register``. Done where slots cannot go."""
        found = pieces([slot for slot in slots if slot not in self._claimed], self._most)
        for first, count in found:
            self._claimed.update(range(first, first + count))
        return found

    def register(self, claimed: Sequence[tuple[int, int]], registrar: Registrar) -> int:
        """Register pieces up to the first refusal, and give up the claim on the others; the bytes that were."""
        done = 0
        with self._lock:
            for number, (first, count) in enumerate(claimed):
                address = self._base + first * self._slot_size
                self._held[address] = registrar  # before: what a Ctrl-C leaves in doubt must be let go too
                if not registrar.register(address, count * self._slot_size):
                    del self._held[address]
                    for refused, slots in claimed[number:]:
                        self._claimed.difference_update(range(refused, refused + slots))
                    break
                done += count * self._slot_size
        return done

    def release(self) -> bool:
        """Let everything go; false if something may still be page-locked."""
        with self._lock:
            for address, registrar in list(self._held.items()):
                if registrar.unregister(address):
                    del self._held[address]
            return not self._held
