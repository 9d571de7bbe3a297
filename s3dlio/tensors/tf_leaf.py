"""TensorFlow's tensors as leaves, its variables as leaves and targets.

Owns what TensorFlow needs: which tensors cannot be stored, their memory as a NumPy array, the assignment of what was
loaded. Never imports TensorFlow: a value can be of it only where somebody did. Called by ``tree`` and ``into``, and by
``s3dlio.frameworks``. The leaves are in NumPy's form: loading them needs no TensorFlow.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..engine.errors import ConfigError
from .dtypes import numpy_name
from .leaf import Collector, Handler, Refusal
from .numpy_leaf import Array, LateTarget, numpy_spec


class TensorflowHandlers:
    """Turns tensors and variables into leaves of ``collector``."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._found: dict[int, int] = {}  # leaves by the id of their tensor, which the state keeps alive

    def find(self, value: object) -> Handler | None:
        """The handler of ``value``'s type; None if it is not TensorFlow's."""
        return self._tensor if is_tensorflow(value) else None

    def _tensor(self, tensor: Any, name: str, _: int) -> int:
        # One object is one leaf. Memory tells nothing: variables made from one tensor share it until one is changed.
        index = self._found.get(id(tensor))
        if index is not None:
            return self._collector.alias(index, name)
        array = host_array(tensor)
        pointer: int = array.__array_interface__["data"][0]
        index = self._collector.add(numpy_spec(array), array, pointer, array.flags.c_contiguous, name)
        self._found[id(tensor)] = index
        return index


def host_array(tensor: Any) -> Array:
    """The values of a tensor or variable as they are now; ``Refusal`` if they are not bytes in memory.

    In host memory it is a view, without a copy. TensorFlow writes to no buffer that anybody else holds: a variable that
    changes later gets another one, and the view keeps the old values.
    """
    tf: Any = sys.modules["tensorflow"]
    if tensor.dtype in (tf.string, tf.resource, tf.variant):
        raise Refusal(f"a tensor of dtype {tensor.dtype.name} has no array of bytes; store {_instead(tensor, tf)}")
    if tensor.dtype.is_quantized:
        raise Refusal(
            f"quantized tensors ({tensor.dtype.name}) cannot be stored; store tf.bitcast of it with its range"
        )
    # As an array, a variable would copy itself.
    value = tensor.value() if isinstance(tensor, tf.Variable) else tensor
    if not hasattr(value, "numpy"):
        raise Refusal("a symbolic tensor has no value yet; save outside of tf.function")
    return np.asarray(value)


def _instead(tensor: Any, tf: Any) -> str:
    return ".numpy().tolist(), a list of bytes" if tensor.dtype == tf.string else "the tensors behind it"


class VariableTarget(LateTarget):
    """A variable that takes a stored leaf once all of it was read."""

    __slots__ = ("_variable",)

    def __init__(self, index: int, variable: Any, array: Array) -> None:
        super().__init__(index, array)
        self._variable = variable

    def value(self) -> Any:
        """Assign; the variable."""
        self._variable.assign(self.array)
        return self._variable


def variable_target(index: int, variable: Any) -> tuple[VariableTarget, Any]:
    """A target and the identity of its memory."""
    array = np.empty(tuple(variable.value().shape), variable.dtype.as_numpy_dtype)
    return VariableTarget(index, variable, array), ("variable", id(variable))


def describe(value: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype name and present shape; ``ConfigError`` if it cannot be loaded into."""
    if not isinstance(value, sys.modules["tensorflow"].Variable):
        raise ConfigError("a tf.Tensor cannot be written to; pass a tf.Variable")
    return numpy_name(np.dtype(value.dtype.as_numpy_dtype)), tuple(value.value().shape)


def is_tensorflow(value: object) -> bool:
    """Whether ``value`` is TensorFlow's tensor or variable."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(value, (tf.Tensor, tf.Variable))
