"""Servers as processes, with small scripts in the place of servers."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.servers import process
from tests.servers.ends import await_end

WAITS = "import signal; print('here', flush=True); signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def has_said(log: Path, word: str) -> bool:
    return log.exists() and word in log.read_text()


def test_what_is_not_installed_names_the_command() -> None:
    with pytest.raises(process.ServerError, match=r"nothing is not installed .* run `make servers`"):
        process.installed("nothing/bin/server")


def test_a_server_that_ends_at_once_shows_why(tmp_path: Path) -> None:
    command = python("import sys; print('no such port'); sys.exit(3)")
    with (
        pytest.raises(process.ServerError, match="broken ended with 3 before it was ready:\nno such port"),
        process.running("broken", command, lambda: False, folder=tmp_path),
    ):
        pass


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with (
        pytest.raises(process.ServerError, match="deaf is not ready after 0 seconds"),
        process.running("deaf", python(WAITS), lambda: False, folder=tmp_path, patience=0.1),
    ):
        pass


def test_a_server_ends_with_all_that_it_started(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITS!r}])"
    with process.running(
        "parent", python(code), lambda: has_said(tmp_path / "parent.log", "here"), folder=tmp_path
    ) as pid:
        (child,) = psutil.Process(pid).children(recursive=True)
    await_end(pid)
    await_end(child.pid)


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    code = f"""
import os, signal, sys
from pathlib import Path
from tests.servers import process
said = lambda: Path({str(log)!r}).exists() and "here" in Path({str(log)!r}).read_text()
with process.running("server", [sys.executable, "-c", {WAITS!r}], said, folder=Path({str(tmp_path)!r})) as pid:
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(python(code), cwd=process.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    await_end(int(done.stdout))


def test_a_server_is_not_steered_by_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    monkeypatch.setenv("SOMETHING", "kept")
    code = f"import os; print(os.environ.get('AWS_ENDPOINT_URL'), os.environ['SOMETHING'], os.environ['MORE']); {WAITS}"
    log = tmp_path / "server.log"
    with process.running(
        "server", python(code), lambda: has_said(log, "here"), folder=tmp_path, environ={"MORE": "given"}
    ):
        assert log.read_text().startswith("None kept given")


def test_a_scratch_folder_goes_with_its_content() -> None:
    with process.scratch("test") as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_nobody_listens_on_a_free_port(host: str) -> None:
    port = process.free_port(host)
    assert not process.listens(host, port)
    assert process.answers(f"http://{f'[{host}]' if ':' in host else host}:{port}/") is None
