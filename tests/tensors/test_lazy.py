"""torch is imported only where a value, or a stored leaf, is of it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_numpy_state_needs_no_torch() -> None:
    run("""
        import sys
        import numpy
        from s3dlio.tensors import ShardImage, flatten, parse_table, plan_into, plan_layout, restore
        state = {"a": numpy.arange(3), "b": [1, (2.5, None)]}
        flat = flatten(state)
        layout = plan_layout(flat)
        data = bytearray(layout.total)
        ShardImage(flat.leaves, layout).copy_to(numpy.frombuffer(data, "u1").ctypes.data, 0, layout.total)
        table = parse_table(layout.table, layout.total)
        assert restore(flat.tree, table, data)["a"].tolist() == [0, 1, 2]
        plan_into(flat.tree, table, state)
        assert not {"torch", "jax", "tensorflow", "ml_dtypes", "safetensors"} & set(sys.modules)
    """)


def test_a_missing_framework_is_named_with_its_extra() -> None:
    run("""
        import sys
        sys.modules["torch"] = sys.modules["ml_dtypes"] = None
        from s3dlio.engine.errors import DependencyError
        from s3dlio.tensors import parse_table, restore
        for form, dtype, word in (("torch", "float32", "s3dlio[torch]"), ("numpy", "bfloat16", "ml_dtypes")):
            raw = {"names": ["a"], "specs": [[form, dtype, [1]]], "spec": [0], "offsets": [0], "aliases": {}}
            try:
                restore(0, parse_table(raw, 4), bytearray(4))
            except DependencyError as error:
                assert word in str(error), error
            else:
                raise AssertionError(form)
    """)
