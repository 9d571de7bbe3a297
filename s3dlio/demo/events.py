"""What a trainer process tells the story, one JSON object a line on its standard output.

Owns the spelling of the lines on both ends; never decides anything. ``trainer`` writes, ``story`` reads. Lines survive
the SIGKILL of their writer, since a pipe keeps what was written to it.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from typing import Any

from s3dlio.engine.errors import DeadlineError

Event = dict[str, Any]
"""Always has ``event``: start, step, stall, committed, blocking, missed, dying or final; the rest depends on it."""


def emit(fd: int, event: str, **fields: object) -> None:
    """Write one event to ``fd`` at once, unbuffered."""
    line = json.dumps({"event": event, **fields}).encode() + b"\n"
    while line:
        line = line[os.write(fd, line) :]


def parse(line: bytes) -> Event | None:
    """The event of one line, or None for a line that somebody else printed."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None


def read_events(fd: int, *, silence: float) -> Iterator[Event]:
    """Events from ``fd`` until its end; ``DeadlineError`` after ``silence`` seconds without a byte."""
    rest = b""
    while True:
        if not select.select([fd], [], [], silence)[0]:
            raise DeadlineError(f"the trainer said nothing for {silence:.0f} s")
        piece = os.read(fd, 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            event = parse(line)
            if event is not None:
                yield event
