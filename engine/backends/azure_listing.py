"""Listings of a container: a page of its blobs and folders, and the blobs that nobody has committed yet.

Owns how the SDK's pages become records of the contract; ``azure`` calls it, and tells its failures. ``root`` is what a
store's keys have before them in the container.
"""

from __future__ import annotations

from typing import Any

from azure.storage.blob import BlobPrefix, ContainerClient

from ..contract import ObjectInfo, Page, is_key
from . import azure_wire as wire
from .azure_client import request_id


def page(container: ContainerClient, root: str, prefix: str, *, shallow: bool, after: str, limit: int | None) -> Page:
    """``Control.list_page`` below ``root``, by one request."""
    given = {"results_per_page": limit, "client_request_id": request_id(), **({"delimiter": "/"} if shallow else {})}
    call: Any = container.walk_blobs if shallow else container.list_blobs
    pages = call(root + prefix or None, ["metadata"], **given).by_page(after or None)
    objects: list[ObjectInfo] = []
    folders: list[str] = []
    for item in next(pages, ()):
        name = item.name[len(root) :]
        if isinstance(item, BlobPrefix):
            folders.append(name)
        elif name and (item.metadata or {}).get(wire.FOLDER) != "true":  # as which an account with folders tells them
            seconds = wire.seconds_of(item.last_modified)
            objects.append(ObjectInfo(name, item.size, wire.etag_of(item.etag), seconds))
    return Page(tuple(objects), tuple(folders), pages.continuation_token or "")


def uncommitted(container: ContainerClient, root: str, prefix: str) -> list[str]:
    """Keys that have no bytes: of empty blobs, and of those of which only uncommitted blocks are there."""
    blobs = container.list_blobs(root + prefix or None, ["uncommittedblobs"], client_request_id=request_id())
    names = [blob.name[len(root) :] for blob in blobs if not blob.size]
    return [name for name in names if is_key(name)]
