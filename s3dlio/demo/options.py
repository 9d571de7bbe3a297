"""What may be chosen about a demo run.

Owns the choices, their defaults and the named model sizes; holds no behaviour. ``story`` and the command line offer
them, ``model`` builds from a size.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_FOLDER = "s3dlio-demo"


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of the transformer and of one training step."""

    width: int
    layers: int
    heads: int
    context: int
    batch: int
    dropout: float = 0.1


SIZES = {
    "tiny": Size(width=64, layers=2, heads=2, context=32, batch=4),
    # 4.8 million parameters, a state of 58 MB; 0.2 s a step on one core at 60 GFLOP/s.
    "small": Size(width=256, layers=6, heads=4, context=128, batch=4),
    # 25 million parameters, a state of 300 MB; for machines with time to spare.
    "medium": Size(width=512, layers=8, heads=8, context=128, batch=4),
}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a user may choose. ``uri``: where to save (default below the working folder); ``keep``: checkpoints kept, 0
    keeps all."""

    uri: str | None = None
    size: str = "small"
    steps: int = 60
    save_every: int = 4
    keep: int = 3
