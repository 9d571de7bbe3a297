"""The fault proxy: stands between a real client and a real server and breaks chosen requests in chosen ways.

Owns the listening socket, the threads and their end. Tests use it through the fixtures ``s3_proxy`` and ``az_proxy``::

    rule = proxy.rule(Status(503, "SlowDown"), method="PUT", query="partNumber=3", times=2)
    ... a store at proxy.endpoint ...
    assert rule.fired == 2

Bodies are streamed, never held. Not made for https.
"""

from __future__ import annotations

import socket
import threading
import weakref
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

from .faults import Action, Match, Request, Rule, Rules
from .relay import Relay

HOST = "127.0.0.1"
PATIENCE = 10.0


class FaultProxy:
    """A proxy before ``upstream`` (``http://host:port/path``), on a free port; ``endpoint`` has the same path.

    ``seed`` decides what rules with a probability do. Leaving its context closes all connections and ends all threads.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ValueError(f"{upstream} is not http://host:port")
        self._upstream = (parts.hostname, parts.port)
        self._rules = Rules(seed)
        self._made: list[Rule] = []
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0), backlog=256)
        self.endpoint = f"http://{HOST}:{self._listener.getsockname()[1]}{parts.path}"
        self._acceptor = threading.Thread(target=self._accept, name="fault-proxy")
        self._acceptor.start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rule(
        self,
        action: Action,
        *,
        method: str | None = None,
        path: str | None = None,
        query: str | None = None,
        header: str | None = None,
        times: int | None = 1,
        skip: int = 0,
        probability: float = 1.0,
    ) -> Rule:
        """Apply ``action`` to requests that match (``faults.Match``), ``times`` times; earlier rules go first."""
        rule = Rule(action, Match(method, path, query, header), times, skip, probability)
        self._made.append(rule)
        self._rules.add(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules and the log."""
        self._rules.clear()

    @property
    def log(self) -> list[Request]:
        """All requests so far."""
        return self._rules.log()

    def requests(
        self, method: str | None = None, path: str | None = None, query: str | None = None, header: str | None = None
    ) -> list[Request]:
        """Those of the log that match."""
        match = Match(method, path, query, header)
        return [request for request in self.log if match(request)]

    def cut(self) -> None:
        """Forget all rules and the log, cut all connections and end their threads; new ones are welcome."""
        self.clear()
        self._end_connections()

    def close(self) -> None:
        """Cut all connections and end all threads; again is fine."""
        self._closing.set()
        for rule in self._made:
            rule.release()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which a close would not
        self._acceptor.join(PATIENCE)
        self._listener.close()
        self._end_connections(self._acceptor)

    def _end_connections(self, *others: threading.Thread) -> None:
        with self._lock:
            sockets, threads = list(self._sockets), [*self._threads, *others]
        for sock in sockets:
            with suppress(OSError):  # ended meanwhile
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)
        if alive := [thread.name for thread in threads if thread.is_alive()]:
            raise RuntimeError(f"threads of the fault proxy did not end: {', '.join(alive)}")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            relay = Relay(client, self._connect, self._rules, self._closing)
            thread = threading.Thread(target=relay.run, name="fault-proxy connection")
            with self._lock:
                self._sockets.add(client)
                self._threads.append(thread)
                self._threads = [found for found in self._threads if found.is_alive() or found is thread]
            thread.start()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._upstream, timeout=PATIENCE)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets.add(sock)
        if self._closing.is_set():  # then nobody shuts it down any more
            sock.close()
            raise ConnectionAbortedError("the proxy is closing")
        return sock
