"""States to save, made from a seed, so that any process can tell whether what it loads is what was saved."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

MIB = 1 << 20
FILLER = 77
"""What arrays to load into hold before."""


@cache
def make(seed: int, mib: int = 3) -> dict[str, Any]:
    """A state of ``mib`` MiB: compressible fp32 and 16-bit arrays that end off every boundary, nested, with scalars.

    Callers share it: change nothing in it.
    """
    random = np.random.default_rng(seed)
    return {
        "model": {
            "weight": random.integers(0, 64, mib * (MIB // 8) - 5).astype(np.float32),
            "half": random.integers(0, 512, mib * (MIB // 4) - 7).astype(np.float16),
        },
        "moments": [random.standard_normal(1001), np.zeros((0, 3), np.float32)],
        "step": seed,
        "note": (None, 1.5, "text", b"bytes", True),
    }


def noise(seed: int, mib: int = 4) -> dict[str, Any]:
    """A state that does not shrink."""
    return {"noise": np.random.default_rng(seed).integers(0, 256, mib * MIB - 3, dtype=np.uint8), "step": seed}


def zeroed(state: Any) -> Any:
    """A state of the same structure to load into; arrays are filled with something else."""
    if isinstance(state, dict):
        return {key: zeroed(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(zeroed, state))
    return np.full_like(state, FILLER) if isinstance(state, np.ndarray) else state


def same(found: Any, expected: Any) -> bool:
    """Whether two states are equal: structure, types, dtypes, every bit."""
    if type(found) is not type(expected) and not isinstance(expected, np.ndarray):
        return False
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray):
        return (
            isinstance(found, np.ndarray)
            and found.dtype == expected.dtype
            and found.shape == expected.shape
            and _bytes(found) == _bytes(expected)
        )
    return bool(found == expected)


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).data.cast("B") if array.size else memoryview(b"")
