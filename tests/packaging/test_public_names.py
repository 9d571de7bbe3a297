"""The lazy names of ``s3dlio``: each resolves, and what the type checker sees is what is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import s3dlio

LAZY = [name for name in s3dlio.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", LAZY)
def test_name_resolves(name: str) -> None:
    assert getattr(s3dlio, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 's3dlio' has no attribute 'Checkpointer'"):
        s3dlio.Checkpointer  # noqa: B018


def test_dir_lists_lazy_names() -> None:
    assert set(s3dlio.__all__) <= set(dir(s3dlio))


def test_every_error_class_is_exported() -> None:
    from s3dlio.engine import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes <= set(LAZY)


def test_type_checkers_see_the_same_table() -> None:
    tree = ast.parse(Path(s3dlio.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: f".{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == s3dlio._HOME_OF
    assert sorted(seen) == sorted(LAZY)
