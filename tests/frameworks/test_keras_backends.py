"""The backends other than TensorFlow, each in a process of its own: it is chosen at the import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERAS = ("-W", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # Keras on NumPy 2.4
pytestmark = pytest.mark.slow


def run(backend: str, script: str, *arguments: str) -> str:
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", *KERAS, str(ROOT / script), *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the TensorFlow backend saved."""
    uri = f"file://{tmp_path_factory.mktemp('tensorflow')}"
    assert run("tensorflow", "tests/frameworks/keras_backend.py", "make", uri) == "tensorflow is right\n"
    return uri


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_resumes_its_own_and_anothers_checkpoints(made: str, tmp_path: Path, backend: str) -> None:
    printed = run(backend, "tests/frameworks/keras_backend.py", "take", f"file://{tmp_path}", made)
    assert printed == f"{backend} is right\n"
