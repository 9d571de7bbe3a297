"""A small Lightning run for the tests: deterministic, on the CPU, silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

WARNINGS = (
    "ignore:.*does not have many workers",
    "ignore:.*Checkpoint directory .* exists and is not empty",
    "ignore:.*is smaller than the logging interval",
    r"ignore:.*isinstance\(treespec, LeafSpec\)",
)
"""What Lightning says of every small run, and torch of Lightning."""


class Model(LightningModule):
    """Two layers, Adam and a learning rate that falls by milestones, whose state holds a ``Counter``."""

    def __init__(self, **hparams: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(7)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1))

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss: torch.Tensor = self.layers(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), lr=0.01)
        return [adam], [torch.optim.lr_scheduler.MultiStepLR(adam, [2, 3])]

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(3)
        return DataLoader(torch.rand(8, 8, generator=generator), batch_size=4)  # type: ignore[arg-type]


def trainer(root: Path, plugin: Any, callbacks: Any, epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        plugins=[plugin, LightningEnvironment()],  # else it looks for others, and initialises MPI on the way
        callbacks=callbacks,
        default_root_dir=str(root),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        **options,
    )


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
