"""Scalars as typed JSON nodes, and back.

Owns the nodes of everything that is no container and no array (``s3dlio/FORMAT.md``, Tree): numbers by value or bits,
short bytes, NumPy scalars, torch's sizes, dtypes and devices. Strings, booleans and None are their own nodes; a bare
integer is a leaf's index, so every number is tagged. Called by ``tree`` (``ENCODERS``) and ``restore`` (``DECODERS``).
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from ..engine.errors import DependencyError, ManifestError, S3dlioError, UnsupportedError
from .dtypes import numpy_dtype, numpy_name
from .leaf import Handler, Node, Refusal

_INT64 = 1 << 63


def _int(value: int) -> int | str:
    return value if -_INT64 <= value < _INT64 else hex(value)


def _float(value: float) -> float | str:
    """The number, or its 64 bits where JSON has no number for it."""
    return value if math.isfinite(value) else struct.pack(">d", value).hex()


def encode_int(value: int, _name: str = "", _depth: int = 0) -> Node:
    """An integer of any size."""
    return {"int": _int(value)}


def encode_float(value: float, _name: str = "", _depth: int = 0) -> Node:
    """A float, exact to the bit."""
    return {"float": _float(value)}


def encode_complex(value: complex, _name: str = "", _depth: int = 0) -> Node:
    """A complex number, exact to the bit."""
    return {"complex": [_float(value.real), _float(value.imag)]}


def encode_numpy(value: np.generic[Any], _name: str = "", _depth: int = 0) -> Node:
    """A NumPy scalar: dtype and bytes; texts by value, since arrays drop their trailing NULs."""
    if isinstance(value, np.str_):
        return {"numpy": ["U", str.encode(value, "utf-8", "surrogatepass").hex()]}
    if isinstance(value, np.bytes_):
        return {"numpy": ["S", bytes.hex(value)]}
    try:
        return {"numpy": [numpy_name(value.dtype), value.tobytes().hex()]}
    except UnsupportedError as error:
        raise Refusal(str(error)) from error


def itself(value: object, _name: str = "", _depth: int = 0) -> Node:
    """The value is its own node."""
    return value


ENCODERS: dict[type, Handler] = {
    type(None): itself,
    bool: itself,
    int: encode_int,
    float: encode_float,
    complex: encode_complex,
}


def torch_encoders() -> dict[type, Handler]:
    """Encoders of torch's own scalars; empty where torch is not imported, since no value can be of it then."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        torch.Size: lambda value, _name, _depth: {"size": list(value)},
        torch.dtype: lambda value, _name, _depth: {"dtype": str(value).removeprefix("torch.")},
        torch.device: lambda value, _name, _depth: {"device": str(value)},
    }


def pack(values: list[Any] | tuple[Any, ...]) -> Node | None:
    """The node of a long run of plain ints or finite floats, without a node each; None if it is anything else."""
    if len(values) < 2:
        return None
    kind = type(values[0])
    if kind not in (int, float) or type(values[-1]) is not kind or set(map(type, values)) != {kind}:
        return None
    if kind is int:
        return {"ints": list(values)} if min(values) >= -_INT64 and max(values) < _INT64 else None
    return {"floats": list(values)} if all(map(math.isfinite, values)) else None


def _decode_int(node: Node) -> int:
    if type(node) is int:
        return node
    if type(node) is str and node.removeprefix("-").startswith("0x"):
        return int(node, 16)
    raise ValueError("not an integer")


def _decode_float(node: Node) -> float:
    if type(node) is str and len(node) == 16:
        value: float = struct.unpack(">d", bytes.fromhex(node))[0]
        return value
    if type(node) in (int, float):
        return float(node)
    raise ValueError("not a number")


def _decode_complex(node: Node) -> complex:
    real, imag = node
    return complex(_decode_float(real), _decode_float(imag))


def _decode_numpy(node: Node) -> object:
    name, raw = node
    data = bytes.fromhex(raw)
    if name == "U":
        return np.str_(data.decode("utf-8", "surrogatepass"))
    if name == "S":
        return np.bytes_(data)
    dtype = numpy_dtype(name)
    if len(data) != dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for a {name}")
    return np.frombuffer(data, dtype)[0]


def _all_of(kind: type, node: Node) -> list[Any]:
    if type(node) is not list or not set(map(type, node)) <= {kind}:
        raise ValueError(f"not a list of {kind.__name__}")
    return list(node)


def import_torch(why: str) -> Any:
    """torch; ``DependencyError`` with ``why`` it is needed where it is not installed."""
    try:
        return import_module("torch")
    except ImportError as error:
        raise DependencyError(f"{why} needs torch: pip install 's3dlio[torch]'") from error


def _decode_size(node: Node) -> object:
    return import_torch("a stored torch.Size").Size(_all_of(int, node))


def _decode_dtype(node: Node) -> object:
    torch = import_torch("a stored torch.dtype")
    dtype = getattr(torch, node, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError("this torch has no such dtype")
    return dtype


def _decode_device(node: Node) -> object:
    return import_torch("a stored torch.device").device(node)


DECODERS: dict[str, Callable[[Node], object]] = {
    "int": _decode_int,
    "float": _decode_float,
    "complex": _decode_complex,
    "str": lambda node: bytes.fromhex(node).decode("utf-8", "surrogatepass"),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "numpy": _decode_numpy,
    "ints": lambda node: _all_of(int, node),
    "floats": lambda node: [_decode_float(item) for item in _all_of(float, node)],
    "size": _decode_size,
    "dtype": _decode_dtype,
    "device": _decode_device,
}


def decode(tag: str, node: Node) -> object:
    """The scalar of a tagged node; ``ManifestError`` if it is malformed."""
    try:
        return DECODERS[tag](node)
    except S3dlioError:
        raise
    except (ValueError, TypeError, OverflowError, AttributeError, RuntimeError) as error:  # torch raises RuntimeError
        raise ManifestError(f"tree: a malformed {tag} node: {error}") from error
