"""The service by which a cloud gives a machine its credentials: Azure's tokens and the roles of Amazon.

Owns a small http server on the loopback and the log of its requests; what it answers is the test's.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Identities:
    """A running service: ``asked`` is the headers of each request so far, names in lower case."""

    def __init__(self, answer: Callable[[], dict[str, Any]]) -> None:
        self.asked: list[dict[str, str]] = []
        identities = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                identities.asked.append({name.lower(): value for name, value in self.headers.items()})
                body = json.dumps(answer()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/credentials"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(answer: Callable[[], dict[str, Any]]) -> Iterator[Identities]:
    """A service whose answers ``answer`` makes."""
    service = Identities(answer)
    thread = threading.Thread(target=service.serve, name="identities")
    thread.start()
    try:
        yield service
    finally:
        service.close()
        thread.join()


def azure_token(seconds: float) -> dict[str, Any]:
    """What App Service answers: a token that ends in so many seconds, and that nobody has signed."""
    now = int(time.time())
    ends = int(now + seconds)
    claims = {"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/tests/", "iat": now, "nbf": now - 60}
    parts = [{"alg": "HS256", "typ": "JWT"}, {**claims, "exp": ends}]
    text = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    token = ".".join([*text, "bm9ib2R5"])
    return {"access_token": token, "expires_on": str(ends), "resource": claims["aud"], "token_type": "Bearer"}


def amazon_role(seconds: float) -> dict[str, Any]:
    """What a container's role answers: credentials that end in so many seconds."""
    ends = datetime.fromtimestamp(time.time() + seconds, timezone.utc)
    return {"AccessKeyId": "test", "SecretAccessKey": "test", "Token": "token", "Expiration": ends.isoformat()}
