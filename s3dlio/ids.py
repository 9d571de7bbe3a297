"""Names of checkpoints: one (step, timestamp) pair names every key of a checkpoint and gives its place in the order.

Pure but for ``IdClock``, which reads the clock. Never touches a store. Writers mint ids here, everybody who meets a key
parses it here.

A timestamp is ``YYYYMMDDTHHMMSS.ffffffZ-`` and 8 random hex digits, in UTC: the start of the save, so that names sort
by time, and enough randomness that two saves of one step never share a key. Readers take any suffix: the published
package writes ``YYYYMMDD-HHMMSS``, and what holds no time at all sorts before everything that does.
"""

from __future__ import annotations

import operator
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import SupportsIndex

from .engine.errors import ConfigError

STEP_MAX = 2**64 - 1
"""Steps are unsigned 64-bit in the published package."""

MANIFESTS = "manifests/"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_NAME = re.compile(r"ckpt-(0|[1-9][0-9]{0,19})-([0-9A-Za-z][0-9A-Za-z._:+-]{0,127})", re.ASCII)
_TIME = re.compile(r"([0-9]{8})(?:T([0-9]{6})\.([0-9]{6})Z|-([0-9]{6}))(?![0-9])", re.ASCII)
_LABEL = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class CheckpointId:
    """Which checkpoint: its training ``step`` and its save's ``timestamp``; ``ConfigError`` if they make no name."""

    step: int
    timestamp: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.step > STEP_MAX:
            raise ConfigError(f"step {self.step!r} and timestamp {self.timestamp!r} make no checkpoint name")

    @property
    def name(self) -> str:
        """``ckpt-{step}-{timestamp}``: what users see as the checkpoint's id, unique in a store."""
        return f"ckpt-{self.step}-{self.timestamp}"

    @property
    def manifest_key(self) -> str:
        return f"{MANIFESTS}{self.name}.json"

    @property
    def start_us(self) -> int | None:
        """Start of the save in microseconds since 1970 (UTC); ``None`` if the timestamp holds no time."""
        return parse_timestamp(self.timestamp)

    @property
    def order(self) -> tuple[bool, int, int, str]:
        """Sorts checkpoints as they were saved: by start, then step; the rest only makes the order total."""
        start = self.start_us
        return (start is not None, start or 0, self.step, self.timestamp)

    @classmethod
    def parse(cls, name: str) -> CheckpointId | None:
        """The id with this name, ``None`` if it is none."""
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) > STEP_MAX:
            return None
        return cls(int(match[1]), match[2])

    @classmethod
    def of_manifest_key(cls, key: str) -> CheckpointId | None:
        """The id whose manifest has this key; ``None`` for every other key, ``manifests/latest.json`` among them."""
        if not key.startswith(MANIFESTS) or not key.endswith(".json"):
            return None
        return cls.parse(key[len(MANIFESTS) : -len(".json")])


def parse_timestamp(timestamp: str) -> int | None:
    """Microseconds since 1970 of a timestamp of this or the published package (both UTC), whatever follows the time."""
    match = _TIME.match(timestamp)
    if match is None:
        return None
    day, clock, micros = match[1], match[2] or match[4], match[3] or "000000"
    try:
        moment = datetime(
            *(int(day[:4]), int(day[4:6]), int(day[6:])),
            *(int(clock[:2]), int(clock[2:4]), int(clock[4:])),
            int(micros),
            tzinfo=timezone.utc,
        )
    except ValueError:
        return None
    return (moment - _EPOCH) // _MICROSECOND


def format_timestamp(start_us: int, suffix: str) -> str:
    """The timestamp of a save that started at ``start_us``; ``ConfigError`` beyond the year 9999."""
    try:
        moment = _EPOCH + start_us * _MICROSECOND
    except OverflowError:
        raise ConfigError(
            f"no timestamp for {start_us} microseconds after 1970: the clock, or the newest checkpoint of the store, "
            "is beyond the year 9999; delete that checkpoint or set the clock"
        ) from None
    # strftime does not pad years before 1000 on Linux.
    return f"{moment.year:04d}{moment:%m%dT%H%M%S.%f}Z-{suffix}"


def check_step(step: SupportsIndex) -> int:
    """``step`` as an ``int`` of 0 to 2^64-1 (any integer type, NumPy's too); ``ConfigError`` otherwise."""
    if isinstance(step, bool):
        raise ConfigError(f"step must be an integer, not {step!r}")
    try:
        value = operator.index(step)
    except TypeError:
        raise ConfigError(f"step must be an integer, not {step!r}") from None
    if not 0 <= value <= STEP_MAX:
        raise ConfigError(f"step must be 0 or more and fit 64 bits, not {value}")
    return value


def check_label(label: object) -> str:
    """A user's ``id=``, or ``ConfigError``.

    It is the label by which the ranks of one save find each other, recorded in their shard records and in the manifest.
    It is never part of a key: a label used twice must not overwrite what was committed under it.
    """
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ConfigError(
            f"id={label!r} is no id: 1 to 128 ASCII letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return label


class IdClock:
    """Mints ids that sort behind every id seen: the start is max(now, newest seen + 1 µs). Safe to share by threads.

    A clock that steps backwards, or a host whose clock is behind, would otherwise save a checkpoint that is never the
    latest. ``now_us`` gives microseconds since 1970, ``suffix`` the random digits.
    """

    def __init__(
        self,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        suffix: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        self._now_us = now_us
        self._suffix = suffix
        self._newest: int | None = None
        self._lock = threading.Lock()

    def see(self, ids: Iterable[CheckpointId]) -> None:
        """Take note of ids that exist."""
        newest = max((start for id_ in ids if (start := id_.start_us) is not None), default=None)
        if newest is not None:
            with self._lock:
                self._newest = newest if self._newest is None else max(self._newest, newest)

    def mint(self, step: SupportsIndex) -> CheckpointId:
        """A new id; ``ConfigError`` for a step out of range."""
        checked = check_step(step)
        with self._lock:
            start = self._now_us()
            if self._newest is not None:
                start = max(start, self._newest + 1)
            minted = CheckpointId(checked, format_timestamp(start, self._suffix()))
            self._newest = start
        return minted
