"""What is no tensor (``BYTE_IO`` in DCP's words): typed values without pickle, and pickles where they were asked for.

Owns the two kinds and the refusals; ``s3dlio.tensors`` knows which values have a typed form. DCP's own planners hand
over and expect what ``torch.save`` makes of an object: on the way in the object itself is taken from the planner, on
the way out ``torch.save`` is done in memory, of an object that was made of typed values.
"""

from __future__ import annotations

import io
import json
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from ...engine.errors import ConfigError, ManifestError, UnsupportedError
from ...tensors import flatten
from ...tensors.restore import build

Node = Any

OBJECT = "object"
PICKLE = "pickle"

ELSEWHERE = (
    "this state was staged into another process's memory: for AsyncCheckpointerType.PROCESS make the writer with "
    "staging='shared'"
)

_SCALARS = frozenset((bool, int, float, complex, str, bytes, type(None)))

_INLINE = 64 << 10
"""Characters of an object's node that may stand in the metadata, where a load finds it without reading its shard."""


class StagedObject:
    """What stands for an object that was ``staged``, by its ``key`` there; ``kind``: how it is stored."""

    def __init__(self, staged: Any, key: str, kind: str) -> None:
        self.staged = staged
        self.key = key
        self.kind = kind

    def __reduce__(self) -> Any:
        raise UnsupportedError(ELSEWHERE)


def object_of(planner: SavePlanner, item: WriteItem, *, pickle: bool) -> tuple[str, Any]:
    """The kind and the value to store for an item that is no tensor, or what stands for it if it was staged."""
    kind: Any = type(planner)
    if (
        isinstance(planner, DefaultSavePlanner)
        and kind.resolve_data is DefaultSavePlanner.resolve_data
        and kind.transform_object is DefaultSavePlanner.transform_object
    ):
        value = planner.lookup_object(item.index)
        return (value.kind, value) if isinstance(value, StagedObject) else typed_or_pickled(value, pickle=pickle)
    if not pickle:
        raise UnsupportedError(
            f"{item.index.fqn}: the planner {kind.__qualname__} makes bytes of objects itself, which may be a pickle: "
            "leave resolve_data and transform_object as they are, or pass pickle=True"
        )
    data = planner.resolve_data(item)
    assert isinstance(data, io.BytesIO)
    return PICKLE, data.getvalue()


def typed_or_pickled(value: Any, *, pickle: bool) -> tuple[str, Any]:
    """``value`` itself, or, where it has no typed form and ``pickle`` allows it, its bytes by ``torch.save``.

    Without ``pickle`` it is ``packing`` that refuses what has no typed form: it looks at all of them at once.
    """
    if pickle and type(value) not in _SCALARS:
        try:
            flatten(value)
        except UnsupportedError:
            return PICKLE, saved(value)
    return OBJECT, value


def saved(value: Any) -> bytes:
    """What ``torch.save`` makes of ``value``."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def has_arrays(node: Node) -> bool:
    """Whether a node refers to leaves: then the object is not whole without its shard."""
    try:
        build(node, 0, _no_leaf)
    except ManifestError:
        return True
    return False


def _no_leaf(_: int) -> Any:
    raise AssertionError("a tree of no leaves has none")


def inline(node: Node) -> Node | None:
    """``[node]`` where it may stand in the metadata, else ``None``."""
    if has_arrays(node) or len(json.dumps(node)) > _INLINE:
        return None
    return [node]


def check_pickle(name: str, *, pickle: bool) -> None:
    """``ConfigError`` unless the reader was told to unpickle."""
    if not pickle:
        raise ConfigError(
            f"{name} was saved as a pickle, which runs code when it is read: pass pickle=True to the reader if you "
            "trust this checkpoint"
        )
