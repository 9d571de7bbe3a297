"""The benchmark of torch DCP, small, as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf import dcp
from perf.harness import Options, show

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
