"""Names of element types: what each weighs, what safetensors calls it, and the NumPy dtype it stands for.

Owns the vocabulary of the table's ``dtype`` column (``s3dlio/FORMAT.md``, Table); imports no framework but NumPy. Plain
names (``PLAIN``) serve NumPy and torch alike, all others NumPy only. A long double bears the bits of its mantissa,
since its name means another format on another machine. Every other module of this package speaks in these names.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from ..engine.errors import ConfigError, DependencyError, ManifestError, UnsupportedError

if sys.byteorder != "little":
    raise ImportError("s3dlio stores arrays as they lie in memory, little-endian, and needs such a machine")

DType = np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Element:
    """One element: ``size`` in bytes, ``width`` of its component in bytes (grouping, alignment), safetensors' name."""

    size: int
    width: int
    code: str | None = None


# The codes are those that both readers of safetensors 0.8 know; F8_E8M0, for one, its torch reader does not.
PLAIN: dict[str, Element] = {
    "bool": Element(1, 1, "BOOL"),
    "int8": Element(1, 1, "I8"),
    "int16": Element(2, 2, "I16"),
    "int32": Element(4, 4, "I32"),
    "int64": Element(8, 8, "I64"),
    "uint8": Element(1, 1, "U8"),
    "uint16": Element(2, 2, "U16"),
    "uint32": Element(4, 4, "U32"),
    "uint64": Element(8, 8, "U64"),
    "float16": Element(2, 2, "F16"),
    "float32": Element(4, 4, "F32"),
    "float64": Element(8, 8, "F64"),
    "complex32": Element(4, 2),
    "complex64": Element(8, 4, "C64"),
    "complex128": Element(16, 8),
    "bfloat16": Element(2, 2, "BF16"),
    "float8_e4m3fn": Element(1, 1, "F8_E4M3"),
    "float8_e4m3fnuz": Element(1, 1, "F8_E4M3FNUZ"),
    "float8_e5m2": Element(1, 1, "F8_E5M2"),
    "float8_e5m2fnuz": Element(1, 1, "F8_E5M2FNUZ"),
}
# One byte an element each; of these torch knows float8_e8m0fnu and float4_e2m1fn_x2, ml_dtypes the others.
_ONE_BYTE = (
    "float8_e8m0fnu float4_e2m1fn_x2 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float6_e2m3fn float6_e3m2fn "
    "float4_e2m1fn int1 int2 int4 uint1 uint2 uint4"
).split()
PLAIN.update({name: Element(1, 1) for name in _ONE_BYTE})

NATIVE = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
)
"""Names that NumPy itself has."""
TORCH = NATIVE | set(
    "complex32 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu "
    "float4_e2m1fn_x2".split()
)
"""Names that torch may have; an old torch lacks some."""

_TEXT = re.compile(r"(datetime64|timedelta64)(\[[0-9]{0,9}[A-Za-zμ]{1,2}\])?|[USV][1-9][0-9]{0,9}")
_SWAPPED = re.compile(r">([iuf][248]|c8|c16|U[1-9][0-9]{0,9}|[mM]8(\[[0-9]{0,9}[A-Za-zμ]{1,2}\])?)")
_STRUCT_DEPTH = 16


def _long_name(complex_: bool) -> str:
    return f"{'c' if complex_ else ''}longdouble{np.finfo(np.longdouble).nmant}"


def numpy_name(dtype: DType) -> str:
    """The name of a NumPy dtype; ``UnsupportedError`` (without a path) if arrays of it cannot be stored."""
    if dtype.hasobject:
        raise UnsupportedError(f"dtype {dtype} holds Python objects, which need pickle")
    if dtype.itemsize == 0:
        raise UnsupportedError(f"dtype {dtype} has no bytes")
    if dtype.fields is not None:
        return "struct" + json.dumps(_describe(dtype, 0), separators=(",", ":"))
    name, text = str(dtype.name), str(dtype.str)
    if name in NATIVE or (name in PLAIN and dtype.type.__module__ == "ml_dtypes"):
        return text if dtype.byteorder == ">" else name
    if dtype.byteorder == ">" and _SWAPPED.fullmatch(text):
        return text
    if dtype.kind in "mM":
        return name
    if dtype.kind in "USV" and dtype.type in (np.str_, np.bytes_, np.void):
        return text[1:]
    if dtype.byteorder != ">" and dtype.char in "gG":
        return _long_name(dtype.char == "G")
    raise UnsupportedError(f"dtype {dtype} cannot be stored")


def _describe(dtype: DType, depth: int) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(base, depth + 1), list(shape)]
    if dtype.fields is None:
        return numpy_name(dtype)
    if depth > _STRUCT_DEPTH:
        raise UnsupportedError("a structured dtype is nested too deep")
    if dtype.type is not np.void:
        raise UnsupportedError(
            f"dtype {dtype} makes {dtype.type.__name__} objects; view it as a plain structured dtype"
        )
    names = list(dtype.names or ())
    fields = [dtype.fields[name] for name in names]
    titles = [field[2] if len(field) > 2 else None for field in fields]
    if not all(title is None or isinstance(title, str) for title in titles):
        raise UnsupportedError(f"dtype {dtype} has a title that is no string")
    return {
        "names": names,
        "formats": [_describe(field[0], depth + 1) for field in fields],
        "offsets": [int(field[1]) for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
        "titles": titles,
    }


@lru_cache(maxsize=4096)
def numpy_dtype(name: str) -> DType:
    """The NumPy dtype of a name.

    Raises ``ManifestError`` for what is no name, ``DependencyError`` without ml_dtypes where it is needed, and
    ``ConfigError`` for a long double of another machine.
    """
    if name in NATIVE:
        return np.dtype(name)
    if name in PLAIN:
        return _extended(name)
    if name in (_long_name(False), _long_name(True)):
        return np.dtype(np.clongdouble if name.startswith("c") else np.longdouble)
    if re.fullmatch(r"c?longdouble[0-9]{1,3}", name):
        raise ConfigError(f"dtype {name} is a long double of another machine; this one has {_long_name(False)}")
    try:
        if name.startswith("struct"):
            return _construct(json.loads(name[len("struct") :]), 0)
        if _TEXT.fullmatch(name) or _SWAPPED.fullmatch(name):
            return np.dtype(name)
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise ManifestError(f"dtype {name[:200]!r}: {error}") from error
    raise ManifestError(f"unknown dtype {name[:200]!r}")


def _extended(name: str) -> DType:
    try:
        made: DType = np.dtype(getattr(import_module("ml_dtypes"), name))
        return made
    except ImportError as error:
        raise DependencyError(f"arrays of dtype {name} need ml_dtypes: pip install ml_dtypes") from error
    except AttributeError as error:
        raise DependencyError(f"this ml_dtypes has no {name}; install a newer one") from error


def _construct(node: Any, depth: int) -> DType:
    if depth > _STRUCT_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(node, str) and not node.startswith("struct"):
        return numpy_dtype(node)
    if isinstance(node, list):
        base, shape = node
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("bad sub-array shape")
        return np.dtype((_construct(base, depth + 1), tuple(shape)))
    if not isinstance(node, dict) or type(node["itemsize"]) is not int or type(node["aligned"]) is not bool:
        raise ValueError("bad structure")
    if not all(type(offset) is int and offset >= 0 for offset in node["offsets"]):
        raise ValueError("bad offsets")
    parts: Any = {
        "names": node["names"],
        "formats": [_construct(item, depth + 1) for item in node["formats"]],
        "offsets": node["offsets"],
        "itemsize": node["itemsize"],
    }
    if not all(title is None or type(title) is str for title in node["titles"]):
        raise ValueError("bad titles")
    if any(title is not None for title in node["titles"]):
        parts["titles"] = node["titles"]
    made: DType = np.dtype(parts, align=node["aligned"])
    if made.hasobject or made.itemsize < 1:
        raise ValueError("bad structure")
    return made


def element(name: str) -> Element:
    """Size, width and code of a name; raises as ``numpy_dtype`` does."""
    known = PLAIN.get(name)
    if known is not None:
        return known
    dtype = numpy_dtype(name)
    size, kind = dtype.itemsize, dtype.kind
    if kind == "U":
        return Element(size, 4)
    if kind in "SV":
        return Element(size, dtype.alignment if size % dtype.alignment == 0 else 1)
    return Element(size, size // 2 if kind == "c" else size)
