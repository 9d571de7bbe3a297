"""The benchmark of torch DCP, small, and the example, run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf import dcp
from perf.harness import Options, show
from s3dlio import CheckpointStore

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_benchmark_measures_every_case(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = dcp.run(Options(8 << 20, 1, tmp_path, 2, peers=True))
    assert not report.notes, report.notes
    save, load, stall, memory = report.tables
    assert [row[0] for row in save.rows] == ["torch save", "s3dlio save"] or len(save.rows) == 2
    assert len(load.rows) == 2
    assert {row[0] for row in stall.rows} == {row[0] for row in memory.rows}
    assert len(stall.rows) == 4
    assert all(isinstance(row[1], float) and row[1] > 0 for row in (*save.rows, *load.rows, *stall.rows))
    assert "save until durable" in show(report)
    assert "round 1 of 1" in capfd.readouterr().err


@pytest.mark.parametrize("ranks", [2])
def test_the_example_trains_and_goes_on(tmp_path: Path, ranks: int) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *("--local-addr=127.0.0.1", str(ROOT / "examples" / "torch_dcp.py"), f"file://{tmp_path}/run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100).stdout
        for _ in range(2)
    ]
    assert "saved step 6" in said[0]
    assert "goes on from step 6" in said[1]
    assert "saved step 12" in said[1]
    with CheckpointStore(f"file://{tmp_path}/run") as store:
        assert [info.step for info in store.list()] == [10, 12]
        store.verify()
