from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.errors import UnsupportedError
from s3dlio.tensors import dump_json_pieces, jsonpieces

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
objects = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
)


def compact(obj: Any) -> bytes:
    return json.dumps(obj, separators=(",", ":")).encode()


@given(objects, st.integers(1, 50), st.integers(1, 6), st.integers(1, 100))
def test_pieces_joined_are_what_json_gives(obj: Any, batch: int, small: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonpieces, "_BATCH", max(batch, small))
        patch.setattr(jsonpieces, "_SMALL", small)
        assert b"".join(dump_json_pieces(obj, size)) == compact(obj)


@pytest.mark.parametrize(
    "obj",
    [
        {f"name{index}": index for index in range(50_000)},
        [{"int": index} for index in range(50_000)],
        {"a": list(range(50_000)), "b": {"c": [[0] * 60] * 1000}},
        ["x" * 50_000] * 100,
        [{"k": "x" * 1000}] * 5000,
    ],
    ids=["dict", "nodes", "lists", "texts", "texts in nodes"],
)
def test_large_objects_are_encoded_in_bounded_calls(obj: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    encode = jsonpieces._encode

    def spy(part: object) -> str:
        text = encode(part)
        lengths.append(len(text))
        return text

    monkeypatch.setattr(jsonpieces, "_encode", spy)
    pieces = list(dump_json_pieces(obj))
    assert b"".join(pieces) == compact(obj)
    assert max(lengths) < 1 << 20
    assert max(map(len, pieces)) < 2 << 20


@pytest.mark.parametrize("obj", [{"a": float("nan")}, [object()], float("inf"), b"a", [[{"a": {1}}] * 100]])
def test_what_is_not_json_is_refused(obj: Any) -> None:
    with pytest.raises(UnsupportedError, match="not JSON"):
        list(dump_json_pieces(obj))
