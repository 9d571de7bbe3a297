"""From a state to its tree and its leaves.

Owns the walk over containers, the limits on it and the nodes of containers; arrays are left to ``numpy_leaf``,
``torch_leaf`` and ``jax_leaf``, scalars to ``scalars``. Never copies an array. Called by ``s3dlio.content``;
``restore`` is the way back. The nodes of a tree are described in ``s3dlio/FORMAT.md`` (Tree).

A ``defaultdict`` is stored as a dict: its factory is code. Other subclasses are refused: they could not come back.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import scalars
from .jax_leaf import JaxHandlers, JaxLeaf
from .leaf import MAX_DEPTH, Collector, Handler, Leaves, Node, Refusal
from .numpy_leaf import NumpyHandlers, NumpyLeaf, is_sound
from .tf_leaf import TensorflowHandlers
from .torch_leaf import TorchHandlers, TorchLeaf, is_tensor


@dataclass(frozen=True, slots=True)
class Flattened:
    """A state as its ``tree`` (JSON-able) and its ``leaves`` in the order of the walk.

    ``aliases``: further names of leaves that occur more than once (tied weights), and the index of each.
    """

    tree: Node
    leaves: Leaves
    aliases: dict[str, int]


def flatten(state: object) -> Flattened:
    """Walk nested containers into a tree and leaves; arrays are referenced, kept alive and not copied.

    A leaf's name is its dotted path (``model.layers.0.weight``; ``tensor`` for a bare array), with ``~1``, ``~2`` ...
    where paths collide. Arrays that are the same memory under the same dtype, shape and form are one leaf. Raises
    ``UnsupportedError`` with the path in the tree for a value that cannot be stored without pickle, a cycle, or more
    than ``MAX_DEPTH`` levels.
    """
    walk = _Walk()
    try:
        tree = walk.node(state)
        walk.torch.end()
    except Refusal as refusal:
        raise refusal.error() from refusal
    return Flattened(tree, walk.collector.leaves, walk.collector.aliases)


class _Walk:
    def __init__(self) -> None:
        self.collector = Collector({"numpy": NumpyLeaf, "torch": TorchLeaf, "jax": JaxLeaf})
        self.torch = TorchHandlers(self.collector)
        # Of types that only isinstance tells.
        self._finders = (JaxHandlers(self.collector).find, TensorflowHandlers(self.collector).find)
        self._open: set[int] = set()  # ids of the containers around the present value
        self._handlers: dict[type, Handler] = {
            **scalars.ENCODERS,
            **scalars.torch_encoders(),
            **NumpyHandlers(self.collector).table(),
            **self.torch.table(),
            dict: self._dict,
            defaultdict: self._dict,
            OrderedDict: self._ordered,
            list: self._list,
            tuple: self._tuple,
        }

    def node(self, value: object) -> Node:
        handler = self._handlers.get(type(value)) or self._resolve(value)
        return handler(value, "", 0)

    def _resolve(self, value: object) -> Handler:
        if isinstance(value, np.generic):
            self._handlers[type(value)] = scalars.encode_numpy
            return scalars.encode_numpy
        for find in self._finders:
            handler = find(value)
            if handler is not None:
                self._handlers[type(value)] = handler
                return handler
        raise Refusal(_why_not(value))

    def _enter(self, container: object, depth: int) -> None:
        if id(container) in self._open:
            raise Refusal("the state contains itself")
        if depth >= MAX_DEPTH:
            raise Refusal(f"more than {MAX_DEPTH} containers within each other")
        self._open.add(id(container))

    def _dict(self, value: dict[Any, Any], name: str, depth: int) -> Node:
        tag, payload = self._mapping(value, name, depth)
        return {tag: payload}

    def _ordered(self, value: OrderedDict[Any, Any], name: str, depth: int) -> Node:
        tag, payload = self._mapping(value, name, depth)
        node = {"ordered" if tag == "dict" else "ordered_items": payload}
        extra = vars(value)
        if "_metadata" in extra:
            node["metadata"] = self._child(extra["_metadata"], f"{name}._metadata", depth + 1, "._metadata")
        odd = [key for key in extra if key != "_metadata"]
        if odd:
            raise Refusal(
                f"an OrderedDict with attributes of its own ({', '.join(map(str, odd))}); pass dict(...) of it"
            )
        return node

    def _child(self, value: object, name: str, depth: int, step: str) -> Node:
        try:
            handler = self._handlers.get(type(value)) or self._resolve(value)
            return handler(value, name, depth)
        except Refusal as refusal:
            refusal.steps.append(step)
            raise

    def _mapping(self, value: dict[Any, Any], name: str, depth: int) -> tuple[str, Node]:
        self._enter(value, depth)
        plain = all(type(key) is str and (key.isascii() or is_sound(key)) for key in value)
        made = self._plain(value, name, depth + 1) if plain else self._items(value, name, depth + 1)
        self._open.discard(id(value))
        return ("dict" if plain else "items"), made

    def _plain(self, value: dict[str, Any], name: str, depth: int) -> dict[str, Node]:
        prefix = f"{name}." if name else ""
        lookup, resolve = self._handlers.get, self._resolve
        nodes = {}
        key = ""
        try:
            for key, child in value.items():
                handler = lookup(type(child)) or resolve(child)
                nodes[key] = handler(child, prefix + key, depth)
        except Refusal as refusal:
            refusal.steps.append(f"[{key!r}]")
            raise
        return nodes

    def _items(self, value: dict[Any, Any], name: str, depth: int) -> list[Node]:
        prefix = f"{name}." if name else ""
        nodes = []
        for key, child in value.items():
            step = f"[{key!r}]"
            nodes.append(self._key(key, step))
            nodes.append(self._child(child, prefix + _text(key), depth, step))
        return nodes

    def _key(self, key: object, step: str) -> Node:
        """The node of a dict's key: a scalar, or a tuple of keys."""
        try:
            if type(key) is tuple:
                return {"tuple": [self._key(item, "") for item in key]}
            if type(key) in (str, bytes) or type(key) in scalars.ENCODERS or isinstance(key, np.generic):
                node = self._child(key, "", 0, "")
                if type(node) is not int:  # a key of many kilobytes would become a leaf
                    return node
            raise Refusal(f"a dict key of {_kind(key)} cannot be stored; use a string, a number or a tuple of them")
        except Refusal as refusal:
            if step:
                refusal.steps.append(step)
            raise
        except RecursionError as error:
            raise Refusal("a dict key is nested too deep") from error

    def _list(self, value: list[Any], name: str, depth: int) -> Node:
        return scalars.pack(value) or self._sequence(value, name, depth)

    def _tuple(self, value: tuple[Any, ...], name: str, depth: int) -> Node:
        return {"tuple": scalars.pack(value) or self._sequence(value, name, depth)}

    def _sequence(self, value: list[Any] | tuple[Any, ...], name: str, depth: int) -> list[Node]:
        self._enter(value, depth)
        prefix = f"{name}." if name else ""
        lookup, resolve = self._handlers.get, self._resolve
        nodes = []
        index = 0
        try:
            for index, child in enumerate(value):
                handler = lookup(type(child)) or resolve(child)
                nodes.append(handler(child, f"{prefix}{index}", depth + 1))
        except Refusal as refusal:
            refusal.steps.append(f"[{index}]")
            raise
        self._open.discard(id(value))
        return nodes


def _text(key: object) -> str:
    """A key as part of a name: valid Unicode without surprises."""
    text = key if isinstance(key, str) else str(key)
    return text.encode("utf-8", "backslashreplace").decode()


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _why_not(value: object) -> str:
    """Why a value cannot be stored, and what the caller may do."""
    kind = _kind(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"named tuple {kind} cannot be restored without its class; store value._asdict()"
    if is_tensor(value):
        return f"tensor subclass {kind} cannot be restored as it was; store a plain tensor of it"
    if isinstance(value, np.ndarray):
        return f"array subclass {kind} cannot be restored as it was; store numpy.asarray of it"
    for base in (dict, list, tuple, str, bytes, int, float):
        if isinstance(value, base):
            return (
                f"{kind}, a subclass of {base.__name__}, cannot be restored as it was; store {base.__name__}(...) of it"
            )
    if isinstance(value, set | frozenset):
        return f"a {kind} has no order; store a sorted list"
    if isinstance(value, memoryview):
        return "a memoryview is not its own memory; store bytes or an array"
    if hasattr(value, "__array__") and not isinstance(value, type):
        return f"arrays of type {kind} are not known here; store numpy.asarray of it"
    if callable(value):
        return f"functions, classes and other callables ({kind}) need pickle"
    return f"{kind} objects need pickle; store their arrays and plain values"
