"""A tiny model of transformers, made from a config, and trainers for it: deterministic, on the CPU, silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

tqdm.monitor_interval = 0  # else its first bar starts a thread that stays


def model() -> GPT2LMHeadModel:
    """With dropout, so that a resumed run must have the random state too."""
    set_seed(5)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=32, bos_token_id=0, eos_token_id=1, pad_token_id=1
        )
    )


class Words(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(8) * (index + 1)) % 32
        return {"input_ids": ids, "labels": ids}


def trainer(folder: Path, callbacks: list[Any], steps: int = 6, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "save_steps": 2,
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        **options,
    }
    args = TrainingArguments(str(folder), **settings)
    return Trainer(model(), args, train_dataset=Words(), callbacks=callbacks)


def weights(of: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.model.state_dict().items()}
