"""JAX arrays as leaves.

Owns what JAX needs: which values are its arrays, which of them cannot be stored, the shards of one and where they lie,
PRNG keys. Imports JAX only when a stored key asks for it. Called by ``tree`` while it walks, by ``restore`` for keys,
and by ``s3dlio.frameworks.jax``, which brings arrays back to devices: ``restore`` alone gives NumPy arrays, since only
the caller knows which devices are meant.

Elements of 4 and 2 bits (``int4``, ``float4_e2m1fn`` ...) are stored one byte each, as they lie in a NumPy array.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from ..engine.errors import DependencyError, ManifestError, UnsupportedError
from ..engine.source import move
from .box import Box, Part, box_to_image, extent
from .dtypes import numpy_name
from .leaf import MAX_DIMS, Collector, Handler, Leaf, Node, Refusal, Spec, make_spec
from .numpy_leaf import Array

JaxArray = Any
KEY = "prng_key"
"""The tag of a typed PRNG key in a tree: ``impl`` (JAX's name of the generator) and ``data``, a leaf."""


@dataclass(frozen=True, slots=True)
class ArrayPiece:
    """A part of an array, in this process alone: ``box`` of an array of ``shape`` and ``dtype`` (a name of
    ``dtypes``); ``data`` is the array of it, on one device."""

    shape: tuple[int, ...]
    dtype: str
    box: Box
    data: JaxArray


def addressable_pieces(array: JaxArray) -> list[ArrayPiece]:
    """The parts of ``array`` that this process stores: its addressable shards that are a first replica.

    Over all processes they cover every element once. Moves no data; ``TypeError`` for a typed PRNG key (take
    ``jax.random.key_data`` of it).
    """
    if not isinstance(array.dtype, np.dtype):
        raise TypeError(f"{array.dtype} has no elements of its own")
    shape, dtype = tuple(array.shape), numpy_name(array.dtype)
    return [
        ArrayPiece(shape, dtype, Box.of(shape, shard.index), shard.data)
        for shard in array.addressable_shards
        if shard.replica_id == 0
    ]


class JaxLeaf(Leaf):
    """An array, or this process's part of one; ``source`` is a ``HostShards``."""

    __slots__ = ()

    def copy_to(self, address: int, start: int, stop: int) -> None:
        self.check_range(start, stop)
        self.source.copy_to(self.name, address, start, stop)


class HostShards:
    """The shards of an array, each in host memory from the first byte copied of it to the last.

    On a CPU that is the device's own memory; from elsewhere each shard is brought over whole, once. The image is that
    of the whole array; or, ``in_a_row``, the images of its shards in this process, one behind the other.
    """

    def __init__(self, array: JaxArray, *, in_a_row: bool = False) -> None:
        self._array = array
        self._in_a_row = in_a_row
        self._lock = threading.Lock()
        self._pieces: list[tuple[ArrayPiece, tuple[int, int]]] | None = None  # with the image's bytes they lie within
        self._held: dict[int, Array] = {}
        self._left: list[int] = []

    def copy_to(self, name: str, address: int, start: int, stop: int) -> None:
        """Write bytes [start, stop) of the image to memory at ``address``."""
        for number, (piece, (first, last)) in enumerate(self._open(name)):
            if first >= stop or last <= start:
                continue
            with self._lock:
                held = self._held.get(number)
                if held is None:
                    held = self._held[number] = self._fetch(name, piece)
            if self._in_a_row or len(self._left) == 1:
                low, high = max(start, first), min(stop, last)
                move(address + low - start, held.ctypes.data + low - first, high - low)
                written = high - low
            else:
                written = box_to_image(piece.shape, piece.box, held, address, start, stop)
            with self._lock:
                self._left[number] -= written
                if self._left[number] <= 0:  # asked again, it is fetched again
                    self._held.pop(number, None)
                    self._left[number] = held.size

    def _open(self, name: str) -> list[tuple[ArrayPiece, tuple[int, int]]]:
        with self._lock:
            if self._pieces is None:
                self._check(name)
                size = self._array.dtype.itemsize
                pieces = [piece for piece in addressable_pieces(self._array) if piece.box.count]
                self._left = [piece.box.count * size for piece in pieces]
                self._pieces = list(zip(pieces, self._extents(pieces, size), strict=True))
            return self._pieces

    def _extents(self, pieces: list[ArrayPiece], size: int) -> list[tuple[int, int]]:
        if not self._in_a_row:
            return [extent(piece.shape, size, piece.box) for piece in pieces]
        ends = list(accumulate(self._left, initial=0))
        return list(pairwise(ends))

    def _fetch(self, name: str, piece: ArrayPiece) -> Array:
        """The bytes of a shard; waits for the computation that makes it."""
        jax: Any = sys.modules["jax"]
        data = piece.data
        self._check(name)  # a shard that is deleted may crash an older JAX
        try:
            # JAX keeps with an array what was copied to the host; with one of our own it goes when we let go.
            mine = jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data])
            array = np.ascontiguousarray(np.asarray(mine))
        except RuntimeError as error:
            raise UnsupportedError(f"{name}: its value cannot be had: {error}") from error
        raw: Array = array.reshape(-1).view(np.uint8).reshape(*piece.box.sizes, array.dtype.itemsize)
        return raw

    def _check(self, name: str) -> None:
        if self._array.is_deleted():
            raise UnsupportedError(f"{name}: {GONE}")


GONE = (
    "its array was deleted, or donated to a jitted function; save what the function returned, and with defer_staging "
    "call it after wait_staged()"
)


class JaxHandlers:
    """Turns arrays into leaves of ``collector``."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._specs: dict[tuple[Any, ...], Spec] = {}
        self._indices: dict[Hashable, int] = {}
        self._data: dict[int, JaxArray] = {}
        self._kept: list[JaxArray] = []  # so that no id is used again

    def find(self, value: object) -> Handler | None:
        """The handler of values of this type; None if it is no array of JAX."""
        return self.array if is_jax_array(value) else None

    def array(self, array: JaxArray, name: str, depth: int) -> Node:
        jax: Any = sys.modules["jax"]
        if isinstance(array, jax.core.Tracer):
            raise Refusal("a tracer has no value while its function is traced; save outside of jit, grad and vmap")
        if array.is_deleted():
            raise Refusal(GONE)
        if not isinstance(array.dtype, np.dtype):
            return self._key(jax, array, name, depth)
        index = self._indices.get(id(array))
        if index is not None:
            return self._collector.alias(index, name)
        if getattr(getattr(array.sharding, "spec", None), "unreduced", None):
            raise Refusal(
                f"its shards are terms of a sum that was not made yet ({array.sharding.spec}); reduce it first"
            )
        form = "jax-weak" if array.weak_type else "jax"
        part = None
        if array.is_fully_addressable:
            source = HostShards(array)
        elif array.is_fully_replicated:
            source = HostShards(array.addressable_data(0))
        else:
            boxes = tuple(piece.box for piece in addressable_pieces(array) if piece.box.count)
            source, part = HostShards(array, in_a_row=True), Part(tuple(array.shape), boxes)
        key = (array.dtype, array.shape, form, part)
        spec = self._specs.get(key)
        if spec is None:
            spec = self._specs[key] = self._spec(array, form, part)
        self._kept.append(array)
        index = self._indices[id(array)] = self._collector.add(spec, source, 0, False, name, part)
        return index

    @staticmethod
    def _spec(array: JaxArray, form: str, part: Part | None) -> Spec:
        if array.ndim > MAX_DIMS:
            raise Refusal(f"{array.ndim} dimensions; at most {MAX_DIMS} can be stored")
        try:
            return make_spec(form, numpy_name(array.dtype), part.stored_shape if part else tuple(array.shape))
        except UnsupportedError as error:
            raise Refusal(str(error)) from error

    def _key(self, jax: Any, array: JaxArray, name: str, depth: int) -> Node:
        impl = jax.random.key_impl(array)
        if type(impl) is not str:
            raise Refusal(f"keys of {impl} have no name to find their generator by; store jax.random.key_data of it")
        data = self._data.get(id(array))
        if data is None:
            data = self._data[id(array)] = jax.random.key_data(array)
            self._kept.append(array)
        return {KEY: {"impl": impl, "data": self.array(data, name, depth)}}


def key_parts(payload: Node) -> tuple[str, int]:
    """Generator and leaf of a key's node; ``ManifestError`` if it is malformed."""
    if type(payload) is not dict or type(payload.get("impl")) is not str or type(payload.get("data")) is not int:
        raise ManifestError("tree: a malformed PRNG key")
    return payload["impl"], payload["data"]


def wrap_key(impl: str, data: Any) -> JaxArray:
    """The typed key of its data, on the default device. ``DependencyError`` without JAX."""
    try:
        jax: Any = import_module("jax")
    except ImportError as error:
        raise DependencyError(
            "a stored PRNG key needs jax: pip install 's3dlio[jax]', or load it with names="
        ) from error
    try:
        return jax.random.wrap_key_data(data, impl=impl)
    except (ValueError, TypeError) as error:
        raise ManifestError(f"tree: no PRNG key of {impl[:100]!r} can be made: {error}") from error


def is_jax_array(value: object) -> bool:
    """Whether ``value`` is an array of JAX, or a tracer of one; never imports JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, getattr(jax, "Array", ()))
