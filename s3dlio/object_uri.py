"""Any object, or folder of objects, by its full URI: which store it is in, and under which key.

Pure. ``objects``, ``transfers`` and the writers of objects split their URIs here. An object store is opened at its
bucket or container, so that all its objects share one client in each worker; a file at its own folder, since a store in
a folder tidies up what lies empty above its objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config import parse_uri
from .engine.contract import Location, check_key
from .engine.errors import ConfigError

_ROOT_PARTS = {"s3": 1, "az": 2}
"""Components of a URI that name the bucket, or account and container."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a URI names: the store's ``location``, the ``key`` in it, and the URI ``base`` that keys are appended to.

    A key that is empty or ends with a slash is a folder's.
    """

    location: Location
    key: str
    base: str

    @property
    def uri(self) -> str:
        return self.base + self.key

    @property
    def is_folder(self) -> bool:
        return not self.key or self.key.endswith("/")

    @property
    def folder(self) -> str:
        """The key as a folder: what lies in it has a key that begins so."""
        return self.key if self.is_folder else self.key + "/"


def split(uri: str, options: Mapping[str, Any] | None = None) -> Place:
    """The place of an object or, with a slash at its end, of a folder; ``ConfigError``. Contacts nothing."""
    scheme, _, rest = str(uri).partition("://")
    if scheme in _ROOT_PARTS:
        parts = rest.split("/", _ROOT_PARTS[scheme])
        root, key = "/".join(parts[: _ROOT_PARTS[scheme]]), "".join(parts[_ROOT_PARTS[scheme] :])
        place = Place(parse_uri(f"{scheme}://{root}", options), key, f"{scheme}://{root}/")
    elif scheme in ("file", "direct"):
        parent, _, name = rest.rstrip("/").rpartition("/")
        location = parse_uri(f"{scheme}://{parent or rest[:1]}", options)
        key = name + "/" if name and rest.endswith("/") else name
        place = Place(location, key, f"{scheme}://{parent}/")
    else:
        parse_uri(uri, options)  # says what is wrong with it
        raise ConfigError(f"{uri!r} names no object")
    if place.key:
        check_key(place.key.removesuffix("/"))
    return place


def split_object(uri: str, options: Mapping[str, Any] | None = None) -> Place:
    """The place of an object; ``ConfigError`` for a folder or a store."""
    place = split(uri, options)
    if place.is_folder:
        raise ConfigError(f"{uri!r} names no object: write scheme://…/folder/name, without a slash at its end")
    return place
