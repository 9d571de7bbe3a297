"""Which stored leaf goes where in a target: all of both, or one error with everything that does not fit.

Owns the comparison; decides and reads nothing. A target's leaf may be a ``jax.ShapeDtypeStruct`` or an array of JAX (it
says shape, dtype and devices), an array or scalar of NumPy, or a value of Python. Called by ``restoring``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ...engine.errors import ConfigError, S3dlioError
from ...tensors.box import Box
from ...tensors.dtypes import numpy_dtype
from ...tensors.leaf import Spec
from ...tensors.numpy_leaf import text_over
from .placing import Misfit, Place, key_dtype, place_key, place_of
from .trees import Path, Stored, shown

_MOST_PROBLEMS = 1000  # lines of one message
_NUMBERS: dict[type, Any] = {bool: np.bool_, int: np.integer, float: np.floating, complex: np.complexfloating}


@dataclass(frozen=True, slots=True)
class Take:
    """How a leaf of the target is made: by ``make`` of ``boxes`` of the stored leaf ``index``, as arrays by box."""

    index: int
    boxes: Sequence[Box]
    make: Callable[[Mapping[Box, Any]], Any]


def match(stored: dict[Path, Stored], specs: list[Spec], target: dict[Path, Any]) -> list[Take]:
    """How to make each leaf of ``target``, in its order.

    Every leaf of either side needs one of the other at its path, of the same shape and dtype. A number of Python and an
    array without dimensions stand for each other where no digit is lost. ``ConfigError`` lists all that do not fit.
    """
    takes: list[Take] = []
    problems: list[str] = []
    for path, leaf in target.items():
        held = stored.get(path)
        if held is None:
            problems.append(f"{shown(path)}: not in the checkpoint; target {_told(leaf)}")
            continue
        try:
            takes.append(_fit(held, specs, leaf))
        except Misfit as misfit:
            problems.append(f"{shown(path)}: {misfit}")
    problems += [
        f"{shown(path)}: not in the target; stored {_stored(held, specs)}"
        for path, held in stored.items()
        if path not in target
    ]
    if problems:
        text = "\n  ".join(problems[:_MOST_PROBLEMS])
        more = f"\n  ... and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise ConfigError(f"the target does not fit the checkpoint; nothing was read:\n  {text}{more}")
    return takes


def _fit(held: Stored, specs: list[Spec], leaf: Any) -> Take:
    try:
        if held.kind == "array":
            return _fit_array(held.index, specs[held.index], leaf)
        if held.kind == "key":
            return _fit_key(held, specs[held.index], leaf)
        if held.kind == "text":
            return _fit_text(held.index, specs[held.index], leaf)
        if held.kind == "value":
            return Take(-1, (), _value(held.value, leaf))
    except Misfit:
        raise
    except S3dlioError as error:  # a dtype that this machine cannot hold
        raise Misfit(str(error)) from error
    raise Misfit(f"stored {held.value}, which JAX has no place for")


def _fit_array(index: int, spec: Spec, leaf: Any) -> Take:
    whole = Box.whole(spec.shape)
    dtype = numpy_dtype(spec.dtype)
    kind = _NUMBERS.get(type(leaf))
    if kind is not None and spec.shape == () and (np.issubdtype(dtype, kind) or _is_small_float(kind, dtype)):
        return Take(index, (whole,), lambda parts: type(leaf)(parts[whole].item()))
    if _form(leaf) != (dtype, spec.shape):
        raise Misfit(f"stored {_array(spec)}, target {_told(leaf)}")
    if isinstance(leaf, np.ndarray):
        return Take(index, (whole,), lambda parts: parts[whole])
    if isinstance(leaf, np.generic):
        return Take(index, (whole,), lambda parts: parts[whole][()])
    place = place_of(leaf)
    return Take(index, place.boxes, place.make)


def _is_small_float(kind: Any, dtype: Any) -> bool:
    return kind is np.floating and dtype.type.__module__ == "ml_dtypes" and dtype.name.startswith(("float", "bfloat"))


def _fit_key(held: Stored, spec: Spec, leaf: Any) -> Take:
    shape, dtype = spec.shape[:-1], key_dtype(held.value)
    if _form(leaf) != (dtype, shape):
        raise Misfit(f"stored {dtype} {list(shape)}, target {_told(leaf)}")
    whole = Box.whole(spec.shape)
    make = place_key(held.value, leaf)
    return Take(held.index, (whole,), lambda parts: make(parts[whole]))


def _fit_text(index: int, spec: Spec, leaf: Any) -> Take:
    if type(leaf).__name__ != spec.form:
        raise Misfit(f"stored {spec.form} of {spec.nbytes} bytes, target {_told(leaf)}")
    whole = Box.whole(spec.shape)
    return Take(index, (whole,), lambda parts: text_over(parts[whole], spec, 0))


def _value(value: Any, leaf: Any) -> Callable[[Mapping[Box, Any]], Any]:
    """What makes the target's leaf of a stored scalar."""
    form = _form(leaf)
    if type(value) is type(leaf) and (not isinstance(value, np.generic) or isinstance(value, np.character)):
        return lambda _: value
    if isinstance(value, np.generic) and form == (value.dtype, ()):
        array = np.asarray(value)
    elif type(value) in _NUMBERS and form is not None and isinstance(form[0], np.dtype) and form[1] == ():
        array = _exactly(value, form[0])
    else:
        raise Misfit(f"stored {_scalar(value)}, target {_told(leaf)}")
    if isinstance(leaf, np.generic):
        return lambda _: array[()]
    if isinstance(leaf, np.ndarray):
        return lambda _: array.copy()
    place: Place = place_of(leaf)
    return lambda _: place.make(dict.fromkeys(place.boxes, array))


def _exactly(value: Any, dtype: Any) -> Any:
    """A number as an array without dimensions; ``Misfit`` if ``dtype`` is of another kind or has not its digits."""
    kind = _NUMBERS[type(value)]
    if np.issubdtype(dtype, kind) or _is_small_float(kind, dtype):
        try:
            with np.errstate(all="ignore"):
                array = np.asarray(value, dtype)
        except OverflowError:
            pass
        else:
            back = type(value)(array.item())
            if back == value or (back != back and value != value):  # noqa: PLR0124 - nan
                return array
    raise Misfit(f"stored {_scalar(value)}, which {dtype} cannot hold exactly")


def _form(leaf: Any) -> tuple[Any, tuple[int, ...]] | None:
    """Dtype and shape of what is like an array."""
    if isinstance(leaf, jax.core.Tracer):
        raise Misfit("the target is a tracer, which has no devices; restore outside of jit")
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    return (dtype, tuple(shape)) if isinstance(shape, tuple) and dtype is not None else None


def _told(leaf: Any) -> str:
    try:
        form = _form(leaf)
    except Misfit:
        form = None
    return f"{type(leaf).__qualname__}" if form is None else f"{form[0]} {list(form[1])}"


def _array(spec: Spec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _scalar(value: Any) -> str:
    if isinstance(value, np.generic):
        return f"{value.dtype} []"
    return f"{type(value).__name__} {value!r}"[:100]


def _stored(held: Stored, specs: list[Spec]) -> str:
    if held.kind == "array":
        return _array(specs[held.index])
    if held.kind == "key":
        return f"a key of {held.value[:100]} {list(specs[held.index].shape[:-1])}"
    if held.kind == "text":
        return f"{specs[held.index].form} of {specs[held.index].nbytes} bytes"
    return held.value if held.kind == "other" else _scalar(held.value)
