"""NumPy arrays, and long texts, as leaves and targets.

Owns what NumPy needs: refusing arrays that cannot be stored, the address of contiguous ones, boxes of strided ones,
arrays over loaded memory. Never imports torch. Called by ``tree`` while it walks, by ``restore`` and by ``into``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, UnsupportedError
from ..engine.source import move, view
from .copying import Index, gather, scatter
from .dtypes import DType, numpy_dtype, numpy_name
from .leaf import Collector, Handler, Leaf, Refusal, Spec, Target, Ties, make_spec

Array = np.ndarray[Any, Any]

_INLINE = 4096  # bytes up to which bytes and bytearray stand in the tree
_INLINE_TEXT = 65536  # characters up to which a string stands in the tree
_TEXT_STEP = 1 << 20


class NumpyLeaf(Leaf):
    """An array, which may also be the bytes of a long bytes, bytearray or string."""

    __slots__ = ()

    def copy_to(self, address: int, start: int, stop: int) -> None:
        self.check_range(start, stop)
        if self.direct:
            move(address, self.pointer + start, stop - start)
        else:
            gather(ArrayBoxes(self.source), address, start, stop)


class ArrayBoxes:
    """A strided array as raw elements, so that no copy looks at a value."""

    def __init__(self, array: Array) -> None:
        self.itemsize = array.dtype.itemsize
        self.shape = array.shape
        self._carrier = np.dtype(f"u{self.itemsize}" if self.itemsize in (1, 2, 4, 8) else f"V{self.itemsize}")
        self._array = array.view(self._carrier)

    def get(self, index: Index, address: int, nbytes: int) -> None:
        place = (*index, ...)  # with the ellipsis a single element is an array too
        box = self._array[place]
        np.copyto(self._memory(address, nbytes).reshape(box.shape), box)

    def put(self, index: Index, address: int, nbytes: int) -> None:
        place = (*index, ...)  # with the ellipsis a single element is an array too
        box = self._array[place]
        np.copyto(box, self._memory(address, nbytes).reshape(box.shape))

    def _memory(self, address: int, nbytes: int) -> Array:
        return np.frombuffer(view(address, nbytes), self._carrier)


class NumpyHandlers:
    """Turns arrays and long texts into leaves of ``collector``."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._specs: dict[tuple[DType, tuple[int, ...]], tuple[Spec, Ties]] = {}
        self._texts: Ties = {}
        self._kept: list[object] = []  # so that no id in ``_texts`` is used again

    def table(self) -> dict[type, Handler]:
        """Handlers by exact type. A memmap is an array like any other; it is restored as a plain one."""
        return {
            np.ndarray: self.array,
            np.memmap: self.array,
            bytes: self.long_bytes,
            bytearray: self.long_bytes,
            str: self.text,
        }

    def array(self, array: Array, name: str, _: int) -> int:
        key = (array.dtype, array.shape)
        known = self._specs.get(key)
        if known is None:
            known = self._specs[key] = numpy_spec(array), {}
        spec, ties = known
        pointer: int = array.__array_interface__["data"][0]
        contiguous = array.flags.c_contiguous
        tie: Hashable = pointer if contiguous else (pointer, array.strides)
        if spec.nbytes == 0:
            tie = ("empty", id(array))
        index = ties.get(tie)
        if index is not None:
            return self._collector.alias(index, name)
        ties[tie] = index = self._collector.add(spec, array, pointer, contiguous, name)
        return index

    def long_bytes(self, value: bytes | bytearray, name: str, _: int) -> Any:
        if len(value) <= _INLINE:
            return {type(value).__name__: value.hex()}
        return self._raw(value, np.frombuffer(value, np.uint8), type(value).__name__, name)

    def text(self, value: str, name: str, _: int) -> Any:
        if len(value) > _INLINE_TEXT:
            raw = bytearray()
            for start in range(0, len(value), _TEXT_STEP):  # in steps, not to hold the interpreter for long
                raw += value[start : start + _TEXT_STEP].encode("utf-8", "surrogatepass")
            return self._raw(value, np.frombuffer(raw, np.uint8), "str", name)
        if value.isascii() or is_sound(value):
            return value
        return {"str": value.encode("utf-8", "surrogatepass").hex()}

    def _raw(self, value: object, array: Array, form: str, name: str) -> int:
        tie = (form, id(value))
        index = self._texts.get(tie)
        if index is not None:
            return self._collector.alias(index, name)
        spec = make_spec(form, "uint8", array.shape)
        pointer: int = array.__array_interface__["data"][0]
        index = self._texts[tie] = self._collector.add(spec, array, pointer, True, name)
        self._kept.append(value)
        return index


def numpy_spec(array: Array) -> Spec:
    """The spec of an array in NumPy's form; ``Refusal`` if its dtype cannot be stored."""
    try:
        return make_spec("numpy", numpy_name(array.dtype), array.shape)
    except UnsupportedError as error:
        raise Refusal(str(error)) from error


def is_sound(text: str) -> bool:
    """Whether ``text`` is Unicode text: no lone surrogates, which JSON cannot hold faithfully."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def array_over(whole: Array, spec: Spec, offset: int) -> Array:
    """An array over ``whole`` (bytes) from ``offset``, without a copy; it keeps ``whole`` alive.

    ``whole`` is the array, not the mapping itself: ``numpy.ndarray(buffer=...)`` looks through a memoryview to its
    owner and holds no export, so that a mapping could be closed under the array.
    """
    made: Array = np.ndarray(spec.shape, numpy_dtype(spec.dtype), whole, offset if spec.nbytes else 0)
    return made


def text_over(whole: Array, spec: Spec, offset: int) -> bytes | bytearray | str:
    """The bytes, bytearray or string of a leaf of that form, copied; ``ValueError`` for a string that is no UTF-8."""
    raw = whole[offset : offset + spec.nbytes]
    if spec.form == "bytearray":
        return bytearray(raw)
    return raw.tobytes() if spec.form == "bytes" else raw.tobytes().decode("utf-8", "surrogatepass")


class NumpyTarget(Target):
    """An existing array that takes a stored leaf."""

    __slots__ = ("array",)

    def __init__(self, index: int, array: Array) -> None:
        self.index = index
        self.array = array
        self.nbytes = array.nbytes

    def address(self) -> int | None:
        pointer: int = self.array.__array_interface__["data"][0]
        return pointer if self.array.flags.c_contiguous else None

    def copy_from(self, address: int, start: int, stop: int) -> None:
        self.check_range(start, stop)
        pointer = self.address()
        if pointer is not None:
            move(pointer + start, address, stop - start)
        else:
            scatter(ArrayBoxes(self.array), address, start, stop)


class LateTarget(NumpyTarget):
    """Memory for what cannot be written in place: it becomes a value once all of it was read."""

    __slots__ = ()

    @abstractmethod
    def value(self) -> Any:
        """What stands in the loaded state; called once, after the last byte."""


def array_target(index: int, array: Array) -> tuple[NumpyTarget, Any]:
    """A target and the identity of its memory; ``ConfigError`` if it cannot be written element by element."""
    if not array.flags.writeable:
        raise ConfigError("it is read-only")
    if any(stride == 0 and side > 1 for stride, side in zip(array.strides, array.shape, strict=True)) and array.size:
        raise ConfigError("it is expanded: several of its elements share memory")
    identity = (array.__array_interface__["data"][0], array.strides) if array.nbytes else id(array)
    return NumpyTarget(index, array), identity
