"""Without their framework, the modules say which extra installs it."""

from __future__ import annotations

import importlib
import sys

import pytest

from s3dlio import DependencyError


@pytest.mark.parametrize(
    ("module", "framework"), [("keras_state", "keras"), ("keras", "keras"), ("tensorflow", "tensorflow")]
)
def test_a_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch, module: str, framework: str) -> None:
    for name in ("keras", "keras_state", "tensorflow"):
        monkeypatch.delitem(sys.modules, f"s3dlio.frameworks.{name}", raising=False)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(DependencyError, match=rf"needs {framework}: pip install 's3dlio\[{framework}\]'"):
        importlib.import_module(f"s3dlio.frameworks.{module}")
