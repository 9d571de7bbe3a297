"""From boxes in host memory to an array on the devices of a target.

Owns what JAX needs for it: the boxes that this process' devices hold under a sharding, weak types, typed keys. Reads
nothing. Called by ``fit`` and ``restoring``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ...tensors.box import Box
from ...tensors.jax_leaf import wrap_key


class Misfit(Exception):
    """A stored leaf cannot become the target's leaf; on its way into the list of all problems."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array goes: ``boxes`` are those that this process needs, ``make`` takes them as arrays by box."""

    boxes: Sequence[Box]
    make: Callable[[Mapping[Box, Any]], Any]


def place_of(target: Any) -> Place:
    """The place that an array of JAX or a ``jax.ShapeDtypeStruct`` names: its sharding, its weak type.

    Without a sharding, or where the target's own array is not committed to its devices, it is the default device, and
    the array is free to follow others. Raises ``Misfit`` for a dtype or a sharding that cannot be had.
    """
    shape, dtype = tuple(target.shape), np.dtype(target.dtype)
    check_dtype(dtype)
    weak = bool(getattr(target, "weak_type", False))
    sharding = _sharding(target)
    if sharding is None:
        whole = Box.whole(shape)
        return Place((whole,), lambda parts: _typed(jax.device_put(parts[whole]), weak))
    boxes = _boxes(sharding, shape)
    told = {} if boxes else {"dtype": dtype}  # a process with no device of it has no shard to tell the dtype

    def make(parts: Mapping[Box, Any]) -> Any:
        array = jax.make_array_from_callback(shape, sharding, lambda index: parts[Box.of(shape, index)], **told)
        return _typed(array, weak)

    return Place(boxes, make)


def place_key(impl: str, target: Any) -> Callable[[Any], Any]:
    """What makes a typed key of its data, where the target is."""
    sharding = _sharding(target)
    boxes = () if sharding is None else _boxes(sharding, tuple(target.shape))

    def make(data: Any) -> Any:
        key = wrap_key(impl, data)
        if sharding is None:
            return key
        told = {} if boxes else {"dtype": key.dtype}
        # Not device_put, which puts nothing on the devices of other processes.
        return jax.make_array_from_callback(key.shape, sharding, lambda index: key[index], **told)

    return make


def key_dtype(impl: str) -> Any:
    """The dtype of keys of a generator; ``Misfit`` if this JAX has no such."""
    try:
        return jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype
    except (ValueError, TypeError) as error:
        raise Misfit(f"stored a key of {impl[:100]!r}, which this JAX does not know") from error


def on_default_device(array: Any, weak: bool) -> Any:
    """An array of NumPy as one of JAX; ``Misfit`` for a dtype that cannot be had."""
    check_dtype(array.dtype)
    return _typed(jax.device_put(array), weak)


def check_dtype(dtype: Any) -> None:
    """``Misfit`` for a dtype that JAX would silently narrow."""
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise Misfit(f"JAX narrows {dtype} unless jax_enable_x64 is set")


def _sharding(target: Any) -> Any:
    """The target's sharding over real devices; None for the default device."""
    sharding: Any = getattr(target, "sharding", None)
    if isinstance(target, jax.Array) and not target.committed:
        return None
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        current = getattr(jax.sharding, "get_mesh", None)  # not in jax 0.6, the last for Python 3.10
        mesh = current() if current else None
        if mesh is None or mesh.empty or mesh.abstract_mesh != sharding.mesh:
            raise Misfit("its sharding has a mesh without devices: restore within jax.set_mesh(mesh), or name a Mesh")
        return jax.sharding.NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return sharding


def _boxes(sharding: Any, shape: tuple[int, ...]) -> tuple[Box, ...]:
    """What of an array this process' devices hold; ``Misfit`` if it cannot be sharded so."""
    try:
        devices = sharding.addressable_devices_indices_map(shape)
    except (ValueError, TypeError, IndexError) as error:
        raise Misfit(f"its sharding does not fit {list(shape)}: {error}") from error
    return tuple(dict.fromkeys(Box.of(shape, index) for index in devices.values()))


def _typed(array: Any, weak: bool) -> Any:
    """The array, weakly typed if asked: JAX has no other way to say so of one that exists."""
    if not weak:
        return array
    return jax.lax.convert_element_type_p.bind(array, new_dtype=array.dtype, weak_type=True, sharding=None)
