"""From a tree, a table and the shard's bytes back to a state, without copying an array.

Owns the walk over a tree that comes from untrusted storage. Arrays are views of the memory and keep it alive, so one
kept view pins the whole shard: ``select`` and ``into`` are for those who mind. Called by ``s3dlio.restoring``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, CorruptError, ManifestError, S3dlioError
from .jax_leaf import KEY, key_parts, wrap_key
from .leaf import MAX_DEPTH, Node, Spec
from .numpy_leaf import Array, array_over, text_over
from .scalars import DECODERS, decode
from .table import Selection, Table
from .torch_leaf import sparse_over, tensor_over

Buffer = Any
"""A writable buffer of bytes: a mapping, a bytearray or a memoryview of one."""


Place = Callable[[Array, Spec], Any]
"""Makes of an array of form ``jax`` what the caller wants of it."""


def restore(tree: Node, table: Table, memory: Buffer, place: Place | None = None) -> Any:
    """The state of a tree; its arrays are views of ``memory``, which holds the whole shard and stays alive with them.

    Tied leaves come back as one object, parameters as parameters, JAX arrays as NumPy arrays unless ``place`` makes
    others of them. Arrays are writable, so ``memory`` must be: map a file MAP_PRIVATE. Raises ``ManifestError`` for a
    malformed tree, ``CorruptError`` if ``memory`` is shorter than the shard, ``ConfigError`` if it is read-only,
    ``DependencyError`` if a framework is missing.
    """
    whole = _bytes_of(memory, table.total)
    return build(tree, len(table), _Arrays(table, whole, table.offsets, place))


def restore_named(table: Table, selection: Selection, memory: Buffer) -> dict[str, Any]:
    """The chosen arrays by name; ``memory`` is compact: leaves lie at their ``landing``. Raises as ``restore``."""
    arrays = _Arrays(table, _bytes_of(memory, selection.size), selection.landings())
    return {name: arrays(index) for name, index in selection.names.items()}


def build(tree: Node, count: int, leaf: Callable[[int], Any]) -> Any:
    """The state of a tree of ``count`` leaves, each given by ``leaf(index)`` in the order of the walk."""
    return _Builder(count, leaf).node(tree, 0)


def _bytes_of(memory: Buffer, size: int) -> Array:
    view = memoryview(memory)
    if view.nbytes < size:
        raise CorruptError(f"the memory has {view.nbytes} bytes, the shard {size}")
    if view.readonly and size:
        raise ConfigError("arrays over read-only memory could not be written; map the shard privately and writable")
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)


_KEY_TAGS = ("int", "float", "complex", "str", "bytes", "numpy")


class _Arrays:
    """Gives the array of a leaf, the same object each time."""

    def __init__(
        self, table: Table, whole: Array, offsets: list[int] | Mapping[int, int], place: Place | None = None
    ) -> None:
        self._place = place
        self._specs = table.specs
        self._whole = whole
        self._offsets = offsets
        self._made: dict[int, Any] = {}

    def __call__(self, index: int) -> Any:
        made = self._made.get(index)
        if made is None:
            made = self._made[index] = self._make(index)
        return made

    def _make(self, index: int) -> Any:
        spec, offset = self._specs[index], self._offsets[index]
        try:
            if spec.framework == "torch":
                return tensor_over(self._whole, spec, offset)
            if spec.form in ("bytes", "bytearray", "str"):
                return text_over(self._whole, spec, offset)
            array = array_over(self._whole, spec, offset)
            return self._place(array, spec) if self._place and spec.framework == "jax" else array
        except S3dlioError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            raise ManifestError(f"leaf {index}: no array can be {spec.dtype} {spec.shape}: {error}") from error


class _Builder:
    def __init__(self, count: int, leaf: Callable[[int], Any]) -> None:
        self._count = count
        self._leaf = leaf

    def node(self, node: Node, depth: int) -> Any:
        kind = type(node)
        if kind is int:
            if not 0 <= node < self._count:
                raise ManifestError(f"tree: leaf {node} of {self._count}")
            return self._leaf(node)
        if kind is str or kind is bool or node is None:
            return node
        if depth > MAX_DEPTH:
            raise ManifestError(f"tree: more than {MAX_DEPTH} levels")
        if kind is list:
            return [self.node(item, depth + 1) for item in node]
        if kind is not dict or not node:
            raise ManifestError(f"tree: a node of {kind.__name__}")
        return self._tagged(node, depth)

    def _tagged(self, node: dict[str, Any], depth: int) -> Any:
        tag, payload = next(iter(node.items()))
        if len(node) != 1 and not (tag in ("ordered", "ordered_items") and set(node) == {tag, "metadata"}):
            raise ManifestError("tree: a node with more than one tag")
        if tag in ("dict", "items"):
            return self._mapping(tag, payload, depth)
        if tag in ("ordered", "ordered_items"):
            ordered = OrderedDict(self._mapping(tag, payload, depth))
            if "metadata" in node:
                ordered._metadata = self.node(node["metadata"], depth + 1)  # type: ignore[attr-defined]
            return ordered
        if tag == "tuple":
            return tuple(self._list(payload, depth))
        if tag == "sparse":
            return self._sparse(payload, depth)
        if tag == KEY:
            impl, data = key_parts(payload)
            return wrap_key(impl, np.array(self.node(data, depth)))  # a copy: a kept key must not keep the shard
        if tag in DECODERS:
            return decode(tag, payload)
        raise ManifestError(f"tree: unknown node {tag[:100]!r}; the checkpoint may be of a newer version")

    def _mapping(self, tag: str, payload: Node, depth: int) -> dict[Any, Any]:
        if tag in ("dict", "ordered"):
            if type(payload) is not dict:
                raise ManifestError("tree: a malformed dict")
            return {key: self.node(child, depth + 1) for key, child in payload.items()}
        if type(payload) is not list or len(payload) % 2:
            raise ManifestError("tree: malformed items")
        made: dict[Any, Any] = {}
        for key, child in zip(payload[::2], payload[1::2], strict=True):
            value = self.node(child, depth + 1)
            try:
                made[build_key(key)] = value
            except TypeError as error:
                raise ManifestError("tree: a key that cannot be one") from error
        if len(made) != len(payload) // 2:
            raise ManifestError("tree: a key occurs twice")
        return made

    def _list(self, payload: Node, depth: int) -> list[Any]:
        if type(payload) is list or (type(payload) is dict and set(payload) in ({"ints"}, {"floats"})):
            made: list[Any] = self.node(payload, depth)
            return made
        raise ManifestError("tree: a malformed tuple")

    def _sparse(self, payload: Node, depth: int) -> Any:
        if type(payload) is not dict or type(payload.get("parts")) is not list:
            raise ManifestError("tree: a malformed sparse node")
        if not all(type(part) is int for part in payload["parts"]):
            raise ManifestError("tree: a sparse node whose parts are no leaves")
        return sparse_over(payload, [self.node(part, depth) for part in payload["parts"]])


def build_key(node: Node, depth: int = 0) -> Any:
    """The key of a dict from its node; ``ManifestError`` if it is no scalar and no tuple of scalars."""
    if type(node) in (str, bool) or node is None:
        return node
    if type(node) is dict and len(node) == 1 and depth <= MAX_DEPTH:
        tag, payload = next(iter(node.items()))
        if tag in _KEY_TAGS:
            return decode(tag, payload)
        if tag == "tuple" and type(payload) is list:
            return tuple(build_key(item, depth + 1) for item in payload)
    raise ManifestError("tree: a malformed key")
