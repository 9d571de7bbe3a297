"""States for the tests of torch DCP, as plain tensors and as DTensors, and how they are compared."""

from __future__ import annotations

from typing import Any

import torch

MIB = 1 << 20
SMALL: dict[str, Any] = {"memory": 48 * MIB, "workers": 2, "chunk_size": MIB}
"""One pool for writers, readers and stores of a process; chunks of 1 MiB make small states have several."""


def odd(seed: int = 0) -> dict[str, Any]:
    """Every kind of leaf that a state dict may have."""
    chance = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance)

    tied = randn(20, 3)
    return {
        "model": {
            "weight": randn(700, 1000),
            "half": randn(33, 5).bfloat16(),
            "float8": randn(129).to(torch.float8_e4m3fn),
            "complex": torch.complex(randn(9, 4), randn(9, 4)),
            "conj": torch.complex(randn(6), randn(6)).conj(),
            "scalar": randn(),
            "empty": torch.empty(0, 4),
            "strided": randn(50, 40).t(),
            "view": randn(100, 10)[::3, 2:5],
            "flags": randn(77) > 0,
            "param": torch.nn.Parameter(randn(4, 4)),
            "tied": tied,
            "tied_too": tied,
        },
        "optim": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": randn(8)}}, "param_groups": [{"lr": 1e-3}]},
        "step": 7,
        "big": 1 << 80,
        "name": "naïve",
        "long": "x" * 70_000,
        "ratio": float("inf"),
        "none": None,
        "raw": b"\x00\xff",
        "list": [1, 2, 3],
        "mixed": [1, "a", None],
        "pair": (1, (2.5, "b")),
        "rng": (torch.arange(5), [torch.ones(2)]),
        "array": randn(3).numpy(),
    }


def hollow(value: Any) -> Any:
    """The same structure with tensors of zeros and other scalars: what a load has to fill."""
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(torch.zeros(value.shape, dtype=value.dtype))
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape).to(value.dtype)
    if isinstance(value, dict):
        return {key: hollow(child) for key, child in value.items()}
    if isinstance(value, list) and any(isinstance(child, (torch.Tensor, dict)) for child in value):
        return [hollow(child) for child in value]
    return "not loaded"


def same(found: Any, expected: Any, path: str = "") -> None:
    """Equal in structure, dtype, shape and bits; says where not."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), path
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), path
        assert bits(found) == bits(expected), path
    elif isinstance(expected, dict):
        assert list(map(str, found)) == list(map(str, expected)), path
        for one, other in zip(found.values(), expected.items(), strict=True):
            same(one, other[1], f"{path}.{other[0]}")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected), path
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{path}.{number}")
    elif hasattr(expected, "tobytes"):
        assert found.tobytes() == expected.tobytes(), path
    else:
        assert type(found) is type(expected), path
        assert found == expected, path


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's elements in C order."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
