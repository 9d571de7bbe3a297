"""The real trainer on the fake store: ``fake_trainer.py MODE ...``; see the modes below."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from s3dlio.demo import trainer
from tests.demo.fake_store import LOOKS, FakeStore


def flip_a_bit(state: Any) -> None:
    import torch

    # Not the lowest bit: the update of a growing weight may round it away, and the run would end rightly equal.
    state["model"]["norm.bias"].view(torch.int32)[0] ^= 1 << 20


MODES: dict[str, dict[str, Any]] = {
    "instant": {"looks": 0},
    "spoiled": {"looks": LOOKS, "spoil": flip_a_bit},
}


if __name__ == "__main__":
    mode = MODES[sys.argv[1]]
    setattr(trainer, "open_store", lambda uri, keep: FakeStore(uri, keep, **mode))  # noqa: B010 - mypy
    raise SystemExit(trainer.main(sys.argv[2:]))
