from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.cli.terminal import Bar, Style, seconds, size, style_for, table, visible


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (57_887_888, "57.9 MB"),
        (2e9, "2.0 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.00085, "850 us"), (0.0046, "4.6 ms"), (0.999, "999.0 ms"), (1.2, "1.20 s")]
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


words = st.text(st.characters(whitelist_categories=("L", "N")), min_size=1, max_size=12)


@given(st.lists(st.tuples(words, words, words), max_size=5), st.booleans())
def test_columns_line_up_whatever_the_colours(rows: list[tuple[str, str, str]], colour: bool) -> None:
    style = Style(colour)
    painted = [(one, style.bad(two), three) for one, two, three in rows]
    lines = table(("a", "b", "c"), painted, style, right=(1,))
    assert len(lines) == len(rows) + 2
    assert all(visible(line) <= visible(lines[1]) for line in lines)
    ends = [lines.index(line) for line in lines[2:]]
    for row, number in zip(rows, ends, strict=True):
        plain = table(("a", "b", "c"), rows, right=(1,))[number]
        assert visible(lines[number]) == len(plain)
        assert row[1] in plain


@given(words)
def test_colours_take_no_room(text: str) -> None:
    style = Style(colour=True)
    assert visible(style.good(text)) == len(text)
    assert len(style.strong(text)) == len(text) + style.hidden(text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert style_for(Terminal()).colour
    assert not style_for(io.StringIO()).colour
    monkeypatch.setenv("TERM", "dumb")
    assert not style_for(Terminal()).colour
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not style_for(Terminal()).colour


def test_a_bar_draws_on_a_terminal_and_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Bar("verify", stream) as bar:
        bar.show(1, 2, "step 3")
        drawn = stream.getvalue()
        bar.show(1, 2, "step 3")
        assert stream.getvalue() == drawn
        bar.show(0, 0)
    assert "verify" in drawn
    assert "50% step 3" in drawn
    assert "100%" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_bar_is_silent_elsewhere() -> None:
    stream = io.StringIO()
    with Bar("verify", stream) as bar:
        bar.show(1, 2)
    assert stream.getvalue() == ""
