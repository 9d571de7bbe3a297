"""Declared dependencies are the imported ones, and the engine reaches for nothing above itself."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

from packaging.requirements import Requirement

from tests.packaging.tree import ROOT, shipped

MODULES = {"azure-core": "azure", "azure-identity": "azure", "azure-storage-blob": "azure"}
"""Import names of distributions whose import name is another."""
EXTRAS = ("azure", "jax", "keras", "lightning", "mpi", "tensorflow", "torch", "torch_checkpointing", "transformers")


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.Import | ast.ImportFrom)]


def third_party() -> set[str]:
    names: set[str] = set()
    for path in (path for path in shipped().values() if path.suffix == ".py"):
        for node in imports(path):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif not node.level:
                names.add(str(node.module).split(".")[0])
    return names - sys.stdlib_module_names - {"s3dlio"}


def declared(*extras: str) -> set[str]:
    """Import names of what an installation with these extras brings."""
    lines = map(Requirement, importlib.metadata.requires("s3dlio") or [])
    wanted = [r for r in lines if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return {MODULES.get(requirement.name, requirement.name) for requirement in wanted}


def test_what_is_imported_is_declared() -> None:
    assert third_party() <= declared(*EXTRAS)


def test_what_is_required_is_imported() -> None:
    assert declared() <= third_party()


def test_the_engine_imports_the_package_by_relative_names_only() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        depth = len(path.relative_to(ROOT / "engine").parts)
        for node in imports(path):
            where = f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.level <= depth, where
                assert node.level or str(node.module).split(".")[0] != "s3dlio", where
            else:
                assert not [alias for alias in node.names if alias.name.split(".")[0] == "s3dlio"], where
