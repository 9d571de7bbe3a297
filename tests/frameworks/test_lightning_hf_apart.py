"""Frameworks in processes of their own: ranks of torchrun, the other package of Lightning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3dlio import CheckpointStore

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(command: list[str], where: Path) -> str:
    """What a command prints; it must end well, and its ranks end with it."""
    done = subprocess.run(
        command,
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def ranks(script: str, where: Path, *args: str) -> str:
    """Two gloo ranks of a script."""
    path = where / "script.py"
    path.write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return run([*launch, str(path), *args], where)


# It ends without the interpreter's end, in which torch 2.13's gloo threads were once seen to abort (std::terminate).
HF = """
import os, sys
from pathlib import Path
import torch
from s3dlio.engine.errors import S3dlioError
from s3dlio.frameworks import folders
from s3dlio.frameworks.hf import S3dlioCallback
from tests.frameworks.trainers import trainer, weights
from tests.store.live import SMALL

out, store = Path(sys.argv[1]), sys.argv[2]
callback = S3dlioCallback(store, **SMALL)
first = trainer(out, [callback], steps=4, save_total_limit=1, lr_scheduler_type="constant")
first.train()
rank = torch.distributed.get_rank()
if rank == 0:
    names = callback.latest().user_meta["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(names), names
with first.args.main_process_first():
    inode = (out / "checkpoint-4").stat().st_ino
    start = callback.restore(str(out))
    assert (out / "checkpoint-4").stat().st_ino == inode
second = trainer(out, [callback], save_total_limit=1, lr_scheduler_type="constant")
second.train(resume_from_checkpoint=start)
assert second.state.global_step == 6

# A rank whose files rank 0 does not see: the save fails on both.
plain = folders.names_in
folders.names_in = lambda folder: [*plain(folder), "hidden.bin"] if rank else plain(folder)
try:
    trainer(out, [callback], steps=2).train()
except S3dlioError as error:
    print(f"rank {rank}: {error}")
callback.close()
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""


def test_every_ranks_files_are_stored(tmp_path: Path) -> None:
    said = ranks(HF, tmp_path, str(tmp_path / "out"), f"file://{tmp_path}/store")
    for rank in (0, 1):
        assert f"rank {rank}: {tmp_path}/out/checkpoint-2: rank 1 has hidden.bin, which rank 0 does not see" in said


LIGHTNING = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from s3dlio.frameworks.lightning import S3dlioCheckpointIO
from tests.frameworks.lightnings import Model
from tests.store.live import SMALL

where = sys.argv[1]
def fit(epochs, path=None):
    keep = ModelCheckpoint(dirpath=where, monitor="loss", save_top_k=1, save_last=True)
    runner = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=epochs, callbacks=[keep], logger=False,
                     plugins=[S3dlioCheckpointIO(**SMALL)], enable_progress_bar=False, enable_model_summary=False,
                     use_distributed_sampler=False)
    runner.fit(Model(), ckpt_path=path)
    assert runner.current_epoch == epochs
    return runner, keep.last_model_path

runner, last = fit(1)
runner, last = fit(2, last)
print(f"rank {runner.global_rank}: {last}")
torch.distributed.destroy_process_group()
"""


def test_rank_zero_saves_and_every_rank_loads(tmp_path: Path) -> None:
    said = ranks(LIGHTNING, tmp_path, str(tmp_path / "run"))
    for rank in (0, 1):
        assert f"rank {rank}: {tmp_path}/run/last.ckpt" in said
    assert len(list((tmp_path / "run/last.ckpt/shards").rglob("*.bin"))) == 1


OTHER = """
import sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning
from pytorch_lightning.demos.boring_classes import BoringModel
from s3dlio.frameworks.lightning import S3dlioCheckpointIO

io = S3dlioCheckpointIO()
runner = pytorch_lightning.Trainer(
    accelerator="cpu", max_steps=2, plugins=[io], logger=False, default_root_dir=sys.argv[1],
    enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
)
runner.fit(BoringModel())
assert "lightning" not in sys.modules
print(io.load_checkpoint(runner.checkpoint_callback.best_model_path)["global_step"])
io.teardown()
"""


def test_the_package_pytorch_lightning_takes_the_plugin(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", OTHER, str(tmp_path)], tmp_path).split()[-1] == "2"


UNFINISHED = """
import sys, torch
from s3dlio.frameworks.lightning import S3dlioCheckpointIO

S3dlioCheckpointIO(memory=64 << 20).save_checkpoint({"global_step": 7, "w": torch.ones(1 << 20)}, sys.argv[1])
"""


def test_a_save_is_committed_though_the_process_ends_at_once(tmp_path: Path) -> None:
    run([sys.executable, "-c", UNFINISHED, str(tmp_path / "a.ckpt")], tmp_path)
    with CheckpointStore(f"file://{tmp_path}/a.ckpt") as store:
        assert store.load()["w"].sum() == 1 << 20
