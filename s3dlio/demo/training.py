"""Deterministic training: one object that steps, tells its whole state, and takes it back.

Owns model, optimizer, losses and randomness; never saves, loads or prints. ``trainer`` calls it. Two runs of the same
seed, size and step count agree in every bit, and so does a run that was restored from a state in between: the data of a
step is a function of the step, dropout draws from a generator whose state is part of the state, and the number of
threads is fixed (a sum split among another number of threads rounds differently).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .model import ByteTransformer
from .options import Size
from .text import Corpus, offsets

SEED = 20
PEAK_RATE = 1e-3
WARM_STEPS = 8


def fix_randomness(seed: int, threads: int) -> None:
    """Seed torch, forbid nondeterministic kernels and fix the number of threads, for this process."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def rate_at(step: int, steps: int) -> float:
    """Learning rate of ``step`` (from 0): a short linear rise, then half a cosine down to a tenth."""
    if step < WARM_STEPS:
        return PEAK_RATE * (step + 1) / WARM_STEPS
    share = (step - WARM_STEPS) / max(1, steps - WARM_STEPS)
    return PEAK_RATE * (0.55 + 0.45 * math.cos(math.pi * min(1.0, share)))


class Training:
    """A run of ``steps`` steps over ``corpus``; call ``fix_randomness`` before making one."""

    def __init__(self, size: Size, corpus: Corpus, *, steps: int, seed: int = SEED) -> None:
        self.step = 0
        self.losses: list[float] = []
        self._size = size
        self._steps = steps
        self._seed = seed
        self._train = torch.frombuffer(bytearray(corpus.train), dtype=torch.uint8)
        self._held_out = torch.frombuffer(bytearray(corpus.held_out), dtype=torch.uint8)
        self.model = ByteTransformer(size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=PEAK_RATE, weight_decay=0.01)

    @property
    def parameters(self) -> int:
        """Number of trained values; tied weights count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def advance(self) -> float:
        """Train one step and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self._steps)
        self.model.train()
        loss = self._loss(self._train, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def held_out_loss(self, batches: int = 4) -> float:
        """Mean loss over bytes never trained on; changes nothing that training depends on."""
        self.model.eval()
        with torch.no_grad():
            return sum(self._loss(self._held_out, -1 - number).item() for number in range(batches)) / batches

    def state(self) -> dict[str, Any]:
        """Everything the rest of the run depends on, as a tree of live tensors (not copies) and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "losses": list(self.losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; raises what torch raises where names or shapes differ."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]
        self.losses = list(state["losses"])

    def _loss(self, source: Tensor, step: int) -> Tensor:
        length = self._size.context + 1
        starts = offsets(self._seed, step, self._size.batch, source.numel() - length)
        batch = torch.stack([source[start : start + length] for start in starts]).long()
        logits = self.model(batch[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def digests(state: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each top-level part of ``state``: of every path, dtype, shape, byte and exact value in it."""
    return {name: _digest(value) for name, value in state.items()}


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in the tree ``value``; storage seen twice (tied weights) counts once."""
    storages = {leaf.data_ptr(): leaf.nbytes for _, leaf in _leaves("", value) if isinstance(leaf, Tensor)}
    return sum(storages.values())


def _digest(value: Any) -> str:
    total = hashlib.sha256()
    for path, leaf in _leaves("", value):
        if isinstance(leaf, Tensor):
            total.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
            total.update(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            total.update(f"{path} {leaf!r}\n".encode())
    return total.hexdigest()


def _leaves(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}/{key!r}", inner)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _leaves(f"{path}/{number}", inner)
    else:
        yield path, value
