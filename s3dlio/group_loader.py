"""Which checkpoint all ranks of a job load: rank 0 looks, the others hear of it.

Owns that agreement; never reads a shard. ``stored`` asks. Two ranks that looked by themselves might find different
checkpoints, where one was committed in between.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

from .coordination.boards import Seat
from .coordination.council import name_ranks
from .coordination.words import encode_error, read_word
from .engine.errors import ConfigError, StorageError


def agreed_id(seat: Seat, step: int | None, find: Callable[[], str]) -> str:
    """The id that rank 0 found by ``find``; every rank must call.

    Raises on every rank what ``find`` raises on rank 0, ``ConfigError`` if they ask for different steps.
    """
    council, topic = seat.council, seat.topic("load")
    if not council.presides:
        council.say(topic, json.dumps({"step": step}).encode())
        found: str = read_word(council.hear(topic))["id"]
        return found
    try:
        asked = {rank: read_word(word)["step"] for rank, word in council.gather(topic, range(1, council.world_size))}
        others = [rank for rank, other in asked.items() if other != step]
        if others:
            raise ConfigError(
                f"the ranks load different steps: rank 0 {step}, {name_ranks(others)} {asked[others[0]]}; pass "
                "coordinator=None to load on each its own"
            )
        found = find()
    except BaseException as error:
        with contextlib.suppress(StorageError):  # the board is gone, and tells the others so
            council.announce(topic, encode_error(error))
        raise
    council.announce(topic, json.dumps({"id": found}).encode())
    return found
