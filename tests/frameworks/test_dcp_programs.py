"""The benchmark of torch DCP, small, as it stands; without the stock savers, which double its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf import dcp
from perf.harness import Options


@pytest.mark.slow
@pytest.mark.timeout(300)  # nine ranks, of which each takes seconds to import torch
def test_the_benchmark_measures_every_case(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = dcp.run(Options(8 << 20, 1, tmp_path, 2, peers=False))
    assert not report.notes, report.notes
    save, stall, load, memory = report.tables
    assert len(save.rows) == len(load.rows) == 1
    assert {row[0] for row in stall.rows} == {row[0] for row in memory.rows}
    assert len(stall.rows) == 2
    assert all(isinstance(row[1], float) and row[1] > 0 for row in (*save.rows, *load.rows, *stall.rows))
    assert "round 1 of 1" in capfd.readouterr().err
