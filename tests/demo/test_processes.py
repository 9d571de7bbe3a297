from __future__ import annotations

import os
import subprocess
from pathlib import Path

from s3dlio.demo.processes import Process, alive, children, wait_gone


def test_a_child_is_found_alive_and_then_gone() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        found = [process for process in children(os.getpid()) if process.pid == child.pid]
        assert len(found) == 1
        assert alive(found[0])
        assert wait_gone(found, 0) == found
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert not alive(found[0])
        assert wait_gone(found, 5) == []
    finally:
        child.kill()
        child.communicate()
    assert not alive(found[0])


def _stat(proc: Path, pid: int, name: str, state: str, parent: int, started: int) -> None:
    (proc / str(pid)).mkdir()
    rest = [state, str(parent), *["0"] * 17, str(started), "0"]
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(rest)}\n")


def test_names_with_brackets_zombies_and_other_parents(tmp_path: Path) -> None:
    _stat(tmp_path, 11, "a) R 7 (b", "S", 5, 100)
    _stat(tmp_path, 12, "zombie", "Z", 5, 101)
    _stat(tmp_path, 13, "other", "R", 6, 102)
    assert children(5, tmp_path) == [Process(11, 100)]


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    _stat(tmp_path, 11, "a", "S", 5, 100)
    assert alive(Process(11, 100), tmp_path)
    assert not alive(Process(11, 99), tmp_path)


def test_without_proc_nothing_is_claimed(tmp_path: Path) -> None:
    assert children(1, tmp_path / "absent") == []
    assert not alive(Process(1, 1), tmp_path / "absent")
