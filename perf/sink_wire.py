"""The sink's end of a connection: heads, bodies dropped in the kernel or kept in memory files, replies by sendfile.

Owns one socket and the model of a far store: a wait before each reply, and a cap of the connection's rate. Knows
neither S3 nor Azure; ``sink`` runs one a thread.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from .sink_memory import SMALL, Piece

_BLOCK = 1 << 20
_PACED_BLOCK = 64 << 10
_TRASH = bytearray(_BLOCK)
"""Where dropped bytes would go; the kernel writes nothing there."""


@dataclass(frozen=True, slots=True)
class Far:
    """How far away the store seems: seconds before each reply, and bytes a second of each connection (0: no cap)."""

    latency: float = 0.0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its body; names of headers are lower-case, ``path`` is decoded."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return int(self.headers.get("content-length", 0))

    def checksum(self, name: str) -> bytes | None:
        """The bytes of a checksum in base64; ``None`` without one, no bytes for nonsense."""
        text = self.headers.get(name)
        try:
            return None if text is None else base64.b64decode(text, validate=True)
        except ValueError:
            return b""

    def range(self, total: int) -> tuple[int, int] | None:
        """Begin and end of the bytes asked for; ``None`` for all."""
        text = self.headers.get("x-ms-range") or self.headers.get("range", "")
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", text)
        if found is None:
            return None
        return int(found[1]), min(int(found[2]) + 1 if found[2] else total, total)


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer: ``body``, or the bytes ``begin`` to ``end`` of ``pieces``."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: tuple[Piece, ...] = ()
    begin: int = 0
    end: int = 0


class Connection:
    """A client's connection; ``ConnectionError`` where it ends within a message."""

    def __init__(self, sock: socket.socket, far: Far) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._far = far
        self._buffer = b""
        self._sent: tuple[Piece, ...] = ()

    def request(self) -> Request | None:
        """The next head; ``None`` if the client closed."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            more = self._sock.recv(65536)
            if not more:
                return None
            self._buffer += more
        self._sent = ()  # a client that asks again has read the reply before
        raw, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        first, *lines = raw.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        parted = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in parted}
        if headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(method, unquote(parts.path), query, headers)

    def text(self, length: int) -> bytes:
        """A small body."""
        while len(self._buffer) < length:
            more = self._sock.recv(65536)
            if not more:
                raise ConnectionError("closed within a body")
            self._buffer += more
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return body

    def drop(self, length: int) -> Piece:
        """A body that leaves only its size behind."""
        left = length - len(self._buffer[:length])
        self._buffer = self._buffer[length:]
        begun = time.monotonic()
        most = self._most()
        while left:
            received = self._sock.recv_into(_TRASH, min(left, most), socket.MSG_TRUNC)
            if not received:
                raise ConnectionError("closed within a body")
            left -= received
            self._pace(begun, length - left)
        return Piece(length)

    def keep(self, length: int) -> Piece:
        """A body kept in memory."""
        if length <= SMALL:
            return Piece(length, self.text(length))
        piece = Piece.room(length)
        assert piece.memory is not None
        early, self._buffer = self._buffer[:length], self._buffer[length:]
        at = len(early)
        begun = time.monotonic()
        with memoryview(piece.memory.map) as room:
            room[:at] = early
            while at < length:
                with room[at : min(length, at + self._most())] as block:
                    received = self._sock.recv_into(block)
                if not received:
                    raise ConnectionError("closed within a body")
                at += received
                self._pace(begun, at)
        return piece

    def reply(self, request: Request, reply: Reply) -> bool:
        """Wait as a far store would, then answer, to HEAD without the body; whether the connection stays."""
        if self._far.latency:
            time.sleep(self._far.latency)
        length = len(reply.body) + reply.end - reply.begin
        lines = [f"HTTP/1.1 {reply.status} Sink", "Server: sink"]
        lines += [f"{name}: {value}" for name, value in {"Content-Length": str(length), **reply.headers}.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if request.method == "HEAD":
            self._sock.sendall(head)
            return True
        self._sock.sendall(head + reply.body)
        self._sent = reply.pieces  # sendfile copies nothing: what the client has not read yet must not be used again
        self._send(reply.pieces, reply.begin, reply.end)
        return reply.headers.get("Connection") != "close"

    def _send(self, pieces: tuple[Piece, ...], begin: int, end: int) -> None:
        clock = time.monotonic()
        first = begin
        base = 0
        for piece in pieces:
            while begin < min(end, base + piece.size):
                begin += self._send_some(piece, begin - base, min(end, base + piece.size) - begin)
                self._pace(clock, begin - first)
            base += piece.size

    def _send_some(self, piece: Piece, at: int, length: int) -> int:
        most = min(length, _PACED_BLOCK) if self._far.rate else length
        if piece.body is not None:
            return self._sock.send(memoryview(piece.body)[at : at + most])
        fd, at, held = piece.source(at)
        sent = os.sendfile(self._sock.fileno(), fd, at, min(most, held))
        if not sent:
            raise ConnectionError("closed within a reply")
        return sent

    def _most(self) -> int:
        return _PACED_BLOCK if self._far.rate else _BLOCK

    def _pace(self, begun: float, moved: int) -> None:
        if self._far.rate and (ahead := begun + moved / self._far.rate - time.monotonic()) > 0:
            time.sleep(ahead)
