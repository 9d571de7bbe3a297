"""Words of ranks as JSON, the one of a rank that gives up among them, and the topics of a save.

Pure but for speaking. ``verdict`` and ``group_saver`` have the other words. Kept apart since every program imports it,
and few save with other ranks: no NumPy.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from ..engine import errors
from ..engine.errors import S3dlioError
from .council import Council

TOPICS = ("hello", "stored")
"""Of one save, in their order."""


def encode_error(error: BaseException, *, clean: bool = True) -> bytes:
    """The word of a rank that gives up; ``clean``: nothing can have been committed."""
    kind = type(error).__name__ if isinstance(error, S3dlioError) else "S3dlioError"
    text = str(error) if isinstance(error, S3dlioError) else f"{type(error).__name__}: {error}"
    return json.dumps({"error": kind, "text": text, "clean": clean}).encode()


def read_word(word: bytes) -> dict[str, Any]:
    """The JSON of a word; raises the error that it holds."""
    value: dict[str, Any] = json.loads(word.partition(b"\n")[0])
    if "error" in value:
        raise _error_of(value)
    return value


def _error_of(value: Mapping[str, Any]) -> S3dlioError:
    cls = getattr(errors, str(value["error"]), None)
    if not (isinstance(cls, type) and issubclass(cls, S3dlioError)):
        cls = S3dlioError
    return cls(value["text"])


def topic_of(topic: str, number: int) -> str:
    """The first or second topic of a save."""
    return f"{topic}/{TOPICS[number]}"


def speak_error(council: Council, topic: str, spoken: int, error: BaseException, *, clean: bool = True) -> None:
    """Say that this rank gives up, on the first topic on which it has not spoken; ``clean``: nothing is committed."""
    if spoken == len(TOPICS):
        return
    word = encode_error(error, clean=clean)
    with contextlib.suppress(S3dlioError):  # the board is gone, and tells the others so
        if council.presides:
            council.announce(topic_of(topic, spoken), word)
        else:
            council.say(topic_of(topic, spoken), word)
