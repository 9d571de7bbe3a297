from __future__ import annotations

import pytest

from s3dlio.engine.errors import ConfigError
from s3dlio.frameworks.matching import Kind, check_match

PAIR = Kind("float32", (2,))


def test_what_fits_passes() -> None:
    check_match({"a": PAIR, "b": Kind("int8", ())}, {"b": Kind("int8", ()), "a": PAIR}, "here")


def test_every_difference_is_in_one_error() -> None:
    stored = {"kept": PAIR, "old": PAIR, "shape": PAIR, "dtype": PAIR}
    present = {"kept": PAIR, "new": PAIR, "shape": Kind("float32", (3, 1)), "dtype": Kind("float64", (2,))}
    with pytest.raises(ConfigError) as raised:
        check_match(stored, present, "model m", "Name them.")
    assert str(raised.value).splitlines() == [
        "the checkpoint does not fit model m; nothing was restored:",
        "  new: not in the checkpoint",
        "  old: in the checkpoint only",
        "  shape: stored float32 [2], here float32 [3, 1]",
        "  dtype: stored float32 [2], here float64 [2]",
        "Name them.",
    ]


def test_the_hint_is_about_names_only() -> None:
    with pytest.raises(ConfigError) as raised:
        check_match({"a": PAIR}, {"a": Kind("float32", (3,))}, "model m", "Name them.")
    assert "Name them." not in str(raised.value)


def test_a_long_list_is_cut() -> None:
    with pytest.raises(ConfigError, match=r"\.\.\. and 500 more$"):
        check_match({}, {str(number): PAIR for number in range(1500)}, "model m")
