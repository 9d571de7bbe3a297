"""How a worker process starts, whatever the parent's folder, environment and ``sys.path``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s3dlio.engine.channel import Channel, ChannelClosed
from s3dlio.engine.errors import S3dlioError
from s3dlio.engine.messages import Configure, Hello
from s3dlio.engine.spawn import start_worker
from tests.engine.live import python, sabotage


def greet() -> int:
    """Start a worker, hear its greeting, see it leave; its exit status."""
    started = start_worker(1)
    channel = Channel(started.sock)
    channel.send(Configure(30))
    messages: list[object] = []
    try:
        while not messages:
            messages = [message for message, _ in channel.receive()]
        assert messages == [Hello(started.process.pid)]
    finally:
        channel.close()
        status = started.process.wait(30)
    return status


def test_it_greets_and_leaves_with_its_parent() -> None:
    assert greet() == 0


def test_strange_modules_and_variables_do_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("socket", "json", "logging", "s3dlio"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "socket.py"))
    monkeypatch.setattr(sys, "path", [*sys.path, "", str(tmp_path)])
    assert greet() == 0


def test_it_imports_what_the_parent_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_the_parent_knows.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # a Path is no string, and people do add them
    sabotage(monkeypatch, "import only_the_parent_knows")
    assert greet() == 0


def test_a_worker_that_breaks_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    sabotage(
        monkeypatch,
        "from s3dlio.engine import worker\ndef serve(self):\n    raise ZeroDivisionError('a bug')\n"
        "worker._Worker.serve = serve",
    )
    started = start_worker(1)
    channel = Channel(started.sock)
    with pytest.raises(ChannelClosed):
        channel.receive()
    channel.close()
    assert started.process.wait(30) == 1
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


def test_the_system_may_refuse_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/")
    with pytest.raises(S3dlioError, match="cannot start a worker"):
        start_worker(1)


@pytest.mark.slow
def test_an_unguarded_main_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "print('once')\n"
        "from s3dlio.engine.contract import Location\n"
        "from s3dlio.engine.pool import Pool, PoolConfig\n"
        "pool = Pool(PoolConfig(memory=4 << 20, workers=2, slot_size=1 << 20))\n"
        f"pool.control(Location('file', {str(tmp_path)!r})).put('a', [memoryview(b'x')])\n"
        "pool.close()\n"
    )
    assert python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')") == "once"
