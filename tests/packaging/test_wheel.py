"""What an installation gets is what the tree has: nothing is missing, nothing else comes along."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.tree import ROOT, python, shipped

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of a copy of the tree in ``tree/`` and an sdist with the wheel of it in ``sdist/``."""
    base = tmp_path_factory.mktemp("dist")
    copy = base / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "engine", "s3dlio", "perf", "tests"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    for out, arguments in (("tree", ["--wheel"]), ("sdist", [])):  # without arguments: an sdist, and a wheel from it
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(base / out), *arguments, str(copy)]
        built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert built.returncode == 0, built.stdout + built.stderr
    return base


@pytest.fixture(scope="module")
def wheels(dist: Path) -> list[Path]:
    return [next((dist / origin).glob("*.whl")) for origin in ("tree", "sdist")]


def test_wheels_hold_the_tree_byte_for_byte(wheels: list[Path]) -> None:
    tree = {name: path.read_bytes() for name, path in shipped().items()}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        assert sorted(held) == sorted(tree), wheel
        assert held == tree, wheel


def test_both_packages_are_marked_as_typed() -> None:
    assert {"s3dlio/py.typed", "s3dlio/engine/py.typed"} <= set(shipped())


def test_wheels_carry_licence_extras_and_script(wheels: list[Path]) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            info = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
            metadata = archive.read(info["METADATA"]).decode()
            assert archive.read(info["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
            assert "s3dlio = s3dlio.cli:main" in archive.read(info["entry_points.txt"]).decode()
        for line in ("Name: s3dlio", "License-Expression: Apache-2.0", "Requires-Python: >=3.10"):
            assert line in metadata.splitlines()
        for extra in ("checkpoint", "torch", "jax", "tensorflow", "azure", "keras", "lightning", "transformers", "mpi"):
            assert f"Provides-Extra: {extra}" in metadata.splitlines()


def test_sdist_holds_each_file_once(dist: Path) -> None:
    with tarfile.open(next((dist / "sdist").glob("*.tar.gz"))) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    assert not [name for name in names if name.startswith(("s3dlio/engine", "perf"))]
    assert {path.relative_to(ROOT).as_posix() for path in shipped().values()} <= set(names)


def test_wheel_imports_where_it_is_unpacked(wheels: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(tmp_path / "site")
    code = "import s3dlio.engine.backends, s3dlio; print(s3dlio.engine.__file__, s3dlio.CorruptError.__module__)"
    done = python("-c", code, cwd=tmp_path, path=(tmp_path / "site",), site=False)
    assert done.stdout.split() == [str(tmp_path / "site/s3dlio/engine/__init__.py"), "s3dlio.engine.errors"], (
        done.stderr
    )
