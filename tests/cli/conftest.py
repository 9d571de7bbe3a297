from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from s3dlio import cli


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``call(store, *arguments)``: run the command line on a store of the test's own."""

    def run(store: Any, *arguments: str) -> Answer:
        monkeypatch.setattr(cli, "open_store", store)
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run
