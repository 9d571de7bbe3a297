"""Framed messages, with file descriptors, over one end of a socketpair.

Owns the wire form between the parent and one worker: a header (length, descriptor count), a pickle, and the
descriptors as SCM_RIGHTS on the header's first byte. Never interprets a message. The supervisor and the worker each
hold one ``Channel``; both ends are processes of ours, so pickle is safe here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
from collections.abc import Sequence

_HEADER = struct.Struct("<IH")
_READ = 256 * 1024
_MAX_FDS = 16


class ChannelClosed(Exception):
    """The other end is gone, or has not read for so long that it counts as gone."""


class Channel:
    """One end of a worker's socketpair; ``send`` may be called by several threads, ``receive`` by one."""

    def __init__(self, sock: socket.socket, *, send_timeout: float | None = None) -> None:
        self._sock = sock
        self._sock.settimeout(send_timeout)
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send one message; ``ChannelClosed`` if the other end is gone or does not drain in time."""
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        frame = memoryview(_HEADER.pack(len(body), len(fds)) + body)
        try:
            with self._lock:
                sent = socket.send_fds(self._sock, [frame], list(fds)) if fds else self._sock.send(frame)
                if sent < len(frame):
                    self._sock.sendall(frame[sent:])
        except OSError as error:  # includes TimeoutError: a worker that stopped reading is replaced
            raise ChannelClosed(str(error)) from error

    def receive(self) -> list[tuple[object, tuple[int, ...]]]:
        """Wait for bytes once and return the messages they complete (perhaps none); ``ChannelClosed`` at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _READ, _MAX_FDS)
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not data:
            raise ChannelClosed("end of file")
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds.extend(fds)
        self._buffer += data
        return self._messages()

    def _messages(self) -> list[tuple[object, tuple[int, ...]]]:
        found: list[tuple[object, tuple[int, ...]]] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            length, count = _HEADER.unpack_from(self._buffer, start)
            stop = start + _HEADER.size + length
            if len(self._buffer) < stop:
                break
            message = pickle.loads(  # noqa: S301 - both ends are ours
                memoryview(self._buffer)[start + _HEADER.size : stop]
            )
            found.append((message, tuple(self._fds[:count])))
            del self._fds[:count]
            start = stop
        del self._buffer[:start]
        return found

    def close(self) -> None:
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()
        self._sock.close()
