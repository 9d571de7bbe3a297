"""The examples, each run as it stands, in processes of their own that are bounded in time and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from s3dlio import CheckpointStore
from tests.frameworks import snippets
from tests.servers.s3_server import Bucket

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "examples" / "README.md"
PATIENCE = 100.0
TORCHRUN = [
    *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
    "--nproc-per-node=2",
]
MPIEXEC = [str(Path(sys.executable).with_name("mpiexec")), "-n", "3", sys.executable]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE + 20)]


def run(command: list[str], where: Path, more: Mapping[str, str] | None = None) -> str:
    """What an example prints; it ends well and in time, or it and all it started is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(more or {})}
    environment.pop("XLA_FLAGS", None)  # those of the tests; the examples have their own
    with (where / "said").open("w+") as said:
        process = subprocess.Popen(
            command,
            cwd=where,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        text = said.read()
    assert status == 0, text[-4000:]
    return text


def example(name: str) -> str:
    return str(ROOT / "examples" / f"{name}.py")


def test_hf_trainer(tmp_path: Path) -> None:
    said = run([sys.executable, example("hf_trainer"), f"file://{tmp_path}/store"], tmp_path)
    assert "from the beginning to step 20; newest in the store: ckpt-20-" in said
    assert "checkpoint-20 to step 40; newest in the store: ckpt-40-" in said


def test_lightning_fit(tmp_path: Path) -> None:
    said = run([sys.executable, example("lightning_fit"), f"{tmp_path}/run"], tmp_path)
    assert "epoch 3: loss" in said
    assert "epoch 6: loss" in said


def test_keras_fit(tmp_path: Path) -> None:
    lines = run([sys.executable, example("keras_fit")], tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["trained epochs 0 to 3", "trained epochs 3 to 5"]
    assert [line.split(",")[0] for line in lines[2:]] == ["step 64", "step 80"]


def test_jax_sharded(tmp_path: Path) -> None:
    said = run([sys.executable, "-W", "error", example("jax_sharded")], tmp_path)
    assert "steps [20, 30] are committed" in said
    assert "step 30 restored from 8 devices onto 2: bit for bit" in said


def test_jax_processes(tmp_path: Path) -> None:
    said = run([sys.executable, example("jax_processes")], tmp_path)
    for number in range(2):
        assert f"process {number}: steps [5, 10], restored onto {{'a': 2, 'b': 4}}: bit for bit" in said


def test_torch_dcp(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    said = [run([*TORCHRUN, example("torch_dcp"), uri], tmp_path) for _ in range(2)]
    assert "saved step 6" in said[0]
    assert "goes on from step 6" in said[1]
    assert "saved step 12" in said[1]
    with CheckpointStore(uri) as store:
        assert [info.step for info in store.list()] == [10, 12]
        store.verify()


def test_torch_ddp(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    said = [run([*TORCHRUN, example("torch_ddp"), uri], tmp_path) for _ in range(2)]
    assert "saved up to step 6" in said[0]
    assert "goes on from step 6" in said[1]
    whole = run([*TORCHRUN, example("torch_ddp"), f"{uri}-whole", "12"], tmp_path)
    losses = [line for text in said for line in text.splitlines() if ": loss" in line]
    assert losses == [line for line in whole.splitlines() if ": loss" in line]
    assert len(losses) == 12
    with CheckpointStore(uri) as store:
        infos = store.list()
        assert [(info.step, info.world_size) for info in infos] == [(10, 2), (12, 2)]
        weights = 4 * (64 * 256 + 256 + 256 + 1)
        assert 3 * weights < infos[-1].total_size < 4 * weights  # once, though both ranks have them
        store.verify()


def test_mpi_bytes(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    said = [run([*MPIEXEC, example("mpi_bytes"), uri], tmp_path) for _ in range(2)]
    assert "steps 1 to 300: heat 60.000000, newest 300" in said[0]
    assert "steps 301 to 600: heat 60.000000, newest 600" in said[1]
    with CheckpointStore(uri) as store:
        assert [(info.step, info.world_size) for info in store.list()] == [(100 * n, 3) for n in range(1, 7)]
        store.verify()


def test_every_script_is_named_and_tested() -> None:
    text, tests = DOCUMENT.read_text(), Path(__file__).read_text()
    scripts = sorted(path.name for path in DOCUMENT.parent.glob("*.py"))
    assert [name for name in scripts if f"({name})" not in text] == []
    assert [name for name in scripts if f"def test_{name.removesuffix('.py')}(" not in tests] == []


@pytest.mark.parametrize("title", sorted(snippets.sections(DOCUMENT)))
def test_what_the_document_says_runs(tmp_path: Path, s3_bucket: Bucket, title: str) -> None:
    """On a real server, which is found by the environment as a user's would be."""
    server = s3_bucket.server
    found = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
    }
    command = [sys.executable, "-m", "tests.frameworks.snippets", str(DOCUMENT), title, s3_bucket.uri]
    assert run(command, tmp_path, found).endswith("all blocks ran\n")
    assert s3_bucket.keys()
