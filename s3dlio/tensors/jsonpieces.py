"""Compact standard JSON in bounded pieces.

Owns one function: what ``json.dumps`` would give (ASCII, no spaces), cut into pieces, so that no single C call holds
the interpreter for long. The encoder of the standard library holds it for 1.5 s on a million entries; a batch here
takes about 2 ms. Never decides what is written. ``s3dlio.content`` calls it for trees and tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

from ..engine.errors import UnsupportedError

_BATCH = 8192  # nodes in one C call
_SMALL = 48  # a container of up to so many nodes goes into a batch whole
_CHARS_PER_NODE = 32  # a long string weighs as many nodes

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")).encode


def dump_json_pieces(obj: object, size: int = 256 << 10) -> Iterator[bytes]:
    """Yield ``obj`` as compact ASCII JSON, in pieces of about ``size`` bytes.

    ``obj`` is made of dicts with string keys, lists, tuples, strings, finite numbers, booleans and None. A single
    string is never cut. Raises ``UnsupportedError`` for anything else.
    """
    parts: list[str] = []
    held = 0
    for text in _texts(obj):
        parts.append(text)
        held += len(text)
        if held >= size:
            yield "".join(parts).encode("ascii")
            parts, held = [], 0
    if parts:
        yield "".join(parts).encode("ascii")


def dump_tree(tree: object) -> Iterator[bytes]:
    """Yield the JSON of a tree of ``flatten`` in bounded pieces."""
    return dump_json_pieces(tree)


def _texts(obj: object) -> Iterator[str]:
    """Texts that joined are the JSON of ``obj``; recursion is as deep as ``obj`` (trees are limited)."""
    if isinstance(obj, dict):
        yield "{"
        yield from _members(obj)
        yield "}"
    elif isinstance(obj, list | tuple):
        yield "["
        yield from _elements(obj)
        yield "]"
    else:
        yield _dumps(obj)


def _members(obj: dict[str, object]) -> Iterator[str]:
    batch: dict[str, object] = {}
    weight, comma = 0, ""
    for key, value in obj.items():
        nodes = _weigh(value)
        if nodes <= _BATCH:
            batch[key] = value
            weight += nodes + 1 + len(key) // _CHARS_PER_NODE
        if batch and (weight >= _BATCH or nodes > _BATCH):
            yield comma + _dumps(batch)[1:-1]
            batch, weight, comma = {}, 0, ","
        if nodes > _BATCH:
            yield f"{comma}{_dumps(key)}:"
            yield from _texts(value)
            comma = ","
    if batch:
        yield comma + _dumps(batch)[1:-1]


def _elements(obj: list[object] | tuple[object, ...]) -> Iterator[str]:
    batch: list[object] = []
    weight, comma = 0, ""
    for value in obj:
        nodes = _weigh(value)
        if nodes <= _BATCH:
            batch.append(value)
            weight += nodes
        if batch and (weight >= _BATCH or nodes > _BATCH):
            yield comma + _dumps(batch)[1:-1]
            batch, weight, comma = [], 0, ","
        if nodes > _BATCH:
            yield comma
            yield from _texts(value)
            comma = ","
    if batch:
        yield comma + _dumps(batch)[1:-1]


def _weigh(value: object) -> int:
    """Nodes of ``value`` if they are few enough to go into a batch, else more than a batch."""
    kind = type(value)
    if kind is str:
        return min(_BATCH, 1 + len(value) // _CHARS_PER_NODE)  # type: ignore[arg-type]
    if kind is not dict and kind is not list and kind is not tuple:
        return 1
    nodes = 0
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        nodes += 1
        if isinstance(item, dict | list | tuple):
            if len(item) > _SMALL:
                return _BATCH + 1
            waiting.extend(islice(item.values() if isinstance(item, dict) else item, _SMALL))
        elif isinstance(item, str):
            nodes += len(item) // _CHARS_PER_NODE
        if nodes > _SMALL:
            return _BATCH + 1
    return nodes


def _dumps(obj: object) -> str:
    try:
        return _encode(obj)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedError(f"not JSON: {error}") from error
