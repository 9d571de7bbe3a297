"""DCP's ``Metadata`` as JSON and back, without pickle.

Pure. What is read comes from untrusted storage: every field is checked, and nothing is made of it but sizes, names and
torch's own enumerations. ``writer`` stores the text as the checkpoint's last shard, ``reader`` reads it; FORMAT.md
(torch DCP) describes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ... import fields
from ...engine.errors import ManifestError, UnsupportedError
from ...tensors import dump_json_pieces, flatten
from ...tensors.dtypes import TORCH
from ...tensors.restore import build
from .objects import OBJECT, PICKLE
from .stored import TENSOR, StoredItem

NEWEST_FORMAT = 1
_KINDS = (TENSOR, OBJECT, PICKLE)
_MAX_DIMS = 64
_WHAT = "the metadata of DCP"

Items = dict[MetadataIndex, StoredItem]


def dump(metadata: Metadata, items: Items) -> Iterator[bytes]:
    """The JSON, in pieces. ``UnsupportedError`` for what a planner put into ``planner_data`` that needs pickle."""
    meta = metadata.storage_meta
    yield from dump_json_pieces(
        {
            "format_version": NEWEST_FORMAT,
            "torch": torch.__version__,
            "version": metadata.version,
            "storage_meta": None if meta is None else _meta_json(meta),
            "planner_data": _planner_json(metadata.planner_data),
            "state": {name: _state_json(what) for name, what in metadata.state_dict_metadata.items()},
            "items": [_item_json(index, item) for index, item in items.items()],
        }
    )


def load(data: bytes | memoryview, world_size: int) -> Metadata:
    """The metadata of a checkpoint of ``world_size`` shards; ``ManifestError`` for everything that is not one."""
    value = fields.mapping(fields.loads(data, _WHAT), _WHAT)
    version = fields.integer(value, "format_version", _WHAT, least=1)
    if version > NEWEST_FORMAT:
        raise ManifestError(f"{_WHAT} has format_version {version}, this version reads up to {NEWEST_FORMAT}: upgrade")
    state = fields.mapping(value.get("state"), f"{_WHAT}: state")
    planner_data = build(value.get("planner_data"), 0, _no_leaf)
    meta = value.get("storage_meta")
    return Metadata(
        {name: _state(name, what) for name, what in state.items()},
        planner_data=planner_data,
        storage_data=dict(_item(row, world_size) for row in _list(value, "items")),
        storage_meta=None if meta is None else _meta(fields.mapping(meta, f"{_WHAT}: storage_meta")),
        version=fields.optional_text(value, "version", _WHAT),
    )


# the state


def _state_json(what: TensorStorageMetadata | BytesStorageMetadata) -> Any:
    if isinstance(what, BytesStorageMetadata):
        return None
    properties = what.properties
    return {
        "dtype": _plain(properties.dtype),
        "layout": _plain(properties.layout),
        "requires_grad": properties.requires_grad,
        "memory_format": _plain(properties.memory_format),
        "pin_memory": properties.pin_memory,
        "size": list(what.size),
        "chunks": [[list(chunk.offsets), list(chunk.sizes)] for chunk in what.chunks],
    }


def _state(name: str, value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if value is None:
        return BytesStorageMetadata()
    what = f"{_WHAT}: {name[:200]}"
    data = fields.mapping(value, what)
    dtype = fields.text(data, "dtype", what)
    if dtype not in TORCH:
        raise ManifestError(f"{what}: unknown dtype {dtype[:40]!r}")
    size = _sides(data.get("size"), what)
    chunks = []
    for chunk in _list(data, "chunks"):
        if not isinstance(chunk, list) or len(chunk) != 2:
            raise ManifestError(f"{what}: a malformed chunk")
        offsets, sizes = _sides(chunk[0], what), _sides(chunk[1], what)
        if not len(offsets) == len(sizes) == len(size):
            raise ManifestError(f"{what}: a chunk of {len(sizes)} dimensions in a tensor of {len(size)}")
        if any(at + length > side for at, length, side in zip(offsets, sizes, size, strict=True)):
            raise ManifestError(f"{what}: a chunk outside its tensor")
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
    properties = TensorProperties(
        dtype=_torch(dtype, torch.dtype, what),
        layout=_torch(fields.text(data, "layout", what), torch.layout, what),
        requires_grad=data.get("requires_grad") is True,
        memory_format=_torch(fields.text(data, "memory_format", what), torch.memory_format, what),
        pin_memory=data.get("pin_memory") is True,
    )
    return TensorStorageMetadata(properties, torch.Size(size), chunks)


def _plain(value: object) -> str:
    return str(value).removeprefix("torch.")


def _torch(name: str, kind: Any, what: str) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, kind):
        raise ManifestError(f"{what}: this torch has no {kind.__name__} {name[:40]!r}")
    return found


# where items lie


def _item_json(index: MetadataIndex, item: StoredItem) -> list[Any]:
    at = None if index.offset is None else list(index.offset)
    return [index.fqn, at, index.index, item.rank, item.kind, item.key, item.offset, item.nbytes, item.node]


def _item(row: Any, world_size: int) -> tuple[MetadataIndex, StoredItem]:
    if not isinstance(row, list) or len(row) != 9:
        raise ManifestError(f"{_WHAT}: a malformed item")
    name, at, hint, rank, kind, key, offset, nbytes, node = row
    if not (
        isinstance(name, str)
        and isinstance(key, str)
        and kind in _KINDS
        and all(type(number) is int and 0 <= number <= fields.SIZE_MAX for number in (rank, offset, nbytes))
        and rank < world_size
        and (hint is None or type(hint) is int)
        and (node is None or (isinstance(node, list) and len(node) == 1))
    ):
        raise ManifestError(f"{_WHAT}: a malformed item of {str(name)[:200]!r}")
    index = MetadataIndex(name, None if at is None else _sides(at, f"{_WHAT}: {name[:200]}"), hint)
    return index, StoredItem(rank, kind, key, offset, nbytes, node)


# the rest


def _planner_json(planner_data: Any) -> Any:
    try:
        flat = flatten(planner_data)
    except UnsupportedError as error:
        raise UnsupportedError(f"the planner's own data cannot be stored without pickle: {error}") from error
    if len(flat.leaves):
        raise UnsupportedError("the planner's own data holds arrays or long texts: store them in the state")
    return flat.tree


def _meta_json(meta: StorageMeta) -> dict[str, Any]:
    place = None if meta.checkpoint_id is None else os.fspath(meta.checkpoint_id)
    return {"checkpoint_id": place, "save_id": meta.save_id, "load_id": meta.load_id, "modules": list(meta.modules)}


def _meta(value: fields.Json) -> StorageMeta:
    what = f"{_WHAT}: storage_meta"
    place, save, load_ = (fields.optional_text(value, name, what, most=4096) for name in
                          ("checkpoint_id", "save_id", "load_id"))  # fmt: skip
    modules = _list(value, "modules")
    if not all(isinstance(module, str) for module in modules):
        raise ManifestError(f"{what}: modules must hold strings")
    return StorageMeta(place, save, load_, modules)


def _list(value: fields.Json, name: str) -> list[Any]:
    found = value.get(name)
    if not isinstance(found, list):
        raise ManifestError(f"{_WHAT}: {name} must be a list")
    return found


def _sides(value: Any, what: str) -> list[int]:
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        raise ManifestError(f"{what}: a malformed shape")
    if not all(type(side) is int and 0 <= side <= fields.SIZE_MAX for side in value):
        raise ManifestError(f"{what}: a malformed shape")
    return value


def _no_leaf(_: int) -> Any:
    raise AssertionError("a tree of no leaves has none")
