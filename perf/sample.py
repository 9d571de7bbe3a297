"""A state that was really trained: the demo's transformer after some tens of steps, as bf16 weights and fp32 moments.

Owns the bytes that codecs are judged by: what they save depends on the values, and random ones flatter or punish.
"""

from __future__ import annotations

import torch

from s3dlio.demo.model import ByteTransformer
from s3dlio.demo.options import SIZES
from s3dlio.demo.text import load_corpus
from s3dlio.demo.training import Training, fix_randomness
from s3dlio.engine.grouping import Runs

STEPS = 60


def trained(steps: int = STEPS) -> tuple[bytes, Runs]:
    """Moments, then weights, as a shard holds them (falling element width), and the runs of their widths."""
    fix_randomness(0, torch.get_num_threads())
    training = Training(SIZES["small"], load_corpus(), steps=steps)
    for _ in range(steps):
        training.advance()
    model: ByteTransformer = training.model
    parameters = list(model.parameters())
    moments = [training.optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
    wide = b"".join(map(_bytes, moments))
    narrow = b"".join(_bytes(p.detach().bfloat16()) for p in parameters)
    return wide + narrow, ((0, len(wide), 4), (len(wide), len(wide) + len(narrow), 2))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
