"""What the fault proxy does to a request, and the rules that choose the requests: pure, without sockets.

Owns the actions, the matching and the order of rules; ``relay`` carries actions out, tests make rules through
``FaultProxy.rule``. Byte positions ``at`` count the body from 0, HTTP's chunk framing excluded.
"""

from __future__ import annotations

import random
import re
import threading
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Status:
    """Answer this and forward nothing; ``code`` is in the XML and in ``x-ms-error-code``."""

    status: int = 503
    code: str = "SlowDown"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorIn200:
    """Answer 200 with an error document and forward nothing, as CompleteMultipartUpload may."""

    code: str = "InternalError"


@dataclass(frozen=True, slots=True)
class ResetBefore:
    """Reset the connection and forward nothing."""


@dataclass(frozen=True, slots=True)
class ResetMid:
    """Forward ``at`` bytes of the request's body, then reset both sides."""

    at: int = 1


@dataclass(frozen=True, slots=True)
class LostReply:
    """Forward the request, take the whole reply, then reset the client."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Forward the reply's head and ``at`` bytes of its body, then close."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class ResetReply:
    """The same, but reset; of the ``at`` bytes some may be lost too."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class FlipRequest:
    """Flip the lowest bit of byte ``at`` of the request's body."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class FlipReply:
    """Flip the lowest bit of byte ``at`` of the reply's body."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait before forwarding."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait for ``Rule.release`` before forwarding."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Take the request and never answer; ends when the client or the proxy closes."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """Move both bodies at this many MB/s."""

    mbps: float


Action = (
    Status
    | ErrorIn200
    | ResetBefore
    | ResetMid
    | LostReply
    | Truncate
    | ResetReply
    | FlipRequest
    | FlipReply
    | Delay
    | Hold
    | Hang
    | Throttle
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came; names of headers are lower-case, and what signs the request is left out.

    ``at`` is when, on the monotonic clock.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str] = field(hash=False)
    action: Action | None = None
    at: float = field(default_factory=time.monotonic, compare=False)


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests: the method and regular expressions on the raw path, the query and any ``name: value`` header."""

    method: str | None = None
    path: str | None = None
    query: str | None = None
    header: str | None = None

    def __call__(self, request: Request) -> bool:
        return (
            self.method in (None, request.method)
            and _found(self.path, request.path)
            and _found(self.query, request.query)
            and (
                self.header is None
                or any(_found(self.header, f"{name}: {value}") for name, value in request.headers.items())
            )
        )


def _found(pattern: str | None, text: str) -> bool:
    return pattern is None or re.search(pattern, text) is not None


class Rule:
    """An action for the requests that match, after the first ``skip`` of them, ``times`` times (``None``: for ever)."""

    def __init__(self, action: Action, match: Match, times: int | None, skip: int, probability: float) -> None:
        self.action = action
        self.match = match
        self.released = threading.Event()
        self._left = times
        self._skip = skip
        self._probability = probability
        self._fired = 0
        self._changed = threading.Condition()

    @property
    def fired(self) -> int:
        """How many requests it was applied to."""
        with self._changed:
            return self._fired

    def wait(self, count: int = 1, timeout: float = 30.0) -> None:
        """Return once it was applied ``count`` times; ``TimeoutError`` if that takes longer."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._fired >= count, timeout):
                raise TimeoutError(f"{self.action} was applied {self._fired} times in {timeout} s, not {count}")

    def release(self) -> None:
        """Let go what ``Hold`` holds, now and later."""
        self.released.set()

    def takes(self, request: Request, chance: random.Random) -> bool:
        """Whether it is applied to this request, which it then counts."""
        if self._left == 0 or not self.match(request):
            return False
        if self._skip:
            self._skip -= 1
            return False
        if chance.random() >= self._probability:
            return False
        if self._left is not None:
            self._left -= 1
        with self._changed:
            self._fired += 1
            self._changed.notify_all()
        return True


class Rules:
    """All rules of a proxy, the first that takes a request being applied, and the log of requests."""

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self._chance = random.Random(seed)
        self._rules: list[Rule] = []
        self._log: list[Request] = []

    def add(self, rule: Rule) -> None:
        """Append a rule."""
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """Forget all rules and requests; what is held goes on."""
        with self._lock:
            for rule in self._rules:
                rule.release()
            self._rules.clear()
            self._log.clear()

    def pick(self, method: str, path: str, query: str, headers: dict[str, str]) -> Rule | None:
        """The rule for this request, which is logged with its action before anything is done."""
        request = Request(method, path, query, headers)
        with self._lock:
            rule = next((rule for rule in self._rules if rule.takes(request, self._chance)), None)
            self._log.append(Request(method, path, query, headers, rule.action if rule else None))
        return rule

    def log(self) -> list[Request]:
        """All requests so far."""
        with self._lock:
            return list(self._log)
