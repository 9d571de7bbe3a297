"""The states that are saved: a transformer's bf16 weights with fp32 moments, many small tensors, mixed leaves.

Owns shapes and contents, the same for the same size; values look like weights (a normal distribution), so that codecs
see neither zeros nor noise. Benchmarks call it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch

BLOCKS = 8
_BYTES_PER_PARAMETER = 2 + 4 + 4
_MATERIAL = 4 << 20  # values that every tensor is tiled from


def shapes(nbytes: int) -> dict[str, tuple[int, ...]]:
    """Parameters of a transformer whose weights and two moments take about ``nbytes``; the embedding takes the rest."""
    parameters = max(nbytes // _BYTES_PER_PARAMETER, 4096)
    width = max(8, int((0.8 * parameters / (12 * BLOCKS)) ** 0.5) // 8 * 8)
    found: dict[str, tuple[int, ...]] = {}
    for block in range(BLOCKS):
        name = f"blocks.{block}"
        for layer, rows, columns in (
            ("attention.qkv", 3 * width, width),
            ("attention.out", width, width),
            ("mlp.up", 4 * width, width),
            ("mlp.down", width, 4 * width),
        ):
            found[f"{name}.{layer}.weight"] = (rows, columns)
            found[f"{name}.{layer}.bias"] = (rows,)
        for norm in ("norm1", "norm2"):
            found[f"{name}.{norm}.weight"] = (width,)
            found[f"{name}.{norm}.bias"] = (width,)
    found["norm.weight"], found["norm.bias"] = (width,), (width,)
    used = sum(int(np.prod(shape)) for shape in found.values())
    found["embedding.weight"] = (max(1, (parameters - used) // width), width)
    return found


def reference(nbytes: int) -> dict[str, Any]:
    """About ``nbytes`` as a training loop holds them: 297 tensors in ``model`` and ``optimizer``, and a few scalars."""
    material = torch.randn(_MATERIAL, generator=torch.Generator().manual_seed(0)) * 0.02
    first, second = material * 1e-2, (material * 1e-2) ** 2
    model: dict[str, torch.Tensor] = {}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    names = shapes(nbytes)
    for index, (name, shape) in enumerate(names.items()):
        model[name] = _tiled(shape, torch.bfloat16, material, 3 * index)
        moments[index] = {
            "exp_avg": _tiled(shape, torch.float32, first, 3 * index + 1),
            "exp_avg_sq": _tiled(shape, torch.float32, second, 3 * index + 2),
        }
    group = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "params": list(range(len(names)))}
    return {"model": model, "optimizer": {"state": moments, "param_groups": [group]}, "step": 1000}


def _tiled(shape: tuple[int, ...], dtype: torch.dtype, material: torch.Tensor, turn: int) -> torch.Tensor:
    """A tensor filled from another place of ``material`` each ``turn``; no temporaries, they would stay in the heap."""
    tensor = torch.empty(shape, dtype=dtype)
    flat, filled, start = tensor.view(-1), 0, turn * 7919 % len(material)
    while filled < len(flat):
        piece = material[start : start + len(flat) - filled]
        flat[filled : filled + len(piece)].copy_(piece)
        filled, start = filled + len(piece), 0
    return tensor


def many(count: int, size: int = 1024) -> dict[str, torch.Tensor]:
    """``count`` fp32 tensors of ``size`` bytes each, in storages of their own."""
    values = torch.randn(size // 4, generator=torch.Generator().manual_seed(0))
    return {f"layer.{index}.weight": values.clone() for index in range(count)}


def mixed(leaves: int) -> dict[str, Any]:
    """``leaves`` leaves of many kinds: tensors, arrays, numbers, strings, tuples, None."""
    state: dict[str, Any] = {}
    for index in range(leaves):
        kind = index % 8
        state[f"leaf.{index}"] = (
            torch.full((64,), float(index)) if kind == 0
            else torch.full((16,), index, dtype=torch.int64) if kind == 1
            else np.full(32, index, np.float32) if kind == 2
            else index if kind == 3
            else index / 7 if kind == 4
            else f"text {index}" if kind == 5
            else (index, None) if kind == 6
            else torch.tensor(float(index), dtype=torch.bfloat16)
        )  # fmt: skip
    return state


def tensors(state: object) -> Iterator[torch.Tensor]:
    """Every tensor of a state, in order."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


def size(state: object) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors(state))


def flat(state: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors by dotted path, which is all that safetensors takes."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    if isinstance(state, dict):
        return {
            name: t for key, value in state.items() for name, t in flat(value, f"{prefix}.{key}".lstrip(".")).items()
        }
    return {}


def empty_like(state: Any) -> Any:
    """A tree of the same shape with tensors of its own, touched, to load into."""
    if isinstance(state, torch.Tensor):
        return torch.zeros_like(state)
    if isinstance(state, dict):
        return {key: empty_like(value) for key, value in state.items()}
    if isinstance(state, list):
        return [empty_like(value) for value in state]
    return state


def warm_machine(nbytes: int) -> None:
    """Touch ``nbytes`` of memory once and give it back, as far as it is there.

    The first touch of memory that a virtual machine never used, or that its host took back since, goes through the host
    at 0.3 GB/s; without this, whichever case comes first would pay for it.
    """
    nbytes = min(nbytes, int(psutil.virtual_memory().available * 0.8)) // mmap.PAGESIZE * mmap.PAGESIZE
    if nbytes:
        mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
