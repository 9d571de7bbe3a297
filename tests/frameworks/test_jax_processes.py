"""Several processes of one JAX job: each restores what its own devices hold, and reads no more."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from s3dlio import CheckpointStore
from s3dlio.frameworks.jax import restore
from tests.store.live import MIB, SMALL

ROOT = Path(__file__).parents[2]
KEYS = 32  # bytes of the keys, which every process reads
PROGRAM = """
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from s3dlio import CheckpointStore
    from s3dlio.engine.errors import ConfigError, UnsupportedError
    from s3dlio.frameworks.jax import addressable_pieces, restore
    from s3dlio.reader import ShardReader

    address, rank, uri = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    asked = []
    inner = ShardReader.pieces

    def pieces(self, record, index, wanted):
        asked.extend((each.start, each.stop) for each in wanted)
        inner(self, record, index, wanted)

    ShardReader.pieces = pieces
    def read():
        total = end = 0
        for start, stop in sorted(asked):
            total, end = total + max(0, stop - max(start, end)), max(end, stop)
        return total

    whole = np.arange(8 << 18, dtype=np.float32).reshape(8, -1)
    numbers = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(7), 4)))
    specs = {"rows": PartitionSpec("a", "b"), "columns": PartitionSpec(None, "a"), "all": PartitionSpec()}
    told = {}
    with CheckpointStore(uri, memory=64 << 20, workers=1, chunk_size=1 << 20) as store:
        for name, spec in specs.items():
            asked.clear()
            sharding = NamedSharding(mesh, spec)
            keys = jax.ShapeDtypeStruct((4,), jax.random.key(0).dtype, sharding=NamedSharding(mesh, PartitionSpec("b")))
            target = {"w": jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding), "n": 1, "keys": keys}
            made = restore(store, target)
            array = made["w"]
            assert made["keys"].sharding == keys.sharding
            for shard in jax.random.key_data(made["keys"]).addressable_shards:
                assert (np.asarray(shard.data) == numbers[shard.index]).all()
            assert array.shape == whole.shape and array.sharding == sharding
            assert not array.is_fully_addressable
            for shard in array.addressable_shards:
                assert (np.asarray(shard.data) == whole[shard.index]).all()
            pieces_here = addressable_pieces(array)
            told[name] = [read(), [[piece.box.offsets, piece.box.sizes] for piece in pieces_here]]
            try:
                store.save(2, {"w": array}, coordinator=None)
            except UnsupportedError as error:
                assert "w: some of its shards lie in other processes" in str(error), error
            else:
                assert array.is_fully_replicated  # then a process has all of it
    print("TOLD" + json.dumps(told))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(program: str, *arguments: str) -> list[Any]:
    """What two processes of ``program`` print after TOLD."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), address, str(rank), *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], ends
    return [json.loads(out.split("TOLD")[1]) for out, _ in ends]


@pytest.mark.slow
def test_each_process_reads_what_its_devices_hold(tmp_path: Path) -> None:
    whole = np.arange(8 << 18, dtype=np.float32).reshape(8, -1)
    with CheckpointStore(f"file://{tmp_path}/run", **SMALL) as store:
        store.save(1, {"w": jnp.asarray(whole), "n": 1, "keys": jax.random.split(jax.random.key(7), 4)})
    found = run(PROGRAM, f"file://{tmp_path}/run")
    assert [told["rows"][0] for told in found] == [4 * MIB + KEYS, 4 * MIB + KEYS]
    assert [told["all"][0] for told in found] == [8 * MIB + KEYS, 8 * MIB + KEYS]
    assert all(told["columns"][0] < 8 * MIB for told in found)
    for name, count in (("rows", 4), ("columns", 2), ("all", 1)):
        pieces = [piece for told in found for piece in told[name][1]]
        assert len(pieces) == count
        seen = np.zeros(whole.shape, np.uint8)
        for offsets, sizes in pieces:
            seen[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] += 1
        assert (seen == 1).all()


SAVING = """
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from s3dlio.frameworks.jax import Checkpointer

    address, rank, uri = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def placed(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    places = {
        "rows": placed("a", "b"), "columns": placed(None, ("b", "a")), "twice": placed("b"), "all": placed(),
        "half": placed("a"), "key": placed(), "keys": placed("a"),
    }

    def create():
        whole = jnp.arange(8 << 17, dtype=jnp.float32).reshape(8, -1)
        return {
            "rows": whole, "columns": whole + 1, "twice": whole + 2, "all": whole + 3,
            "half": (whole / 8).astype(jnp.bfloat16), "key": jax.random.key(5),
            "keys": jax.random.split(jax.random.key(7), 4),
        }

    state = jax.jit(create, out_shardings=places)()
    step = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    arrays = {name: array for name, array in state.items() if "key" not in name}
    with Checkpointer(uri, memory=64 << 20, workers=1, chunk_size=1 << 20) as checkpointer:
        handle = checkpointer.save_async(3, {**state, "n": 1})
        jax.block_until_ready(step(arrays))  # given away at once
        info = handle.result(60)
    print("TOLD" + json.dumps([info.world_size, info.total_size]))
"""


@pytest.mark.slow
def test_processes_save_one_checkpoint_together(tmp_path: Path) -> None:
    """Each what its devices hold, replicas once; one process with other devices takes it all."""
    uri = f"file://{tmp_path}/run"
    whole = np.arange(8 << 17, dtype=np.float32).reshape(8, -1)
    for world, size in run(SAVING, uri):
        assert world == 2
        assert 4 * whole.nbytes + whole.nbytes // 2 < size < 4.5 * whole.nbytes + MIB // 16
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("rank-*.bin")}
    assert len(sizes) == 2
    assert min(sizes.values()) > whole.nbytes
    keys = jax.random.split(jax.random.key(7), 4)
    rows = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
    expected = {name: whole + add for add, name in enumerate(("rows", "columns", "twice", "all"))}
    expected["half"] = (whole / 8).astype(jnp.bfloat16)
    target = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows) for name, array in expected.items()}
    with CheckpointStore(uri, **SMALL) as store:
        found = store.load()
        for name, array in expected.items():
            assert type(found[name]) is np.ndarray
            assert found[name].tobytes() == array.tobytes(), name
        found = restore(store, {**target, "key": jax.random.key(0), "keys": keys, "n": 0})
        for name, array in expected.items():
            assert found[name].sharding == rows
            assert np.asarray(found[name]).tobytes() == array.tobytes(), name
        assert (found["key"] == jax.random.key(5)).all()
        assert (found["keys"] == keys).all()
        store.verify()
