"""The latest pointers: ``manifests/latest.json``, and its copy ``latest.json`` where the published package looks.

A hint for other programs, moved by compare and swap. Nothing here decides which checkpoint is the latest: ``commit``
moves the pointer forward to what it committed, ``removal`` moves it off what it is about to remove. A pointer that is
torn, or that names no manifest, counts as absent.
"""

from __future__ import annotations

import json
import logging

from . import fields
from .engine.contract import Control
from .engine.errors import ManifestError, NotFoundError, PreconditionError, S3dlioError, StorageError
from .engine.threads import Each
from .ids import MANIFESTS, CheckpointId

POINTERS = (f"{MANIFESTS}latest.json", "latest.json")
_POINTER_MAX = 1 << 16
_TRIES = 16  # a lost race means that another save has won: sixteen in a row need sixteen saves at once

_log = logging.getLogger(__name__)


def encode_pointer(id_: CheckpointId) -> bytes:
    """The pointer to a checkpoint, in the published package's words."""
    value = {"manifest_key": id_.manifest_key, "global_step": id_.step, "ts": id_.timestamp}
    return (json.dumps(value, indent=2) + "\n").encode()


def parse_pointer(data: bytes) -> CheckpointId | None:
    """What a pointer names; ``None`` if it is torn or names no manifest's key."""
    try:
        value = fields.mapping(fields.loads(data, "pointer"), "pointer")
    except ManifestError:
        return None
    key = value.get("manifest_key")
    return CheckpointId.of_manifest_key(key) if isinstance(key, str) else None


def advance(control: Control, id_: CheckpointId, each: Each = map) -> bool:
    """Point both pointers at ``id_`` unless they point at a newer checkpoint that exists. Never raises over a pointer.

    Returns whether both were left at ``id_`` or a newer one; a failure is logged and changes nothing that matters.
    """
    return all(list(each(lambda key: _guarded(control, key, id_), POINTERS)))  # both, whatever becomes of the first


def _guarded(control: Control, key: str, id_: CheckpointId) -> bool:
    try:
        return _advance(control, key, id_)
    except S3dlioError as error:
        _log.warning("%s was not moved to %s, which is committed nevertheless: %s", key, id_.name, error)
        return False


def _advance(control: Control, key: str, id_: CheckpointId) -> bool:
    for _ in range(_TRIES):
        current, etag = _read(control, key)
        if current is not None and current.order >= id_.order and _exists(control, current):
            return True
        if _swap(control, key, encode_pointer(id_), etag):
            return True
    _log.warning("%s was not moved to %s, which is committed nevertheless: lost %d races", key, id_.name, _TRIES)
    return False


def retreat(control: Control, doomed: set[CheckpointId], newest: CheckpointId | None) -> None:
    """Move each pointer that names one of ``doomed`` to ``newest``, or remove it where nothing is left.

    Raises ``StorageError``: a checkpoint is not removed from under its pointer.
    """
    for key in POINTERS:
        for _ in range(_TRIES):
            current, etag = _read(control, key)
            if current is None or current not in doomed:
                break
            if newest is None:
                control.delete(key)
                break
            if _swap(control, key, encode_pointer(newest), etag):
                break
        else:
            raise PreconditionError(f"{key} could not be moved: {_TRIES} saves came between; try again", transient=True)


def _read(control: Control, key: str) -> tuple[CheckpointId | None, str | None]:
    """What the pointer names and its etag; the etag is ``None`` if there is no pointer."""
    try:
        data, info = control.read(key, limit=_POINTER_MAX)
    except NotFoundError:
        return None, None
    except StorageError as error:
        if error.transient:
            raise
        return None, control.head(key).etag  # larger than any pointer
    return parse_pointer(data), info.etag


def _swap(control: Control, key: str, data: bytes, etag: str | None) -> bool:
    """Whether the pointer now holds ``data``; false if somebody else moved it."""
    try:
        control.put(key, [memoryview(data)], if_absent=etag is None, if_match=etag)
    except PreconditionError:
        return _holds(control, key, data)  # a resent request meets its own write
    return True


def _holds(control: Control, key: str, data: bytes) -> bool:
    try:
        return control.read(key, limit=_POINTER_MAX)[0] == data
    except StorageError:
        return False


def _exists(control: Control, id_: CheckpointId) -> bool:
    try:
        control.head(id_.manifest_key)
    except NotFoundError:
        return False
    return True
