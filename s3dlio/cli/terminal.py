"""How the command line writes for people: sizes, times, tables, colours, a progress bar, warnings.

Owns formatting only; never opens a store. Commands and the demo's report call it. Tables and numbers are pure.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

BAR_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Style:
    """Colours where ``colour`` says so, else plain text."""

    colour: bool = False

    def strong(self, text: str) -> str:
        return self._wrap("1", text)

    def faint(self, text: str) -> str:
        return self._wrap("2", text)

    def good(self, text: str) -> str:
        return self._wrap("32", text)

    def bad(self, text: str) -> str:
        return self._wrap("1;31", text)

    def hidden(self, text: str) -> int:
        """Characters of ``strong(text)`` that take no room."""
        return len(self.strong(text)) - len(text)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text


def style_for(stream: TextIO) -> Style:
    """Colours on a terminal, unless ``NO_COLOR`` is set or the terminal is dumb."""
    return Style(stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb")


def size(count: float) -> str:
    """Bytes in decimal units: ``57.9 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.95 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def seconds(value: float) -> str:
    """A duration in the unit that suits it: ``850 us``, ``4.6 ms``, ``1.20 s``."""
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1e3:.1f} ms"
    return f"{value:.2f} s"


def visible(text: str) -> int:
    """Width of ``text`` on the terminal, colour codes left out."""
    width, inside = 0, False
    for character in text:
        if character == "\x1b":
            inside = True
        elif not inside:
            width += 1
        elif character == "m":
            inside = False
    return width


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], style: Style | None = None, right: Sequence[int] = ()
) -> list[str]:
    """Lines of a table, two spaces in; columns named in ``right`` are right-aligned."""
    style = style or Style()
    widths = [max(visible(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for column, cell in enumerate(cells):
            gap = " " * (widths[column] - visible(cell))
            padded.append(gap + cell if column in right else cell + gap)
        return ("  " + "  ".join(padded)).rstrip()

    return [style.strong(line(head)), style.faint("  " + "  ".join("-" * width for width in widths)), *map(line, rows)]


class Bar:
    """A progress bar on ``stream``; silent where that is no terminal. Use as a context manager: it leaves no trace."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._last = ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._last = ""

    def show(self, done: float, total: float, note: str = "") -> None:
        """Draw ``done`` of ``total``; the same picture is not drawn twice."""
        if not self._shown:
            return
        share = min(1.0, done / total) if total > 0 else 1.0
        full = int(share * BAR_WIDTH)
        text = f"{self._label} {'█' * full}{'·' * (BAR_WIDTH - full)} {share:4.0%} {note}"
        if text != self._last:
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()
            self._last = text


@contextmanager
def warnings_told() -> Iterator[None]:
    """Meanwhile what is logged as a warning or worse is one line on the standard error, whoever says it."""
    handler = _OneLine(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = "error" if record.levelno >= logging.ERROR else "warning"
        start = "\r\x1b[K" if sys.stderr.isatty() else ""  # a bar may be there, which is drawn again below
        print(f"{start}s3dlio: {kind}: {' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)
