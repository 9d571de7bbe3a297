from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio import fields
from s3dlio.engine.errors import ConfigError, ManifestError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_user_meta_is_kept_as_it_is(value: Any) -> None:
    assert fields.check_user_meta(value) == value


def test_a_tuple_in_user_meta_becomes_a_list() -> None:
    assert fields.check_user_meta({"shape": (1, 2)}) == {"shape": [1, 2]}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"loss": float("nan")}, r"user_meta\['loss'\] is nan"),
        ([1, {"a": float("inf")}], r"user_meta\[1\]\['a'\]"),
        ({"a": {1: 2}}, r"user_meta\['a'\] has the key 1"),
        ({"a": b"x"}, r"user_meta\['a'\] is bytes"),
        ({"a": 2**64}, "64 bits"),
        ({"a": 10**6000}, "64 bits"),
        ("\ud800", "cannot be stored"),
        ("x" * fields.USER_META_MAX, "bytes as JSON"),
    ],
)
def test_what_json_cannot_keep_is_named(value: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        fields.check_user_meta(value)


def test_a_bottomless_user_meta_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError, match="nested"):
        fields.check_user_meta(endless)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"a":', b"\xff\xfe", b"NaN", b'{"a":Infinity}', b"[" * 200_000, b"9" * 100_000, b"\x00", b"{}x"],
    ids=lambda data: repr(data[:8]),
)
def test_bytes_that_are_no_json_are_our_error(data: bytes) -> None:
    with pytest.raises(ManifestError, match="the pointer"):
        fields.loads(data, "the pointer")


@given(st.binary(max_size=80))
def test_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    try:
        fields.loads(data, "x")
    except ManifestError:
        pass


def repr_or_huge(value: object) -> str:
    return "huge" if isinstance(value, int) and value > 2**64 else repr(value)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [], -1, 11, 10**6000], ids=repr_or_huge)
def test_an_integer_is_an_integer_within_bounds(value: Any) -> None:
    with pytest.raises(ManifestError, match="here: n"):
        fields.integer({"n": value}, "n", "here", most=10)


@pytest.mark.parametrize(
    "value", ["/shards/a", "shards/../a", "shards//a", "shards/a\0", "shards\\a", "other/a", "", 3]
)
def test_a_key_cannot_leave_its_prefix(value: Any) -> None:
    with pytest.raises(ManifestError):
        fields.key({"key": value}, "key", "here", prefix="shards/")


@pytest.mark.parametrize(
    "value", ["crc32c:1234567", "crc32c:123456789", "crc32:12345678", "12345678", "crc32c:1234567g", 5]
)
def test_a_malformed_checksum_is_refused(value: Any) -> None:
    with pytest.raises(ManifestError, match="checksum"):
        fields.checksum({"checksum": value}, "checksum", "here")


def test_a_checksum_is_optional_and_lower_case() -> None:
    assert fields.checksum({}, "checksum", "here") is None
    assert fields.checksum({"checksum": "crc32c:ABCDEF01"}, "checksum", "here") == "crc32c:abcdef01"
