from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.demo.text import load_corpus, offsets
from s3dlio.engine.errors import ConfigError


def test_files_are_read_in_name_order_and_split_once(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_bytes(b"b" * 10_000)
    (tmp_path / "a.py").write_bytes(b"a" * 10_000)
    (tmp_path / "c.txt").write_bytes(b"c" * 10_000)
    corpus = load_corpus(tmp_path)
    assert corpus.train == b"a" * 10_000 + b"b" * 8_000
    assert corpus.held_out == b"b" * 2_000


def test_the_limit_cuts_in_the_middle_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"a" * 10_000)
    (tmp_path / "b.py").write_bytes(b"b" * 10_000)
    corpus = load_corpus(tmp_path, limit=15_000)
    assert corpus.train + corpus.held_out == b"a" * 10_000 + b"b" * 5_000


def test_the_standard_library_is_text_enough() -> None:
    corpus = load_corpus()
    assert len(corpus.train) > 1_000_000
    assert load_corpus() == corpus


def test_too_little_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path} holds 0 bytes"):
        load_corpus(tmp_path)


@given(st.integers(), st.integers(), st.integers(1, 16), st.integers(1, 1 << 40))
def test_offsets_stay_in_the_room_and_repeat(seed: int, step: int, count: int, room: int) -> None:
    found = offsets(seed, step, count, room)
    assert len(found) == count
    assert all(0 <= offset < room for offset in found)
    assert offsets(seed, step, count, room) == found


def test_offsets_differ_between_steps_and_samples() -> None:
    found = [offset for step in range(10) for offset in offsets(1, step, 4, 1 << 40)]
    assert len(set(found)) == 40
