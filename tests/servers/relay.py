"""One client's connection through the fault proxy: each request is forwarded, with what its rule does to it.

Owns the two sockets of an exchange; rules come from ``faults``, threads and their end from ``proxy``, which calls
``run``.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from .faults import (
    Action,
    Delay,
    ErrorIn200,
    FlipReply,
    FlipRequest,
    Hang,
    Hold,
    LostReply,
    ResetBefore,
    ResetMid,
    ResetReply,
    Rule,
    Rules,
    Status,
    Throttle,
    Truncate,
)
from .wire import BLOCK, TO_THE_END, Head, Wire

_HIDDEN = ("authorization", "x-amz-security-token")
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close send RST."""


class _CutError(Exception):
    """The rule ends the exchange here."""


class Relay:
    """Serves ``client`` until it closes, a rule cuts it off, or ``closing`` is set and its sockets are shut down.

    Each request has an upstream connection of its own: a kept one may have been closed by the server just then, and the
    client would see a reset that no rule asked for.
    """

    def __init__(
        self, client: socket.socket, connect: Callable[[], socket.socket], rules: Rules, closing: threading.Event
    ) -> None:
        self._client = Wire(client)
        self._connect = connect
        self._rules = rules
        self._closing = closing

    def run(self) -> None:
        """Serve to the end; closes the client's socket, with a reset unless both sides ended in order."""
        sock = self._client.sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (head := self._client.head()) is not None:
                if not self._serve(head):
                    break
        except (_CutError, OSError):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        finally:
            sock.close()

    def _serve(self, head: Head) -> bool:
        """Serve one request; whether the client's connection stays."""
        method, target, _ = head.first.split(" ", 2)
        path, _, query = target.partition("?")
        headers = {name.lower(): value for name, value in head.lines if name.lower() not in _HIDDEN}
        rule = self._rules.pick(method, path, query, headers)
        action = rule.action if rule else None
        expects = head.get("expect") == "100-continue"
        if isinstance(action, ResetBefore):
            raise _CutError
        if isinstance(action, Status | ErrorIn200):
            if not expects:  # who asked first is answered at once, as real front ends do
                self._drain(self._client, head.request_body())
            self._answer(action, method, close=expects)
            return not expects
        if expects:  # answered here, since some servers never do
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if isinstance(action, Hang):
            while self._client.sock.recv(BLOCK):
                pass
            raise _CutError
        self._wait(rule)
        with self._connect() as sock:
            try:
                return self._exchange(Wire(sock), head, method, action)
            except _CutError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                raise

    def _exchange(self, upstream: Wire, head: Head, method: str, action: Action | None) -> bool:
        upstream.sock.sendall(head.encode(without="expect"))
        self._copy(
            self._client.pieces(head.request_body()),
            upstream.sock,
            flip=action.at if isinstance(action, FlipRequest) else None,
            cut=action.at if isinstance(action, ResetMid) else None,
            mbps=action.mbps if isinstance(action, Throttle) else 0,
        )
        reply = upstream.head()
        if reply is None:
            raise ConnectionError("the server closed without a reply")
        length = reply.reply_body(method)
        if isinstance(action, LostReply):
            self._drain(upstream, length)
            raise _CutError
        self._client.sock.sendall(reply.encode())
        try:
            self._copy(
                upstream.pieces(length),
                self._client.sock,
                flip=action.at if isinstance(action, FlipReply) else None,
                cut=action.at if isinstance(action, Truncate | ResetReply) else None,
                mbps=action.mbps if isinstance(action, Throttle) else 0,
            )
        except _CutError:
            if isinstance(action, Truncate):
                return False
            raise
        return length != TO_THE_END and "close" not in reply.get("connection")

    def _copy(
        self,
        pieces: Iterator[tuple[bytes, bool]],
        target: socket.socket,
        *,
        flip: int | None,
        cut: int | None,
        mbps: float,
    ) -> None:
        moved = 0
        begun = time.monotonic()
        for piece, payload in pieces:
            if not payload:
                target.sendall(piece)
                continue
            end = moved + len(piece)
            if flip is not None and moved <= flip < end:
                piece = _flipped(piece, flip - moved)  # noqa: PLW2901
            if cut is not None and end >= cut:
                target.sendall(piece[: cut - moved])
                break
            target.sendall(piece)
            moved = end
            if mbps and self._closing.wait(max(0.0, begun + moved / (mbps * 1e6) - time.monotonic())):
                raise _CutError
        if cut is not None:
            raise _CutError

    def _wait(self, rule: Rule | None) -> None:
        """What ``Delay`` and ``Hold`` do."""
        if rule is None:
            return
        if isinstance(rule.action, Delay) and self._closing.wait(rule.action.seconds):
            raise _CutError
        if isinstance(rule.action, Hold):
            rule.released.wait()
            if self._closing.is_set():
                raise _CutError

    def _answer(self, action: Status | ErrorIn200, method: str, *, close: bool) -> None:
        body = "" if method == "HEAD" else _ERROR.format(code=action.code)
        lines = [
            ("Content-Type", "application/xml"),
            ("Content-Length", str(len(body))),
            ("x-amz-request-id", "injected"),
            ("x-ms-error-code", action.code),
        ]
        if close:
            lines.append(("Connection", "close"))
        status = 200
        if isinstance(action, Status):
            status = action.status
            lines += action.headers
        head = Head(f"HTTP/1.1 {status} Injected", tuple(lines))
        self._client.sock.sendall(head.encode() + body.encode())

    @staticmethod
    def _drain(wire: Wire, length: int) -> None:
        for _ in wire.pieces(length):
            pass


_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'


def _flipped(piece: bytes, at: int) -> bytes:
    return piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
