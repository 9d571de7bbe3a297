"""The demo's model: a small byte-level transformer with tied embeddings.

Owns the architecture and its sizes; never trains, saves or loads. ``training`` calls it. Imports torch, so only trainer
processes import this module.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .options import Size

BYTES = 256


class Block(nn.Module):
    """One pre-norm layer: causal attention, then a feed-forward of four times the width."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm_attention = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.project = nn.Linear(size.width, size.width, bias=False)
        self.norm_forward = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.project(mixed.transpose(1, 2).reshape(batch, length, width)))
        forward = self.down(functional.gelu(self.up(self.norm_forward(x))))
        return x + cast(Tensor, self.dropout(forward))


class ByteTransformer(nn.Module):
    """Predicts the next byte. ``forward`` takes int64 ``(batch, length)`` and gives logits ``(batch, length, 256)``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, size.width)
        self.position = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, BYTES, bias=False)
        self.apply(_initialise)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.embed(tokens) + self.position(places)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.norm(x)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
