"""A training repository's own ``engine.py`` and this package live together; a bare ``import engine`` is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.tree import ROOT, python

USER_ENGINE = "def train():\n    return 'the user\\'s engine'\n"
USER_SCRIPT = """
{imports}
assert engine.train() == "the user's engine", engine
assert s3dlio.engine.errors.CorruptError is s3dlio.CorruptError

if __name__ == "__main__":
    with s3dlio.CheckpointStore("file://" + sys.argv[1]) as store:
        store.save(1, {{"weights": b"1234"}})
        assert store.load() == {{"weights": b"1234"}}
    print("saved and loaded")
"""
ORDERS = {
    "user's first": "import sys, engine, s3dlio, s3dlio.engine.errors",
    "ours first": "import sys, s3dlio.engine.errors, s3dlio, engine",
}


@pytest.mark.slow
@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("path", [(), (ROOT,)], ids=["installed", "tree"])
def test_user_script_beside_its_own_engine(tmp_path: Path, imports: str, path: tuple[Path, ...]) -> None:
    (tmp_path / "engine.py").write_text(USER_ENGINE)
    (tmp_path / "train.py").write_text(USER_SCRIPT.format(imports=imports))
    done = python("train.py", str(tmp_path / "store"), cwd=tmp_path, path=path)
    assert (done.returncode, done.stdout) == (0, "saved and loaded\n"), done.stderr


@pytest.mark.parametrize("name", ["engine", "engine.errors", "engine.backends"])
def test_bare_import_is_refused(name: str) -> None:
    done = python("-c", f"import {name}", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: this folder is not the package 'engine': import it as 's3dlio.engine'"
    )
