from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import pytest

from s3dlio.engine.errors import AccessDeniedError, CorruptError
from tests.cli.conftest import Call
from tests.cli.fakes import FakeStore, Report

URI = "file:///ckpt"


def test_ls_prints_one_line_a_checkpoint_in_order(call: Call) -> None:
    store = FakeStore(100, 200, 150)
    answer = call(store, "ls", URI)
    assert answer.code == 0
    head, rule, *rows = answer.out.splitlines()
    assert head.split()[:2] == ["step", "epoch"]
    assert set(rule.strip()) == {"-", " "}
    assert [row.split()[0] for row in rows] == ["100", "200", "150"]
    assert "2025-01-31 12:00:00" in rows[0]
    assert "1.5 MB" in rows[0]
    assert "3.0 MB" in rows[0]
    assert store.closed == 1
    assert store.uri == URI


def test_ls_json(call: Call) -> None:
    value = json.loads(call(FakeStore(100), "ls", URI, "--json").out)
    assert value["uri"] == URI
    assert value["checkpoints"][0]["step"] == 100
    assert value["checkpoints"][0]["user_meta"] == {"loss": 1.25, "bad": "nan"}


def test_ls_of_an_empty_store_is_well(call: Call) -> None:
    answer = call(FakeStore(), "ls", URI)
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"no committed checkpoint in {URI}\n"
    assert json.loads(call(FakeStore(), "ls", URI, "--json").out)["checkpoints"] == []


@pytest.mark.parametrize(("arguments", "step"), [((), 200), (("100",), 100)])
def test_show_takes_the_newest_or_the_step(call: Call, arguments: tuple[str, ...], step: int) -> None:
    answer = call(FakeStore(100, 200), "show", URI, *arguments)
    assert answer.code == 0
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert lines["step"] == str(step)
    assert lines["size"] == "1.5 MB (1500000 bytes)"
    assert lines["manifest"] == "manifests/ckpt-1.json"
    assert "meta loss     1.25" in answer.out
    assert json.loads(call(FakeStore(100, 200), "show", URI, *arguments, "--json").out)["step"] == step


def test_show_without_a_checkpoint_fails_in_one_line(call: Call) -> None:
    answer = call(FakeStore(), "show", URI)
    assert (answer.code, answer.out, answer.err) == (1, "", f"s3dlio: error: no committed checkpoint in {URI}\n")
    answer = call(FakeStore(100), "show", URI, "7")
    assert answer.code == 1
    assert answer.err == f"s3dlio: error: no committed checkpoint of step 7 in {URI}\n"


def test_verify_reads_all_checkpoints(call: Call) -> None:
    answer = call(FakeStore(100, 200), "verify", URI)
    assert answer.code == 0
    assert [line.split() for line in answer.out.splitlines()[2:]] == [
        ["100", "1", "1.5", "MB", "ok"],
        ["200", "1", "1.5", "MB", "ok"],
    ]
    assert answer.err == ""


def test_verify_of_one_step_reads_no_other(call: Call) -> None:
    store = FakeStore(100, 200)
    store.outcomes[100] = CorruptError("damaged")
    assert call(store, "verify", URI, "200").code == 0
    assert call(store, "verify", URI, "100").code == 1


@pytest.mark.parametrize("outcome", [CorruptError("chunk 3 of\nrank 0 differs"), Report(ok=False)])
def test_a_damaged_checkpoint_fails_and_hides_no_other(call: Call, outcome: Report | Exception) -> None:
    store = FakeStore(100, 200)
    store.outcomes[100] = outcome
    answer = call(store, "verify", URI)
    assert answer.code == 1
    rows = answer.out.splitlines()[2:]
    assert rows[0].split()[-1] == "DAMAGED"
    assert rows[1].split()[-1] == "ok"
    words = "chunk 3 of rank 0 differs" if isinstance(outcome, Exception) else "stored bytes are not"
    assert answer.err.startswith(f"s3dlio: error: step 100: {words}")
    assert answer.err.count("\n") == 1
    answer = call(store, "verify", URI, "--json")
    value = json.loads(answer.out)
    assert answer.code == 1
    assert value["ok"] is False
    assert [entry["ok"] for entry in value["checkpoints"]] == [False, True]


def test_an_unreadable_checkpoint_is_listed_and_fails_verify(call: Call) -> None:
    store = FakeStore(100, 200)
    store.infos[0] = replace(store.infos[0], status="unreadable", framework="", total_size=0, raw_size=None)
    rows = call(store, "ls", URI).out.splitlines()[2:]
    assert rows[0].endswith("0a1b2c3d (unreadable)")
    assert rows[1].endswith("0a1b2c3d")
    answer = call(store, "verify", URI)
    assert answer.code == 1
    assert answer.err == "s3dlio: error: step 100: manifests/ckpt-1.json is damaged or of a newer format\n"


@pytest.mark.parametrize(("meta", "line"), [(None, None), ({}, None), ([1, "a"], 'meta          [1, "a"]')])
def test_show_takes_whatever_a_writer_left_as_meta(call: Call, meta: object, line: str | None) -> None:
    store = FakeStore(100)
    store.infos[0] = replace(store.infos[0], user_meta=meta, raw_size=None)
    lines = [text.strip() for text in call(store, "show", URI).out.splitlines()]
    assert "decoded       -" in lines
    assert [text for text in lines if text.startswith("meta")] == ([] if line is None else [line])


def test_verify_of_an_absent_step_fails(call: Call) -> None:
    answer = call(FakeStore(100), "verify", URI, "7")
    assert (answer.code, answer.err) == (1, f"s3dlio: error: no committed checkpoint of step 7 in {URI}\n")


def test_verify_without_access_is_no_verdict(call: Call) -> None:
    store = FakeStore(100)
    store.outcomes[100] = AccessDeniedError("may not read")
    answer = call(store, "verify", URI)
    assert (answer.code, answer.out, answer.err) == (1, "", "s3dlio: error: may not read\n")


def test_nothing_to_verify_fails(call: Call) -> None:
    answer = call(FakeStore(), "verify", URI)
    assert answer.code == 1
    assert "nothing to verify" in answer.err


def test_delete_with_yes(call: Call) -> None:
    store = FakeStore(100, 200)
    answer = call(store, "delete", URI, "100", "--yes")
    assert (answer.code, answer.out, answer.err) == (0, "deleted step 100\n", "")
    assert [info.step for info in store.infos] == [200]
    value = json.loads(call(store, "delete", URI, "200", "--yes", "--json").out)
    assert value == {"uri": URI, "step": 200, "deleted": True}


class Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "code", "left"), [("y\n", 0, []), ("YES\n", 0, []), ("\n", 1, [100]), ("", 1, [100])]
)
def test_delete_asks_on_a_terminal(
    call: Call, monkeypatch: pytest.MonkeyPatch, typed: str, code: int, left: list[int]
) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(typed))
    store = FakeStore(100)
    answer = call(store, "delete", URI, "100")
    assert answer.code == code
    assert [info.step for info in store.infos] == left
    assert f"delete step 100 (2025-01-31 12:00:00, 1.5 MB) of {URI}? [y/N]" in answer.err


def test_delete_without_a_terminal_needs_yes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    store = FakeStore(100)
    answer = call(store, "delete", URI, "100")
    assert answer.code == 1
    assert "add --yes" in answer.err
    assert [info.step for info in store.infos] == [100]


def test_all_saves_of_a_step_go_even_with_a_damaged_manifest(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Typed("y\n"))
    store = FakeStore(100, 100, 200)
    store.infos[0] = replace(store.infos[0], status="unreadable", total_size=0)
    answer = call(store, "delete", URI, "100")
    assert answer.code == 0
    assert "(2025-01-31 12:00:00, 0 B, 2025-01-31 12:00:00, 1.5 MB)" in answer.err
    assert [info.step for info in store.infos] == [200]


def test_delete_of_an_absent_step_fails(call: Call) -> None:
    assert call(FakeStore(100), "delete", URI, "7", "--yes").code == 1


def test_deleted_by_somebody_else_meanwhile_fails(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(100)
    monkeypatch.setattr(store, "delete", lambda step: False)
    answer = call(store, "delete", URI, "100", "--yes")
    assert (answer.code, answer.out) == (1, "step 100 was already gone\n")
