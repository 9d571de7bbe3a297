from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import s3dlio
from s3dlio import cli
from s3dlio.cli.parser import as_uri
from s3dlio.demo import story
from s3dlio.demo.options import DemoOptions
from s3dlio.engine.errors import DependencyError, StorageError
from tests.cli.conftest import Call
from tests.cli.fakes import FakeStore
from tests.demo.test_report import REPORT

ROOT = Path(__file__).parents[2]


def raising(error: BaseException) -> Any:
    def open_store(uri: str) -> Any:
        raise error

    return open_store


def test_our_errors_are_one_line(call: Call) -> None:
    answer = call(raising(StorageError("the disk\n is gone")), "ls", "file:///x")
    assert (answer.code, answer.out, answer.err) == (1, "", "s3dlio: error: the disk is gone\n")


def test_debug_adds_the_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **options: None)
    answer = call(raising(StorageError("the disk is gone")), "ls", "file:///x", "--debug")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert answer.err.endswith("s3dlio: error: the disk is gone\n")


def test_a_bug_is_told_as_one(call: Call) -> None:
    answer = call(raising(ZeroDivisionError("oops")), "ls", "file:///x")
    assert answer.code == 1
    assert answer.err == "s3dlio: error: internal error, please report it: ZeroDivisionError: oops\n"


def test_an_interrupt_is_quiet(call: Call) -> None:
    answer = call(raising(KeyboardInterrupt()), "ls", "file:///x")
    assert (answer.code, answer.err) == (130, "s3dlio: interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["ls"],
        ["show", "file:///x", "-1"],
        ["show", "file:///x", "one"],
        ["delete", "file:///x"],
        ["export", "file:///x", "1"],
        ["demo", "--size", "huge"],
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: s3dlio")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"s3dlio {s3dlio.__version__}\n"


def test_a_path_is_a_file_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: Call) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_uri("runs/a") == f"file://{tmp_path}/runs/a"
    assert as_uri("/runs/a") == "file:///runs/a"
    assert as_uri("s3://bucket/a") == "s3://bucket/a"
    store = FakeStore()
    call(store, "ls", "runs")
    assert store.uri == f"file://{tmp_path}/runs"


STUB = """
import sys
from s3dlio import cli
class Store:
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def list(self): return []
cli.open_store = lambda uri: Store()
code = cli.main(["ls", "file:///x"])
heavy = {"torch", "numpy", "jax", "tensorflow", "awscrt", "asyncio", "zstandard", "statistics"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def test_ls_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", STUB], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "no committed checkpoint in file:///x\n")


LONG = """
from s3dlio import cli
from tests.cli.fakes import FakeStore
cli.open_store = FakeStore(*range(20000))
raise SystemExit(cli.main(["ls", "file:///x"]))
"""


def test_a_reader_that_leaves_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LONG], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_the_module_runs_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s3dlio", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"s3dlio {s3dlio.__version__}\n"


def test_the_demo_passes_its_options_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DemoOptions] = []

    def run(options: DemoOptions, **rest: Any) -> Any:
        asked.append(options)
        rest["watch"]("uninterrupted", {"event": "step", "step": 1, "loss": 2.0}, 80)
        return REPORT

    monkeypatch.setattr(story, "run", run)
    answer = call(FakeStore(), "demo", "direct:///there", "--steps", "30", "--size", "tiny", "--keep", "0")
    assert answer.code == 0
    assert "bit for bit" in answer.out
    assert answer.err == ""
    assert asked == [DemoOptions(uri="direct:///there", size="tiny", steps=30, keep=0)]
    assert json.loads(call(FakeStore(), "demo", "--json").out)["equal"] is True
    assert asked[1] == DemoOptions()


def test_the_demo_fails_where_the_runs_differ(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "run", lambda options, **rest: replace(REPORT, resumed={}))
    assert call(FakeStore(), "demo").code == 1


def test_the_demo_without_torch_names_the_extra(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: DemoOptions, **rest: Any) -> Any:
        raise DependencyError("pip install 's3dlio[torch]'")

    monkeypatch.setattr(story, "run", run)
    answer = call(FakeStore(), "demo")
    assert (answer.code, answer.err) == (1, "s3dlio: error: pip install 's3dlio[torch]'\n")
