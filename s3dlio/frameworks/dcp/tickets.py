"""Which save a plan belongs to: what ranks and coordinator put into DCP's plans so that no answer goes astray.

Owns the check. DCP moves plans and results by collectives, and two saves at once on one process group may get each
other's; a planner that caches plans hands out one of an earlier save, with what that carried. A rank puts a number of
its own into its local plan; the coordinator sends it back with the name of the checkpoint's id.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from dataclasses import dataclass

from ...engine.errors import S3dlioError

_lock = threading.Lock()
_spent: deque[str] = deque(maxlen=1024)


@dataclass(frozen=True, slots=True)
class Ticket:
    """``nonce``: a rank's own for one save, empty where a planner lost it; ``name``: the checkpoint's id, once the
    coordinator gave it."""

    nonce: str
    name: str = ""


def new_ticket() -> Ticket:
    """A ticket for a local plan."""
    return Ticket(secrets.token_hex(8))


def redeem(held: Ticket, found: object) -> str | None:
    """The name that came with a final plan; ``None`` for a plan of an earlier save, from the planner's cache.

    ``S3dlioError`` if the plan is that of another save under way.
    """
    with _lock:
        if isinstance(found, Ticket) and found.nonce in (held.nonce, ""):
            _spent.append(held.nonce)
            return found.name
        if isinstance(found, Ticket) and found.nonce in _spent:
            return None
    raise S3dlioError(
        "this rank was given the plan of another save: two saves ran at once on one process group; nothing was "
        "committed; wait for one before starting the next"
    )


def _forget() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
