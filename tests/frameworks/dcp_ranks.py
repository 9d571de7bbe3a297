"""Ranks of their own: a script in several processes on gloo, for the tests of torch DCP.

A rank that does not end in time is killed with all others, and so are they at the end of the test. They meet through a
file, so that no port can be taken by somebody else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 100.0

_PROLOGUE = """\
import json, os, signal, sys
from datetime import timedelta
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from s3dlio.frameworks.dcp import *
from s3dlio.frameworks.dcp import writer as writer_module
from tests.frameworks import dcp_states
from tests.frameworks.dcp_states import MIB, SMALL, bits, hollow, odd, same
from tests.frameworks.dcp_sharded import *

ARGS = json.loads(sys.argv[1])
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
URI = ARGS["uri"]
OPTIONS = {**SMALL, **({"options": ARGS["options"]} if "options" in ARGS else {})}

def writer(where="", **options):
    return S3dlioStorageWriter(URI + where, **{**OPTIONS, **options})

def reader(where="", **options):
    return S3dlioStorageReader(URI + where, **{**OPTIONS, **options})

def committed(where=""):
    from s3dlio import CheckpointStore
    with CheckpointStore(URI + where, **OPTIONS) as store:
        return len(store.list())

def main():
    dist.init_process_group(
        "cpu:gloo", init_method=ARGS["meet"], rank=RANK, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (WORLD,))
"""

_EPILOGUE = """
    shutdown()
    dist.destroy_process_group()
    print("done", flush=True)

if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: its status, what it said, what went wrong."""

    status: int
    output: str
    errors: str


def run(where: Path, world: int, body: str, *, uri: str, killed: Sequence[int] = (), **args: object) -> list[Outcome]:
    """Run ``body`` on every rank of a world; each must end well, but those that are ``killed``."""
    name = uuid.uuid4().hex
    script = where / f"{name}.py"
    script.write_text(_PROLOGUE + textwrap.indent(textwrap.dedent(body), "    ") + _EPILOGUE)
    told = json.dumps({"uri": uri, "meet": f"file://{where}/{name}.meet", **args})
    processes = [_start([str(script), told], where / name, rank, world) for rank in range(world)]
    deadline = time.monotonic() + PATIENCE
    try:
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outcomes = [
        Outcome(
            process.returncode,
            (where / f"{name}.{rank}.out").read_text(errors="replace"),
            (where / f"{name}.{rank}.err").read_text(errors="replace"),
        )
        for rank, process in enumerate(processes)
    ]
    bad = [
        f"rank {rank} ended with {outcome.status}:\n{outcome.output[-1000:]}\n{outcome.errors[-3000:]}"
        for rank, outcome in enumerate(outcomes)
        if rank not in killed and (outcome.status or not outcome.output.endswith("done\n"))
    ]
    assert not bad, "\n".join(bad)
    return outcomes


def _start(arguments: Sequence[str], where: Path, rank: int, world: int) -> subprocess.Popen[bytes]:
    with where.with_suffix(f".{rank}.out").open("wb") as out, where.with_suffix(f".{rank}.err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=_environment(rank, world),
            start_new_session=True,
        )


def _environment(rank: int, world: int) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {
        **os.environ,
        **{name: str(value) for name, value in ranks.items()},
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
