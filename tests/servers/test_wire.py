"""Framing of HTTP messages, byte by byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.servers.wire import CHUNKED, TO_THE_END, Head, Wire


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Wire]]:
    """Where to write, and what reads it."""
    near, far = socket.socketpair()
    with near, far:
        yield near, Wire(far)


def close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def test_heads_follow_each_other(ends: tuple[socket.socket, Wire]) -> None:
    near, wire = ends
    near.sendall(b"GET /a HTTP/1.1\r\nHost: h\r\nX-Name:  value \r\n\r\nPUT /b HTTP/1.1\r\n\r\n")
    close(near)
    first = wire.head()
    assert first == Head("GET /a HTTP/1.1", (("Host", "h"), ("X-Name", "value")))
    assert first.encode(without="host") == b"GET /a HTTP/1.1\r\nX-Name: value\r\n\r\n"
    assert wire.head() == Head("PUT /b HTTP/1.1", ())
    assert wire.head() is None


def test_chunks_are_told_from_their_framing(ends: tuple[socket.socket, Wire]) -> None:
    near, wire = ends
    sent = b"4;x=y\r\nab\r\n\r\n1\r\nc\r\n0\r\nTrailer: t\r\n\r\n"
    near.sendall(sent + b"GET /next HTTP/1.1\r\n\r\n")
    pieces = list(wire.pieces(CHUNKED))
    assert b"".join(piece for piece, _ in pieces) == sent
    assert b"".join(piece for piece, payload in pieces if payload) == b"ab\r\nc"
    assert wire.head() == Head("GET /next HTTP/1.1", ())


def test_a_body_is_as_long_as_it_says(ends: tuple[socket.socket, Wire]) -> None:
    near, wire = ends
    near.sendall(b"HTTP/1.1 200 OK\r\n\r\nbody and more")
    close(near)
    assert wire.head() is not None
    assert b"".join(piece for piece, _ in wire.pieces(4)) == b"body"
    assert b"".join(piece for piece, _ in wire.pieces(TO_THE_END)) == b" and more"


@pytest.mark.parametrize(("sent", "length"), [(b"abc", 4), (b"5\r\nabc", CHUNKED), (b"5", CHUNKED)])
def test_a_body_that_ends_early_is_an_error(ends: tuple[socket.socket, Wire], sent: bytes, length: int) -> None:
    near, wire = ends
    near.sendall(sent)
    close(near)
    with pytest.raises(ConnectionError):
        list(wire.pieces(length))


def test_a_head_that_ends_early_is_an_error(ends: tuple[socket.socket, Wire]) -> None:
    near, wire = ends
    near.sendall(b"GET / HT")
    close(near)
    with pytest.raises(ConnectionError):
        wire.head()


@pytest.mark.parametrize(
    ("head", "method", "length"),
    [
        (Head("HTTP/1.1 200 OK", (("Content-Length", "7"),)), "GET", 7),
        (Head("HTTP/1.1 200 OK", (("Content-Length", "7"),)), "HEAD", 0),
        (Head("HTTP/1.1 204 No Content", ()), "DELETE", 0),
        (Head("HTTP/1.1 200 OK", (("Transfer-Encoding", "chunked"),)), "GET", CHUNKED),
        (Head("HTTP/1.1 200 OK", ()), "GET", TO_THE_END),
    ],
)
def test_the_length_of_a_reply(head: Head, method: str, length: int) -> None:
    assert head.reply_body(method) == length
