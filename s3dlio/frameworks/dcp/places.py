"""Where a checkpoint goes or comes from: a writer's URI and DCP's ``checkpoint_id`` as one place.

Pure. A place is a store of its own; its step is the number that its name ends with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...config import parse_uri
from ...engine.backends import SCHEMES
from ...engine.contract import Location
from ...engine.errors import ConfigError
from ...ids import STEP_MAX, check_step

CheckpointIdLike = str | os.PathLike[str] | None

_NUMBER = re.compile(r"([0-9]+)/*$")
_LOCAL = ("file", "direct")


@dataclass(frozen=True, slots=True)
class Place:
    """A store: its ``uri``, ``location`` and, of a checkpoint saved there, the ``step``."""

    uri: str
    location: Location
    step: int


def place_of(
    base: str, checkpoint_id: CheckpointIdLike, options: Mapping[str, Any] | None = None, step: int | None = None
) -> Place:
    """The place that ``checkpoint_id`` names beside the writer's or reader's own URI ``base``.

    ``None``: ``base`` itself. A URI: that one. An absolute path: that folder, by ``base``'s scheme if that is a local
    one, else ``file``. Any other text: a folder below ``base``. ``step``: instead of the number in the name, which is
    else 0. ``ConfigError`` for what names no store.
    """
    uri = _uri(base, checkpoint_id)
    same = uri.partition("://")[0] == base.partition("://")[0]
    return Place(uri, parse_uri(uri, options if same else None), number_of(uri) if step is None else check_step(step))


def rank_place(place: Place, rank: int, options: Mapping[str, Any] | None = None) -> Place:
    """The store of one rank's own checkpoint, where ranks save without each other (``use_collectives=False``)."""
    uri = f"{place.uri.rstrip('/')}/ranks/{rank}"
    return Place(uri, parse_uri(uri, options), place.step)


def _uri(base: str, checkpoint_id: CheckpointIdLike) -> str:
    if checkpoint_id is None:
        return base
    text: object = os.fspath(checkpoint_id)
    if not isinstance(text, str) or not text:
        raise ConfigError(f"checkpoint_id {checkpoint_id!r} names no place: pass a URI or a path")
    if "://" in text:
        return text
    scheme = base.partition("://")[0]
    if text.startswith("/"):
        return f"{scheme if scheme in _LOCAL else 'file'}://{text}"
    return f"{base.rstrip('/')}/{text}"


def is_place(checkpoint_id: str | os.PathLike[str]) -> bool:
    """Whether a ``checkpoint_id`` by itself names a store."""
    text = os.fspath(checkpoint_id)
    scheme, separator, rest = text.partition("://")
    return (scheme in SCHEMES and bool(rest)) if separator else text.startswith("/")


def number_of(uri: str) -> int:
    """The number that a URI ends with (``…/step-00100`` is 100); 0 where there is none or it is no step."""
    match = _NUMBER.search(uri)
    digits = match[1].lstrip("0") if match else ""
    number = int(digits) if 0 < len(digits) <= 20 else 0
    return number if number <= STEP_MAX else 0
