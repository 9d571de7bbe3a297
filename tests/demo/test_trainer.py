from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s3dlio.demo import trainer
from s3dlio.demo.trainer import blocking_save
from s3dlio.engine.errors import DependencyError


def test_a_blocking_save_is_whole_and_replaces_the_last(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "blocking.pt"
    assert blocking_save({"a": torch.arange(3)}, path) > 0
    assert blocking_save({"a": torch.arange(4)}, path) > 0
    assert torch.equal(torch.load(path)["a"], torch.arange(4))
    assert [entry.name for entry in tmp_path.iterdir()] == ["blocking.pt"]


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3dlio.demo.training", None)
    with pytest.raises(DependencyError, match=r"pip install 's3dlio\[torch\]'"):
        trainer.main(["--steps", "1"])


def test_wrong_usage_leaves_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        trainer.main(["--size", "huge"])
    assert caught.value.code == 2
    assert "invalid choice: 'huge'" in capsys.readouterr().err
