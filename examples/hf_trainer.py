"""Hugging Face Trainer: each saved folder is stored in the background; a run without its folder resumes from the store.

python examples/hf_trainer.py [file:///FOLDER or s3://bucket/prefix]
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from s3dlio.frameworks.hf import S3dlioCallback


class Counting(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences that count up, each from a number of its own."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(16) + index) % 64
        return {"input_ids": ids, "labels": ids}


def train(uri: str, steps: int) -> None:
    """Train up to ``steps`` in a new folder, from the newest checkpoint in the store if there is one."""
    with tempfile.TemporaryDirectory() as folder:  # the machine's own disk, gone with the machine
        callback = S3dlioCallback(uri, keep_last=3)
        args = TrainingArguments(
            folder,
            max_steps=steps,
            save_steps=10,
            save_total_limit=1,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=64)
        trainer = Trainer(GPT2LMHeadModel(config), args, train_dataset=Counting(), callbacks=[callback])
        start = callback.restore(folder)
        result = trainer.train(resume_from_checkpoint=start)
        newest = callback.latest()
        callback.close()
    print(f"from {start or 'the beginning'} to step {result.global_step}; newest in the store: {newest and newest.id}")


def main() -> None:
    """Twenty steps, and twenty more in another folder."""
    uri = sys.argv[1] if len(sys.argv) > 1 else f"file://{tempfile.mkdtemp(prefix='s3dlio-trainer-')}"
    train(uri, 20)
    train(uri, 40)


if __name__ == "__main__":
    main()
