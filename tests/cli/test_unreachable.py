"""A store that does not answer, or no credential for it: what a person at a terminal sees, and how soon."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from s3dlio import cli
from s3dlio.cli.store_options import FIRST_DEADLINE, in_a_hurry
from s3dlio.cli.terminal import warnings_told
from tests.cli.conftest import Call
from tests.cli.fakes import FakeStore
from tests.servers.process import free_port


@pytest.mark.parametrize("uri", ["s3://bucket/run", "az://account/box"])
@pytest.mark.parametrize("options", [{}, {"region": "x", "read_timeout": 5}])
def test_the_first_answer_of_an_object_store_has_to_come_soon(uri: str, options: dict[str, Any]) -> None:
    before = dict(options)
    assert in_a_hurry(uri, options) == {**before, "first_deadline": FIRST_DEADLINE}
    assert options == before


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("s3://bucket", {"retry_deadline": 500}),
        ("az://account/box", {"first_deadline": 3, "region": "x"}),
        ("file:///x", {}),
        ("direct:///x", {"region": "x"}),
        ("nonsense", {}),
    ],
)
def test_unless_it_is_a_folder_or_the_user_says_how_long(uri: str, options: dict[str, Any]) -> None:
    assert in_a_hurry(uri, options) == options


def test_the_stores_of_the_command_line_are_opened_so(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("s3dlio.store.CheckpointStore", lambda uri, *, options: opened.append((uri, options)))
    cli.open_store("s3://bucket", {"region": "x"})
    cli.open_store("file:///x")
    assert opened == [("s3://bucket", {"region": "x", "first_deadline": FIRST_DEADLINE}), ("file:///x", None)]


@pytest.mark.slow
def test_nobody_listens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "x")
    where = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    options = [f"endpoint_url={where}", "region=us-east-1", "first_deadline=1"]
    code = cli.main(["ls", "s3://bucket/run", *(word for option in options for word in ("--option", option))])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith("s3dlio: error: ")
    assert " times in " in err
    assert where in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_no_credential_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECTION_STRING", "KEY", "ACCOUNT_KEY", "SAS_TOKEN", "ENDPOINT", "SERVICE_ENDPOINT"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # it needs no network to find out
    assert cli.main(["ls", "az://account/box"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("s3dlio: error: ")
    assert "no credential for the account account was found (tried Environment (" in err
    assert err.count("\n") == 1


# warnings


class Talkative(FakeStore):
    """A store that warns while it lists."""

    def list(self) -> Any:
        logging.getLogger("s3dlio.engine").warning("head of %r failed\n  4 times", "key")
        logging.getLogger("somebody.else").error("oops")
        logging.getLogger("s3dlio.engine").info("hush")
        return super().list()


def test_a_warning_is_one_line(call: Call) -> None:
    answer = call(Talkative(1), "ls", "file:///x", "--json")
    assert answer.code == 0
    assert answer.err == "s3dlio: warning: head of 'key' failed 4 times\ns3dlio: error: oops\n"


def test_nothing_of_it_stays(call: Call) -> None:
    before = list(logging.getLogger().handlers)
    call(Talkative(1), "ls", "file:///x")
    assert logging.getLogger().handlers == before


def test_a_warning_takes_the_place_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings_told(), monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True)
        logging.getLogger("s3dlio").warning("slow")
    assert capsys.readouterr().err == "\r\x1b[Ks3dlio: warning: slow\n"
