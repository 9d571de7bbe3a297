"""PyTorch Lightning: training goes on while checkpoints are stored, and a second trainer goes on from the last one.

python examples/lightning_fit.py [FOLDER or s3://bucket/prefix]
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from s3dlio.frameworks.lightning import S3dlioCheckpointIO


class Model(LightningModule):
    """A linear regression."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 1)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """The loss of one batch."""
        loss: torch.Tensor = (self.layer(batch) - batch.sum(1, keepdim=True)).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, whose state is part of each checkpoint."""
        return torch.optim.Adam(self.parameters(), lr=0.05)


def train(where: str, epochs: int, ckpt_path: str | None = None) -> str:
    """Train up to ``epochs``, keeping the two best checkpoints and the last one; the path of the last."""
    keep = ModelCheckpoint(dirpath=where, monitor="loss", save_top_k=2, save_last=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[keep],
        plugins=[S3dlioCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.rand(256, 16, generator=torch.Generator().manual_seed(1))
    trainer.fit(Model(), DataLoader(data, batch_size=32), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    print(f"epoch {trainer.current_epoch}: loss {trainer.callback_metrics['loss']:.4f}, saved {keep.last_model_path}")
    return str(keep.last_model_path)


def main() -> None:
    """Three epochs, and three more from the last checkpoint of the first three."""
    where = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="s3dlio-lightning-")
    train(where, 6, ckpt_path=train(where, 3))


if __name__ == "__main__":
    main()
