"""What importing costs: a worker process and ``import s3dlio`` load no framework, no arrays and no SDK."""

from __future__ import annotations

import json

import pytest

from tests.packaging.tree import ROOT, python

HEAVY = {"asyncio", "azure", "boto3", "botocore", "jax", "ml_dtypes", "multiprocessing", "numpy", "psutil"}
HEAVY |= {"keras", "lightning", "mpi4py", "tensorflow", "torch", "torch_checkpointing", "transformers"}


def loaded_by(statement: str) -> set[str]:
    """Every module that is loaded after ``statement`` in a fresh interpreter."""
    done = python("-c", f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("statement", ["import s3dlio.engine.worker", "import s3dlio"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    assert not HEAVY & loaded_by(statement)


def test_import_of_the_package_loads_nothing_of_it() -> None:
    assert {name for name in loaded_by("import s3dlio") if name.startswith("s3dlio")} == {"s3dlio"}


def test_worker_loads_nothing_outside_the_engine() -> None:
    ours = {name for name in loaded_by("import s3dlio.engine.worker") if name.split(".")[0] == "s3dlio"}
    assert {name for name in ours if not name.startswith("s3dlio.engine")} == {"s3dlio"}
