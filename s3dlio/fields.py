"""Reading JSON that may be broken or hostile: typed, bounded fields, each refused by name with ``ManifestError``.

Pure. Owns no format: manifests, records, indexes and pointers are read through it, and ``user_meta`` is checked with it
before it is written.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .engine.contract import check_key
from .engine.errors import ConfigError, ManifestError

SIZE_MAX = 2**63 - 1
USER_META_MAX = 1 << 20
"""Bytes of ``user_meta`` as JSON: it is read with every listing, so it is no place for data."""
KEY_MAX = 1024
DEPTH_MAX = 64

_CHECKSUM = re.compile(r"crc32c:[0-9a-fA-F]{8}", re.ASCII)
Json = dict[str, Any]


def loads(data: bytes | bytearray | memoryview, what: str) -> Any:
    """The JSON value in ``data``; ``what`` names it in errors."""
    try:
        return json.loads(str(data, "utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise ManifestError(f"{what} is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and an integer of thousands of digits
        raise ManifestError(f"{what} is not valid JSON (torn, truncated or foreign): {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def mapping(value: Any, what: str) -> Json:
    """``value``, which must be an object."""
    if not isinstance(value, dict):
        raise ManifestError(f"{what} must be an object, not {_kind(value)}")
    return value


def integer(fields: Json, name: str, what: str, *, least: int = 0, most: int = SIZE_MAX) -> int:
    """A required integer within bounds; ``true`` and ``7.0`` are none."""
    value = fields.get(name)
    if type(value) is not int:
        raise ManifestError(f"{what}: {name} must be an integer, not {_kind(value)}")
    if not least <= value <= most:
        raise ManifestError(f"{what}: {name} is {_short(value)}, outside {least} to {most}")
    return value


def optional_integer(fields: Json, name: str, what: str, *, most: int = SIZE_MAX) -> int | None:
    """An integer of 0 or more, or ``None`` where it is absent or null."""
    return None if fields.get(name) is None else integer(fields, name, what, most=most)


def text(fields: Json, name: str, what: str, *, most: int = 256) -> str:
    """A required string of at most ``most`` characters."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise ManifestError(f"{what}: {name} must be a string, not {_kind(value)}")
    if len(value) > most:
        raise ManifestError(f"{what}: {name} has {len(value)} characters, more than {most}")
    return value


def optional_text(fields: Json, name: str, what: str, *, most: int = 256) -> str | None:
    """A string, or ``None`` where it is absent or null."""
    return None if fields.get(name) is None else text(fields, name, what, most=most)


def key(fields: Json, name: str, what: str, *, prefix: str) -> str:
    """A required key below ``prefix`` that cannot leave the store."""
    value = text(fields, name, what, most=KEY_MAX)
    try:
        check_key(value)
    except ConfigError as error:
        raise ManifestError(f"{what}: {error}") from None
    if not value.startswith(prefix):
        raise ManifestError(f"{what}: {name} {value!r} does not lie below {prefix}")
    return value


def checksum(fields: Json, name: str, what: str) -> str | None:
    """An optional ``crc32c:xxxxxxxx``, in lower case."""
    value = optional_text(fields, name, what)
    if value is not None and not _CHECKSUM.fullmatch(value):
        raise ManifestError(f"{what}: {name} {value!r} is malformed: expected 'crc32c:' and 8 hexadecimal digits")
    return None if value is None else value.lower()


def check_user_meta(value: Any) -> Any:
    """``value`` as JSON gives it back (a tuple becomes a list); ``ConfigError`` names what JSON cannot keep."""
    _check_json(value, "user_meta", 0)
    try:
        data = json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:  # a lone surrogate
        raise ConfigError(f"user_meta cannot be stored: {error}") from None
    if len(data) > USER_META_MAX:
        raise ConfigError(f"user_meta is {len(data)} bytes as JSON, more than {USER_META_MAX}: store data as a shard")
    return json.loads(data)


def _check_json(value: Any, path: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise ConfigError(f"{path} is nested deeper than {DEPTH_MAX}")
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ConfigError(f"{path} is {_short(value)}, beyond 64 bits: pass it as a string")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{path} is {value}, which JSON does not have: pass None or a string")
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"{path} has the key {name!r}: keys must be strings")
            _check_json(item, f"{path}[{name!r}]", depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_json(item, f"{path}[{number}]", depth + 1)
    else:
        raise ConfigError(f"{path} is {_kind(value)}, which JSON does not have: pass plain numbers, strings and lists")


def _kind(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__} {_short(value)}"


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"  # repr of a huge one raises
    if isinstance(value, (int, float, str)):
        return repr(value if not isinstance(value, str) else value[:40])
    return ""
