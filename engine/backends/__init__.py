"""Storage backends: one module a kind of store, all of the contract in ``engine/contract.py``; workers run them.

Owns the table of schemes and the order of the wrappers; a store's module (and its SDK) is imported only when a location
of its scheme is opened. Each module has ``open_location(location) -> Backend``.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import cast

from ..contract import Backend, Location
from ..errors import ConfigError, DependencyError
from .pace import Pace
from .retry import REMOTE, RetryBackend, RetryPolicy
from .trace import TraceBackend

SCHEMES: dict[str, tuple[str, str | None]] = {
    "az": (".azure", "azure"),
    "direct": (".posix", None),
    "file": (".posix", None),
    "memory": (".memory", None),
    "s3": (".s3", None),
}
"""Scheme to its module here, and the extra of this package that installs what the module needs."""

OBJECT_STORES = frozenset({"az", "s3"})
"""Schemes whose requests wait for a network: a worker runs more of them at once."""


def open_backend(
    location: Location, *, retry: RetryPolicy | None = None, trace: bool = True, pace: Pace | None = None
) -> Backend:
    """The backend of ``location``: transient failures are retried, and each attempt is logged at debug level.

    Nothing is contacted yet. ``retry`` bounds the insistence (default: that of ``retry_policy``); ``pace`` is what the
    pool's workers share. Raises ``ConfigError`` for an unknown scheme, root or option and ``DependencyError`` if the
    scheme's SDK is not installed.
    """
    if location.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in sorted(SCHEMES))
        raise ConfigError(f"{location.uri}: unknown scheme {location.scheme!r}; known are {known}")
    name, extra = SCHEMES[location.scheme]
    try:
        module = importlib.import_module(name, __name__)
    except ImportError as error:
        fix = f"install it with: pip install 's3dlio[{extra}]'" if extra else "reinstall s3dlio"
        raise DependencyError(f"{location.scheme}:// needs a package that is missing ({error}); {fix}") from error
    backend = cast(Backend, module.open_location(location))
    if trace:
        backend = TraceBackend(backend)
    return RetryBackend(backend, retry or retry_policy(location), pace=pace)


def retry_policy(location: Location) -> RetryPolicy:
    """How long to insist at ``location``.

    An object store's options ``retry_deadline`` and ``first_deadline`` bound it, in seconds.
    """
    if location.scheme not in OBJECT_STORES:
        return RetryPolicy()
    return replace(
        REMOTE,
        deadline=_seconds(location, "retry_deadline") or REMOTE.deadline,
        first_deadline=_seconds(location, "first_deadline"),
    )


def insistence(location: Location) -> float:
    """Seconds for which a request to ``location`` may go on: the time-outs of the last attempt come after the deadline.

    Only those that were given: what the SDKs are given else is well below a minute.
    """
    timeouts = (_seconds(location, name) or 0.0 for name in ("connect_timeout", "read_timeout"))
    return retry_policy(location).deadline + sum(timeouts)


def _seconds(location: Location, name: str) -> float | None:
    value = dict(location.options).get(name)
    return float(value) if isinstance(value, (int, float)) else None
