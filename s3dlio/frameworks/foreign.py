"""What a framework's checkpoint holds beside arrays and plain values: objects that no tree of ours has.

Owns how they are stored: a few types of the standard library by their values, everything else by pickle, and that only
where the caller allows it. Pure. ``lightning`` packs what it saves and unpacks what it loads.

A packed state is the state with ``None`` in the objects' places and a list of them under ``OBJECTS``: of each its place
(the keys on the way to it), its kind and its value.
"""

from __future__ import annotations

import copy
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch

from ..engine.errors import ConfigError, ManifestError, UnsupportedError
from ..tensors import flatten

OBJECTS = "s3dlio_objects"
"""The key of the list of objects in a packed state."""

_SHOWN = 10  # places that an error names

Place = tuple[Any, ...]

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray))
_KEYS = frozenset((type(None), bool, int, float, complex, str, bytes))
_DICTS = (dict, OrderedDict, defaultdict)

_TO_VALUE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Counter: ("counter", dict),
    Namespace: ("namespace", lambda value: dict(vars(value))),
    PosixPath: ("path", str),
    frozenset: ("frozenset", list),
    set: ("set", list),
}
_FROM_VALUE: dict[str, Callable[[Any], Any]] = {
    "counter": Counter,
    "frozenset": frozenset,
    "namespace": lambda value: Namespace(**value),
    "path": Path,
    "set": set,
}


def pack(state: dict[str, Any], *, allow_pickle: bool) -> dict[str, Any]:
    """``state`` as a tree can hold it; the containers of ``state`` stay as they are, and arrays are not copied.

    Raises ``UnsupportedError``, naming the places of all objects, where pickle would be needed and is not allowed, or
    fails; ``ConfigError`` if ``OBJECTS`` is a key of ``state``.
    """
    if OBJECTS in state:
        raise ConfigError(f"the key {OBJECTS!r} of a checkpoint is taken for what it holds beside arrays: rename yours")
    packed: Any = state
    objects = []
    refused = []
    for place, value in list(_foreign(state, (), set())):
        try:
            kind, stored = _stored(value, allow_pickle)
        except UnsupportedError as error:
            refused.append(f"{_name(place)}: {error}")
            continue
        objects.append({"at": list(place), "kind": kind, "value": stored})
        packed = _put(packed, place, None)
    if refused:
        advice = "" if allow_pickle else "; store plain values there, or pass pickle=True to have them pickled"
        raise UnsupportedError("cannot be stored: " + "; ".join(_few(refused)) + advice)
    return {**packed, OBJECTS: objects} if objects else state


def unpack(state: dict[str, Any], *, allow_pickle: bool) -> dict[str, Any]:
    """The state that was packed.

    ``ConfigError``, naming the places, for pickled objects where that is not allowed: nothing of them was run.
    """
    objects = state.pop(OBJECTS, [])
    if type(objects) is not list or not all(type(one) is dict and type(one.get("at")) is list for one in objects):
        raise ManifestError("a checkpoint whose list of objects is malformed: load another one")
    pickled = [_name(tuple(one["at"])) for one in objects if one.get("kind") == "pickle"]
    if pickled and not allow_pickle:
        raise ConfigError(
            f"the checkpoint holds pickled objects, whose code would be run: {', '.join(_few(pickled))}; pass "
            "pickle=True, and not weights_only=True, if you trust where it comes from"
        )
    made: Any = state
    for one in objects:
        place = tuple(one["at"])
        try:
            made = _put(made, place, _restored(one.get("kind"), one.get("value")))
        except (LookupError, TypeError, ValueError) as error:
            raise ManifestError(f"{_name(place)}: a malformed object ({error}): load another checkpoint") from error
    return made  # type: ignore[no-any-return]


def _foreign(value: Any, place: Place, within: set[int]) -> Iterator[tuple[Place, Any]]:
    """What the tree cannot hold, with its place; a container that holds itself is left for the tree to refuse."""
    kind = type(value)
    if kind in _PLAIN or id(value) in within:
        return
    items: Any = None
    if kind in _DICTS and all(map(_is_key, value)):
        items = value.items()
    elif kind in (list, tuple):
        items = enumerate(value)
    if items is not None:
        within.add(id(value))
        for key, child in items:
            yield from _foreign(child, (*place, key), within)
        within.discard(id(value))
    elif not _fits(value):
        yield place, value


def _is_key(key: Any) -> bool:
    return type(key) in _KEYS or isinstance(key, np.generic) or (type(key) is tuple and all(map(_is_key, key)))


def _fits(value: Any) -> bool:
    """Whether the tree holds a value that is no container; the usual tensors are not laid out for that."""
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        usual = value.layout is torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)
        return usual or _reason(value) is None
    return _reason(value) is None


def _reason(value: Any) -> str | None:
    try:
        flatten(value)
    except UnsupportedError as error:
        return str(error).removeprefix("state").removeprefix(": ")
    return None


def _stored(value: Any, allow_pickle: bool) -> tuple[str, Any]:
    named = _TO_VALUE.get(type(value))
    if named is not None:
        kind, to_value = named
        plain = to_value(value)
        if _reason(plain) is None:
            return kind, plain
    if not allow_pickle:
        raise UnsupportedError(_reason(value) or "it holds what needs pickle")
    try:
        return "pickle", pickle.dumps(value, protocol=5)
    except Exception as error:  # whatever its class raises
        raise UnsupportedError(f"{type(value).__name__} cannot be pickled ({type(error).__name__}: {error})") from error


def _restored(kind: Any, value: Any) -> Any:
    if kind == "pickle":
        return pickle.loads(value)  # noqa: S301 - the caller asked for it by name
    return _FROM_VALUE[kind](value)


def _put(node: Any, place: Place, value: Any) -> Any:
    """``node`` with ``value`` at a place; the containers on the way are copied, nothing else."""
    if not place:
        return value
    key, rest = place[0], place[1:]
    child = _put(node[key], rest, value)
    if type(node) is tuple:
        return (*node[:key], child, *node[key + 1 :])
    made = copy.copy(node)
    made[key] = child
    return made


def _name(place: Place) -> str:
    return "checkpoint" + "".join(f"[{key!r}]" for key in place)


def _few(texts: list[str]) -> list[str]:
    return texts if len(texts) <= _SHOWN else [*texts[:_SHOWN], f"and {len(texts) - _SHOWN} more"]
