"""HTTP/1.1 on a socket, as far as a proxy must understand it: heads, and bodies by length, by chunks or to the end.

Owns one socket's buffer. ``relay`` reads requests and replies through it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 256 << 10
CHUNKED = -1
TO_THE_END = -2
_END = b"\r\n"


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the headers of a message; names as they came."""

    first: str
    lines: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """A header's value in lower case; "" without it."""
        return next((value.lower() for found, value in self.lines if found.lower() == name), "")

    def encode(self, *, without: str = "") -> bytes:
        """The bytes to send, with one header left out."""
        kept = [f"{name}: {value}" for name, value in self.lines if name.lower() != without]
        return "\r\n".join([self.first, *kept, "", ""]).encode("latin-1")

    def request_body(self) -> int:
        """The body's length, or ``CHUNKED``."""
        return CHUNKED if "chunked" in self.get("transfer-encoding") else int(self.get("content-length") or 0)

    def reply_body(self, method: str) -> int:
        """The same for the reply to ``method``, or ``TO_THE_END``."""
        status = int(self.first.split(" ", 2)[1])
        if method == "HEAD" or status in (204, 304):
            return 0
        if "chunked" in self.get("transfer-encoding"):
            return CHUNKED
        length = self.get("content-length")
        return int(length) if length else TO_THE_END


class Wire:
    """Reads messages from ``sock``; ``ConnectionError`` where one ends in its middle."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def head(self) -> Head | None:
        """The next head; ``None`` if the peer closed before one."""
        while (end := self._buffer.find(_END + _END)) < 0:
            if not self._fill():
                if self._buffer:
                    raise ConnectionError("closed within a head")
                return None
        raw, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        first, *lines = raw.decode("latin-1").split("\r\n")
        parted = (line.partition(":") for line in lines)
        return Head(first, tuple((name, value.strip()) for name, _, value in parted))

    def pieces(self, length: int) -> Iterator[tuple[bytes, bool]]:
        """The body's bytes as they arrive, and whether they are payload or framing."""
        if length == CHUNKED:
            yield from self._chunks()
        elif length == TO_THE_END:
            while piece := self._take(BLOCK):
                yield piece, True
        else:
            yield from self._exactly(length)

    def _chunks(self) -> Iterator[tuple[bytes, bool]]:
        size = -1
        while size:
            line = self._line()
            yield line, False
            size = int(line.split(b";")[0], 16)
            if size:
                yield from self._exactly(size)
                yield self._line(), False
        while line != _END:  # trailers, then an empty line
            line = self._line()
            yield line, False

    def _exactly(self, length: int) -> Iterator[tuple[bytes, bool]]:
        while length:
            piece = self._take(min(length, BLOCK))
            if not piece:
                raise ConnectionError(f"closed {length} bytes before the end of a body")
            length -= len(piece)
            yield piece, True

    def _line(self) -> bytes:
        while (end := self._buffer.find(_END)) < 0:
            if not self._fill():
                raise ConnectionError("closed within a chunk's head")
        line, self._buffer = self._buffer[: end + 2], self._buffer[end + 2 :]
        return line

    def _take(self, most: int) -> bytes:
        if self._buffer:
            piece, self._buffer = self._buffer[:most], self._buffer[most:]
            return piece
        return self.sock.recv(most)

    def _fill(self) -> bool:
        more = self.sock.recv(BLOCK)
        self._buffer += more
        return bool(more)
