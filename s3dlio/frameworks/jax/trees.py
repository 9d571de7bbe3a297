"""Pytrees as states and back: paths of leaves, on both sides.

Owns how a node of a pytree becomes a container that needs no class to come back (``plain``), and the paths by which
leaves of a stored tree and of a target find each other. Pure; reads no array. Called by ``checkpointer``, ``fit`` and
``restoring``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from ...engine.errors import ConfigError, ManifestError
from ...tensors.into import open_node
from ...tensors.jax_leaf import KEY, key_parts
from ...tensors.leaf import MAX_DEPTH, Node, Spec
from ...tensors.scalars import DECODERS, decode

Path = tuple[Any, ...]
"""Keys, indices and names of attributes from the root to a leaf."""


def plain(tree: Any) -> Any:
    """``tree`` in containers that a state may hold: dicts, lists, tuples and None stay; other nodes become dicts.

    A named tuple, a registered dataclass or any other registered node is a dict by field or key, and a list where its
    children have neither. Leaves stay what they are. Raises ``ConfigError`` for two children of one name.
    """
    return _plain(tree, 0)


def _plain(tree: Any, depth: int) -> Any:
    kind = type(tree)
    if tree is None or depth > MAX_DEPTH:  # too deep, or in a circle: the walk that saves it refuses it, with its path
        return tree
    if kind in (dict, OrderedDict):
        return kind((key, _plain(child, depth + 1)) for key, child in tree.items())
    if kind in (list, tuple):
        return kind(_plain(child, depth + 1) for child in tree)
    children = _open(tree)
    if children is None:
        return tree
    if all(isinstance(entry, jax.tree_util.FlattenedIndexKey | jax.tree_util.SequenceKey) for entry, _ in children):
        return [_plain(child, depth + 1) for _, child in children] if children else {}
    made = {_step(entry): _plain(child, depth + 1) for entry, child in children}
    if len(made) != len(children):
        raise ConfigError(f"{kind.__qualname__} has two children of one name, among {', '.join(map(str, made))}")
    return made


def _open(node: Any) -> list[tuple[Any, Any]] | None:
    """The children of a registered node, by their entries in a path; None for a leaf."""
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    if any(not path for path, _ in children):
        return None
    return [(path[0], child) for path, child in children]


def _step(entry: Any) -> Any:
    """Key, index or name of an entry of JAX's paths."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def target_leaves(target: Any) -> tuple[dict[Path, Any], Any]:
    """The leaves of a pytree by path, in order, and its treedef. ``ConfigError`` for two leaves of one path."""
    found, treedef = jax.tree_util.tree_flatten_with_path(target)
    leaves = {tuple(map(_step, path)): leaf for path, leaf in found}
    if len(leaves) != len(found):
        raise ConfigError("two leaves of the target have the same path; its nodes must name their children apart")
    return leaves, treedef


def shown(path: Path) -> str:
    """A path in messages."""
    return "state" + "".join(f"[{step!r}]" for step in path)


@dataclass(frozen=True, slots=True)
class Stored:
    """A leaf of a stored tree: ``array`` or ``text`` (leaf ``index``), ``key`` (leaf ``index`` is its data, ``value``
    the name of its generator), ``value`` (a scalar), or ``other``, which ``value`` names."""

    kind: str
    index: int = -1
    value: Any = None


def stored_leaves(tree: Node, specs: list[Spec]) -> dict[Path, Stored]:
    """The leaves of a stored tree by path; None and empty containers have none, as in a pytree.

    Raises ``ManifestError`` for a malformed tree.
    """
    leaves: dict[Path, Stored] = {}
    for path, leaf in _walk(tree, specs, (), 0):
        if path in leaves:
            raise ManifestError(f"tree: {shown(path)} occurs twice")
        leaves[path] = leaf
    return leaves


def _walk(node: Node, specs: list[Spec], path: Path, depth: int) -> Iterator[tuple[Path, Stored]]:
    if depth > MAX_DEPTH:
        raise ManifestError(f"tree: more than {MAX_DEPTH} levels")
    if node is None:
        return
    if type(node) is int:
        if not 0 <= node < len(specs):
            raise ManifestError(f"tree: leaf {node} of {len(specs)}")
        text = specs[node].form in ("bytes", "bytearray", "str")
        yield path, Stored("text" if text else "array", node)
    elif type(node) in (str, bool):
        yield path, Stored("value", value=node)
    elif (opened := open_node(node)) is not None:
        for key, child in opened[1]:
            yield from _walk(child, specs, (*path, key), depth + 1)
    else:
        yield from _tagged(node, specs, path)


def _tagged(node: Node, specs: list[Spec], path: Path) -> Iterator[tuple[Path, Stored]]:
    if type(node) is not dict or len(node) != 1:
        raise ManifestError(f"tree: a node of {type(node).__name__}")
    ((tag, payload),) = node.items()
    if tag == "tuple" and type(payload) is dict and len(payload) == 1:  # numbers in a row, without a node each
        ((tag, payload),) = payload.items()
    if tag in ("ints", "floats"):
        numbers: Any = decode(tag, payload)
        yield from (((*path, place), Stored("value", value=item)) for place, item in enumerate(numbers))
    elif tag == KEY:
        impl, data = key_parts(payload)
        if not 0 <= data < len(specs):
            raise ManifestError(f"tree: leaf {data} of {len(specs)}")
        yield path, Stored("key", data, impl)
    elif tag in ("size", "dtype", "device", "sparse"):
        yield path, Stored("other", value=f"a torch {tag}")
    elif tag in DECODERS:
        yield path, Stored("value", value=decode(tag, payload))
    else:
        raise ManifestError(f"tree: unknown node {tag[:100]!r}; the checkpoint may be of a newer version")
