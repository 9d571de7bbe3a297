"""What torch_checkpointing's paths mean: which store, where in it, and which folder is a temporary one.

Pure. ``storage`` asks for the spot of each path, ``object_tree`` for its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...config import parse_uri
from ...engine.backends import OBJECT_STORES
from ...engine.contract import Location, check_key
from ...engine.errors import ConfigError
from ...object_uri import Place, split

_URI = re.compile(r"(s3|az|file|direct):/+(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Spot:
    """A file or folder: its store, which is opened at ``uri``, and the components of its name there."""

    uri: str
    location: Location
    parts: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        return self.location.scheme not in OBJECT_STORES

    @property
    def path(self) -> str:
        """A local one's absolute path."""
        return "/" + "/".join(self.parts)

    def __str__(self) -> str:
        return f"{self.uri.rstrip('/')}/{'/'.join(self.parts)}"


def spot_of(path: str | os.PathLike[str], base: str | None, options: Mapping[str, Any] | None) -> Spot:
    """The spot that ``path`` names: a URI, also as ``Path`` spells it (``s3:/bucket/a``), or a name below ``base``.

    An absolute path is a local one. ``ConfigError`` for what names nothing.
    """
    text = os.fspath(path)
    match = _URI.fullmatch(text)
    base = None if base is None else base.rstrip("/")
    local = base is None or base.partition("://")[0] not in OBJECT_STORES
    if match:
        uri = f"{match[1]}://{match[2]}" if match[1] in OBJECT_STORES else f"{match[1]}:///{match[2]}"
    elif text.startswith("/") and local:
        uri = f"{'file' if base is None else base.partition('://')[0]}://{text}"
    elif text.startswith("/") or base is None:
        raise ConfigError(
            f"{text!r} names no place in {base or 'any store'}: pass a name below the uri= of S3dlioStorageConfig, "
            "or a URI"
        )
    else:
        uri = f"{base}/{'' if text == '.' else text}"
    return _local(uri) if uri.partition("://")[0] not in OBJECT_STORES else _object(uri, base, options)


def _local(uri: str) -> Spot:
    scheme, _, path = uri.partition("://")
    parts = tuple(part for part in os.path.normpath(path).split("/") if part)
    return Spot(f"{scheme}:///", parse_uri(f"{scheme}:///"), parts)


def _object(uri: str, base: str | None, options: Mapping[str, Any] | None) -> Spot:
    """Below ``base`` if it is, so that only folders there are looked at; else in its bucket or container."""
    if base is not None and base.partition("://")[0] != uri.partition("://")[0]:
        options = None  # they are of another kind of store
    if base is not None and f"{uri}/".startswith(f"{base}/"):
        root, name = base, uri[len(base) :].strip("/")
    else:
        place = split(uri, options)
        root, name = place.base, place.key.strip("/")
    if name:
        check_key(name)
    return Spot(root, parse_uri(root, options), tuple(name.split("/")) if name else ())


def place_of(spot: Spot, key: str) -> Place:
    """Where an object of the store of ``spot`` is."""
    return Place(spot.location, key, f"{spot.uri.rstrip('/')}/")


def settled(parts: tuple[str, ...], prefix: str) -> tuple[tuple[str, ...], int | None]:
    """Where a path's files lie, and which component named a temporary folder: its files lie in the final one.

    The first that begins with ``prefix`` does: what is below it keeps its name.
    """
    for number, part in enumerate(parts):
        if part.startswith(prefix) and part != prefix:
            return (*parts[:number], part[len(prefix) :], *parts[number + 1 :]), number
    return parts, None
