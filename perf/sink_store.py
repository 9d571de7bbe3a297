"""What the sink remembers: objects, uploads and blocks, and the pieces they are made of.

Owns the tables behind one lock, the conditions of a write and the making of ETags; compares no checksum. ``sink_s3``
and ``sink_azure`` speak for it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .sink_memory import Piece, contradicts


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: its pieces in order, and the headers it was stored with that a reader gets back."""

    key: str
    pieces: tuple[Piece, ...]
    etag: str
    modified: float
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


@dataclass(slots=True)
class Upload:
    """An open upload: its parts by number."""

    key: str
    name: str
    started: float
    headers: Mapping[str, str]
    parts: dict[int, Piece] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a request on the object's ETag; ``absent``: there must be none."""

    absent: bool = False
    match: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Conditions:
        """Those that HTTP headers state."""
        return cls(headers.get("if-none-match") == "*", headers.get("if-match"))

    def hold(self, found: Stored) -> bool:
        """Whether this is the object that ``match`` names."""
        return self.match in (None, "*") or (self.match or "").strip('"') == found.etag


class ConditionError(Exception):
    """``exists``: the object is there and must not be; else it is another one than the condition names."""

    def __init__(self, *, exists: bool) -> None:
        super().__init__()
        self.exists = exists


class ChecksumError(Exception):
    """The pieces are not what the checksum says."""


class Store:
    """All that is stored; keys begin with ``/`` and the bucket, or ``/`` and account and container."""

    def __init__(self, get_size: int = 0) -> None:
        self._get_size = get_size
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._objects: dict[str, Stored] = {}
        self._uploads: dict[str, Upload] = {}
        self._blocks: dict[str, dict[str, Piece]] = {}

    def publish(self, key: str, pieces: Sequence[Piece], conditions: Conditions, headers: Mapping[str, str]) -> Stored:
        """Replace an object if the conditions hold; else ``ConditionError``."""
        with self._lock:
            return self._publish(key, pieces, conditions, headers)

    def find(self, key: str, conditions: Conditions | None = None) -> Stored | None:
        """An object, checked; one never stored has ``get_size`` bytes, if that was asked for."""
        with self._lock:
            found = self._objects.get(key)
        if found is None and self._get_size:
            found = Stored(key, (Piece(self._get_size),), "sink", 0.0)
        if found is not None and conditions is not None and not conditions.hold(found):
            raise ConditionError(exists=False)
        return found

    def delete(self, key: str) -> bool:
        """Whether there was one."""
        with self._lock:
            return self._objects.pop(key, None) is not None

    def list(self, prefix: str, after: str, most: int) -> tuple[list[Stored], bool]:
        """Up to ``most`` objects below ``prefix`` with keys after ``after``, and whether there are more."""
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
            return [self._objects[key] for key in keys[:most]], len(keys) > most

    def begin(self, key: str, headers: Mapping[str, str]) -> Upload:
        """Open an upload."""
        with self._lock:
            name = f"sink-{next(self._numbers):08x}"
            upload = self._uploads[name] = Upload(key, name, time.time(), headers)
            return upload

    def add_part(self, key: str, name: str, number: int, piece: Piece) -> bool:
        """Whether there is such an upload."""
        with self._lock:
            upload = self._uploads.get(name)
            if upload is None or upload.key != key:
                return False
            upload.parts[number] = piece
            return True

    def complete(
        self,
        key: str,
        name: str,
        numbers: Sequence[int],
        conditions: Conditions,
        headers: Mapping[str, str],
        checksum: bytes | None,
    ) -> Stored | None:
        """Publish the parts of an upload; ``None`` without such an upload, ``KeyError`` without such a part."""
        with self._lock:
            upload = self._uploads.get(name)
            if upload is None or upload.key != key:
                return None
            pieces = [upload.parts[number] for number in numbers]
            if contradicts(checksum, pieces):
                raise ChecksumError
            stored = self._publish(key, pieces, conditions, {**upload.headers, **headers})
            del self._uploads[name]
            return stored

    def abort(self, key: str, name: str) -> bool:
        """Whether there was such an upload."""
        with self._lock:
            found = self._uploads.get(name)
            return found is not None and found.key == key and self._uploads.pop(name) is found

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """All open uploads below ``prefix``."""
        with self._lock:
            found = [upload for upload in self._uploads.values() if upload.key.startswith(prefix)]
        return sorted(found, key=lambda upload: (upload.key, upload.name))

    def parts(self, key: str, name: str) -> dict[int, int] | None:
        """Sizes of an upload's parts by number; ``None`` without such an upload."""
        with self._lock:
            found = self._uploads.get(name)
            if found is None or found.key != key:
                return None
            return {number: found.parts[number].size for number in sorted(found.parts)}

    def add_block(self, key: str, name: str, piece: Piece) -> None:
        """Keep an uncommitted block."""
        with self._lock:
            self._blocks.setdefault(key, {})[name] = piece

    def commit(self, key: str, names: Sequence[str], conditions: Conditions, headers: Mapping[str, str]) -> Stored:
        """Publish blocks by name and drop the others; ``KeyError`` without such a block."""
        with self._lock:
            blocks = self._blocks.get(key, {})
            stored = self._publish(key, [blocks[name] for name in names], conditions, headers)
            self._blocks.pop(key, None)
            return stored

    def blocks(self, key: str) -> dict[str, int]:
        """Sizes of a key's uncommitted blocks by name."""
        with self._lock:
            return {name: piece.size for name, piece in self._blocks.get(key, {}).items()}

    def uncommitted(self, prefix: str) -> Sequence[str]:
        """Keys below ``prefix`` that have blocks and no object."""
        with self._lock:
            return sorted(key for key in self._blocks if key.startswith(prefix) and key not in self._objects)

    def _publish(self, key: str, pieces: Sequence[Piece], conditions: Conditions, headers: Mapping[str, str]) -> Stored:
        found = self._objects.get(key)
        if conditions.absent and found is not None:
            raise ConditionError(exists=True)
        if conditions.match is not None and (found is None or not conditions.hold(found)):
            raise ConditionError(exists=False)
        stored = Stored(key, tuple(pieces), f"{next(self._numbers):032x}", time.time(), headers)
        self._objects[key] = stored
        return stored
