"""FSDP2 training with checkpoints through torch.distributed.checkpoint, in the background, and a resume from them.

    torchrun --nproc-per-node 2 examples/torch_dcp.py file:///tmp/run     # or s3://bucket/run, az://account/container/run

Run it again, with as many ranks as you like: it goes on from the newest checkpoint.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from s3dlio import CheckpointStore
from s3dlio.frameworks.dcp import S3dlioStorageReader, S3dlioStorageWriter, shutdown

STEPS, EVERY = 6, 2


def main(uri: str) -> None:
    """Train ``STEPS`` steps beyond the newest checkpoint in ``uri``, saving ``EVERY`` second one."""
    dist.init_process_group("cpu:gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    saves = dist.new_group(backend="gloo")  # of its own: saves talk in the background, while training does
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 8))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def state(step: int) -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments, "step": step}

    first = 0
    if newest(uri) is not None:
        loaded = state(0)
        load(loaded, storage_reader=S3dlioStorageReader(uri))
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        first = loaded["step"]
        say(f"goes on from step {first}")

    saving: Any = None  # the future of the save in the background
    for step in range(first + 1, first + STEPS + 1):
        batch = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        say(f"step {step}: loss {loss.item():.4f}")
        if step % EVERY == 0:
            if saving is not None:
                saving.result()  # raises on every rank what failed on any; one save at a time, as DCP asks
            writer = S3dlioStorageWriter(uri, step=step, keep_last=2)
            # The state has been copied when this returns.
            saving = async_save(state(step), storage_writer=writer, process_group=saves)
    if saving is not None:
        saving.result()
    say(f"saved step {newest(uri)}")
    shutdown()
    dist.destroy_process_group()


def newest(uri: str) -> int | None:
    """Step of the newest checkpoint, as rank 0 sees it: a checkpoint of DCP is one of the store."""
    found: list[int | None] = [None]
    if dist.get_rank() == 0:
        with CheckpointStore(uri) as store:
            info = store.latest()
            found = [None if info is None else info.step]
    dist.broadcast_object_list(found)
    return found[0]


def say(text: str) -> None:
    """Print on rank 0."""
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
