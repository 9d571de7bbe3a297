"""Several processes of JAX, each with devices of its own, that save one sharded checkpoint together and restore it.

    python examples/jax_processes.py [URI]                       # starts two processes on this machine
    python examples/jax_processes.py URI ADDRESS COUNT NUMBER    # one of COUNT, as a launcher would start it

Each process stores what its own devices hold, replicas once; any number of processes restores it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from typing import Any

PROCESSES, DEVICES = 2, 4
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={DEVICES}")


def train(uri: str, address: str, count: int, number: int) -> None:
    """Ten steps of a regression on all devices of all processes, then a restore onto another mesh."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.multihost_utils import process_allgather
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from s3dlio.frameworks.jax import Checkpointer

    jax.distributed.initialize(address, count, number)
    one = len(jax.devices())
    line = jax.make_mesh((one,), ("data",), axis_types=(AxisType.Auto,))
    square = jax.make_mesh((2, one // 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rows, columns = NamedSharding(line, PartitionSpec("data")), NamedSharding(square, PartitionSpec("b", "a"))
    whole = NamedSharding(line, PartitionSpec())

    @jax.jit
    def step(state: dict[str, Any]) -> dict[str, Any]:
        key, now = jax.random.split(state["key"])
        batch = jax.random.normal(now, (64, 512))
        gradient = jax.grad(lambda weight: jnp.mean((batch @ weight - 1.0) ** 2))(state["weight"])
        return {"weight": state["weight"] - 0.1 * gradient, "count": state["count"] + 1, "key": key}

    def create() -> dict[str, Any]:
        return {"weight": jnp.zeros((512, 64)), "count": jnp.zeros((), jnp.int32), "key": jax.random.key(0)}

    state = jax.jit(create, out_shardings={"weight": rows, "count": whole, "key": whole})()
    with Checkpointer(uri, keep_last=2) as checkpointer:
        for _ in range(10):
            state = step(state)
            if int(state["count"]) % 5 == 0:  # every process calls; its shards are copied when this returns
                checkpointer.save_async(int(state["count"]), state)
        checkpointer.wait_until_finished()
        placed = {"weight": columns, "count": whole, "key": whole}
        form = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, placed
        )
        restored = checkpointer.restore(target=form)
        both = [process_allgather(tree["weight"], tiled=True) for tree in (restored, state)]
        same = bool((both[0] == both[1]).all())
        print(
            f"process {number}: steps {checkpointer.all_steps()}, restored onto {dict(square.shape)}: "
            f"{'bit for bit' if same else 'it differs'}",
            flush=True,
        )
        assert same


def launch(uri: str) -> None:
    """Start the processes and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, __file__, uri, address, str(PROCESSES)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(PROCESSES)]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"the processes ended with {codes}")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        train(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif len(sys.argv) == 2:
        launch(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            launch(f"file://{folder}/run")
