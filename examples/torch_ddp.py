"""DDP training whose ranks save one checkpoint together, in the background, and resume from it.

    torchrun --nproc-per-node 2 examples/torch_ddp.py file:///tmp/run     # or s3://bucket/run, az://account/container/run

Run it again, with as many ranks: it goes on, bit for bit as if it had never stopped. Another number of ranks has no
random numbers of its own in the checkpoint, and gets an error that says so.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from s3dlio import CheckpointStore

EVERY = 2


def main(uri: str, steps: int = 6) -> None:
    """Train so many steps beyond the newest checkpoint in ``uri``, saving ``EVERY`` second one."""
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())  # dropout differs on each rank, and DDP makes the weights equal
    layers = [torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(256, 1)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def state() -> dict[str, Any]:
        # The same on every rank, and stored once, but for the state of each rank's random numbers.
        return {"model": model.module.state_dict(), "optim": optimizer.state_dict(), "rng": torch.get_rng_state()}

    with CheckpointStore(uri, keep_last=2) as store:
        found = store.latest()
        first = 0
        if found is not None:
            loaded = store.load(found.step)
            model.module.load_state_dict(loaded["model"])
            optimizer.load_state_dict(loaded["optim"])
            torch.set_rng_state(loaded["rng"])
            first = found.step
            say(f"goes on from step {first}")
        for step in range(first + 1, first + steps + 1):
            batch = torch.randn(32, 64, generator=torch.Generator().manual_seed(1000 * step + dist.get_rank()))
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            say(f"step {step}: loss {loss.item():.6f}")
            if step % EVERY == 0:
                # Every rank calls; each has copied its state when this returns, and the rest is done while it trains.
                store.save_async(step, state(), user_meta={"loss": loss.item()})
        # Leaving the store waits for what is in flight, and raises on every rank what failed on any.
    say(f"saved up to step {first + steps}")
    dist.destroy_process_group()


def say(text: str) -> None:
    """Print on rank 0."""
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
