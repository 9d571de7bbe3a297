"""One rank of the benchmark of torch DCP: holds its part of a state and does what it is told, line by line.

Each command is a JSON object on its input, each answer one on its output: numbers it measured, or what went wrong.
``dcp`` starts the ranks and tells all of them the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save, save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from . import limits, meter, state
from .savers import roomy

_KINDS = {"model": torch.bfloat16, "exp_avg": torch.float32, "exp_avg_sq": torch.float32}
_MATERIAL = 4 << 20


def part(nbytes: int, mesh: DeviceMesh) -> dict[str, Any]:
    """This rank's shards (by rows) of a state of about ``nbytes``, and a few scalars."""
    material = torch.randn(_MATERIAL, generator=torch.Generator().manual_seed(0)) * 0.02
    made: dict[str, Any] = {"step": 1000}
    for kind, dtype in _KINDS.items():
        values = material.to(dtype)
        made[kind] = {
            name: _shard(torch.Size(shape), values, 7919 * number, mesh)
            for number, (name, shape) in enumerate(state.shapes(nbytes).items())
        }
    return made


def _shard(shape: torch.Size, values: torch.Tensor, turn: int, mesh: DeviceMesh) -> DTensor:
    chunks = torch.arange(shape[0]).chunk(mesh.size())
    mine = chunks[mesh.get_rank()] if mesh.get_rank() < len(chunks) else torch.empty(0)
    local = torch.empty((len(mine), *shape[1:]), dtype=values.dtype)
    before = int(mine[0]) * shape[1:].numel() if len(mine) else 0
    flat, filled, start = local.view(-1), 0, (turn + before) % len(values)  # the same elements in a world of any size
    while filled < len(flat):
        piece = values[start : start + len(flat) - filled]
        flat[filled : filled + len(piece)].copy_(piece)
        filled, start = filled + len(piece), 0
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def local_bytes(tree: Any) -> int:
    """Bytes of this rank's shards."""
    return sum(tensor.to_local().nbytes for kind in _KINDS for tensor in tree[kind].values())


class Rank:
    """The commands. ``folder`` holds a folder for each saver (``who``) and in it one for each step."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self._folder = folder
        self._mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self._saves = dist.new_group(backend="gloo")  # of their own: whatever else ranks say meanwhile
        self._tree = part(nbytes, self._mesh)
        self._bytes = local_bytes(self._tree)
        self._writers: dict[str, Any] = {}
        self._pending: Any = None
        self._target: Any = None

    def save(self, who: str, step: int) -> dict[str, float]:
        """Save until durable."""
        writer = self._writer(who, step)
        seconds = _timed(lambda: save(self._tree, checkpoint_id=self._place(who, step), storage_writer=writer))
        if who.startswith("torch"):  # it syncs its files, not the folder that names them
            seconds += _timed(lambda: limits.fsync(self._place(who, step)))
        return {"seconds": seconds, "bytes": self._bytes}

    def begin(self, who: str, step: int) -> dict[str, float]:
        """Start a save in the background; how long the training thread is held."""
        kind = AsyncCheckpointerType.PROCESS if "process" in who else AsyncCheckpointerType.THREAD
        writer = self._writer(who, step)

        def start() -> None:
            self._pending = async_save(
                self._tree,
                checkpoint_id=self._place(who, step),
                storage_writer=writer,
                async_checkpointer_type=kind,
                process_group=self._saves,
            )

        return {"seconds": _timed(start), "bytes": self._bytes}

    def end(self) -> dict[str, float]:
        """Wait for it."""
        pending, self._pending = self._pending, None
        pending.result()
        return {}

    def peak(self, who: str, step: int) -> dict[str, float]:
        """Most memory that a background save takes beyond what this rank held before its saver was opened."""
        meter.settle()
        before = meter.memory().total
        with meter.Peak() as peak:
            self.begin(who, step)
            self.end()
        return {"bytes": peak.peak.total - before, "memory": roomy(self._bytes) if who.startswith("s3dlio") else 0}

    def load(self, who: str, step: int) -> dict[str, float]:
        """Load into tensors that are there."""
        if self._target is None:
            self._target = {
                kind: {name: torch.zeros_like(tensor) for name, tensor in self._tree[kind].items()} for kind in _KINDS
            } | {"step": 0}
        reader = self._reader(who, step)
        return {"seconds": _timed(lambda: load(self._target, storage_reader=reader)), "bytes": self._bytes}

    def check(self) -> dict[str, float]:
        """Whether what was loaded is the state."""
        for kind in _KINDS:
            for name, tensor in self._tree[kind].items():
                if not torch.equal(self._target[kind][name].to_local(), tensor.to_local()):
                    raise RuntimeError(f"{kind} {name} is not what was saved")
        return {}

    def _place(self, who: str, step: int) -> Path:
        return self._folder / who.replace(" ", "-") / str(step)

    def _writer(self, who: str, step: int) -> Any:
        if who.startswith("torch"):
            return FileSystemWriter(self._place(who, step), sync_files=True, thread_count=2)
        from s3dlio.frameworks.dcp import S3dlioStorageWriter

        if who not in self._writers:
            staging = "shared" if "process" in who else "arena"
            uri = f"file://{self._folder}"
            self._writers[who] = S3dlioStorageWriter(uri, memory=roomy(self._bytes), staging=staging)
        return self._writers[who]

    def _reader(self, who: str, step: int) -> Any:
        if who.startswith("torch"):
            return FileSystemReader(self._place(who, step))
        from s3dlio.frameworks.dcp import S3dlioStorageReader

        return S3dlioStorageReader(f"file://{self._place(who, step)}", memory=roomy(self._bytes))


def _timed(work: Callable[[], object]) -> float:
    """Seconds of ``work``, which all ranks begin together."""
    dist.barrier()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(meet: str, folder: str, nbytes: int) -> None:
    """Serve until the input ends."""
    dist.init_process_group(
        "cpu:gloo", init_method=meet, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    rank = Rank(Path(folder), nbytes)
    _answer({})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            _answer(getattr(rank, command.pop("do"))(**command))
        except (Exception, CheckpointException) as error:  # noqa: BLE001 - told to the benchmark
            _answer({"error": f"{type(error).__name__}: {error}"[-2000:]})
    os._exit(0)  # the background process of DCP ends with this one; nothing is in flight


def _answer(value: dict[str, Any]) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
