"""The leak check itself: every kind of leak is seen, named and, for processes, ended."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading

from tests import leaks

WAITER = [sys.executable, "-Ic", "import sys; print('up', flush=True); sys.stdin.read()"]


def test_nothing_left_is_nothing_told() -> None:
    assert not leaks.settle(leaks.take())


def test_process_is_seen_and_killed() -> None:
    before = leaks.take()
    with subprocess.Popen(WAITER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        leaked = leaks.settle(before, patience=0)
        assert leaked.children == {process.pid}
        assert f"process {process.pid}: {sys.executable}" in leaked.describe()
        leaks.kill(leaked)
    assert not leaks.settle(before)


def test_ended_process_that_nobody_waited_for_is_seen() -> None:
    before = leaks.take()
    with subprocess.Popen([sys.executable, "-Ic", ""]) as process:
        assert leaks.settle(before, patience=0.5).children == {process.pid}


def test_process_that_is_ending_is_waited_for() -> None:
    before = leaks.take()
    process = subprocess.Popen(WAITER, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    owner = threading.Thread(target=process.wait)
    owner.start()
    process.stdin.close()
    assert not leaks.settle(before)


def test_thread_is_seen() -> None:
    before = leaks.take()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="stays")
    thread.start()
    assert leaks.settle(before, patience=0).describe() == "thread stays"
    end.set()
    thread.join()


def test_fd_is_seen() -> None:
    before = leaks.take()
    read, write = os.pipe()
    assert {fd for fd, _ in leaks.settle(before, patience=0).fds} == {read, write}
    os.close(read)
    os.close(write)


def test_mapping_of_a_closed_memfd_is_seen() -> None:
    before = leaks.take()
    fd = os.memfd_create("kept")
    os.ftruncate(fd, mmap.PAGESIZE)
    mapping = mmap.mmap(fd, mmap.PAGESIZE)
    os.close(fd)
    (name,) = leaks.settle(before, patience=0).memfds
    assert "/memfd:kept" in name
    mapping.close()


def test_garbage_is_not_a_leak() -> None:
    before = leaks.take()
    fd = os.memfd_create("garbage")
    os.ftruncate(fd, mmap.PAGESIZE)
    cycle: list[object] = [mmap.mmap(fd, mmap.PAGESIZE)]
    cycle.append(cycle)
    os.close(fd)
    del cycle
    assert leaks.take() - before
    assert not leaks.settle(before)
