"""A POSIX store used by several processes at once, and left by one that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from s3dlio.engine.backends.posix import PosixBackend
from s3dlio.engine.contract import PartReceipt
from tests.engine.conformance import data, get, keys, part_size, view

PROCESSES = 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def backend(root: Path) -> PosixBackend:
    return PosixBackend(str(root), direct=False)


def start(code: str, *args: str) -> subprocess.Popen[str]:
    """A process that runs ``code`` with ``backend``, ``PreconditionError`` and ``args``, once a line is sent to it."""
    head = """
        import sys
        from s3dlio.engine.backends.posix import PosixBackend
        from s3dlio.engine.errors import PreconditionError
        backend = PosixBackend(sys.argv[1], direct=False)
        args = sys.argv[2:]
        print("ready", flush=True)
        sys.stdin.readline()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_together(code: str, *argses: tuple[str, ...]) -> list[str]:
    """What processes print that begin ``code`` at the same moment, one for each of ``argses``."""
    running = [start(code, *args) for args in argses]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    return told


def test_conditional_puts_have_one_winner(backend: PosixBackend, root: Path) -> None:
    etags = [backend.put(f"match/{number}", view(b"before")).etag for number in range(10)]
    told = run_together(
        """
        won = []
        body = [memoryview(args[0].encode())]
        for number, etag in enumerate(args[1:]):
            for key, condition in ((f"absent/{number}", {"if_absent": True}), (f"match/{number}", {"if_match": etag})):
                try:
                    backend.put(key, body, **condition)
                    won.append(key)
                except PreconditionError:
                    pass
        print(*won)
        """,
        *((str(root), str(process), *etags) for process in range(PROCESSES)),
    )
    won = {key: process for process, line in enumerate(told) for key in line.split()}
    assert sum(len(line.split()) for line in told) == 20
    assert sorted(won) == keys(backend)
    assert {key: backend.read(key, limit=9)[0] for key in won} == {key: b"%d" % process for key, process in won.items()}


def test_a_counter_kept_by_compare_and_swap_loses_nothing(backend: PosixBackend, root: Path) -> None:
    backend.put("counter", view(b"0"))
    run_together(
        """
        for _ in range(10):
            while True:
                body, info = backend.read("counter", limit=9)
                try:
                    backend.put("counter", [memoryview(b"%d" % (int(body) + 1))], if_match=info.etag)
                    break
                except PreconditionError:
                    pass
        """,
        *((str(root),) for _ in range(PROCESSES)),
    )
    assert backend.read("counter", limit=9)[0] == b"40"
    assert [path.name for path in root.iterdir()] == ["counter"]


def test_parts_come_from_many_processes(backend: PosixBackend, root: Path) -> None:
    step = part_size(backend)
    body = data(2 * PROCESSES * step + 99)
    (root.parent / "body").write_bytes(body)
    name = backend.begin("key", size=len(body))
    told = run_together(
        f"""
        body = open(args[0], "rb").read()
        for index in range(int(args[2]), len(body) // {step} + 1, {PROCESSES}):
            offset = index * {step}
            part = [memoryview(body)[offset : offset + {step}]]
            receipt = backend.put_part("key", args[1], index + 1, offset, part)
            print(receipt.number, receipt.offset, receipt.size, receipt.tag)
        """,
        *((str(root), str(root.parent / "body"), name, str(process)) for process in range(PROCESSES)),
    )
    rows = [line.split() for lines in told for line in lines.splitlines()]
    receipts = [PartReceipt(int(number), int(offset), int(size), tag) for number, offset, size, tag in rows]
    backend.complete("key", name, sorted(receipts, key=lambda receipt: receipt.number))
    assert get(backend, "key") == body


def test_writers_and_deleters_of_one_folder_bear_each_other(backend: PosixBackend, root: Path) -> None:
    told = run_together(
        """
        for number in range(15):
            key = f"folder/{number % 2}/{args[0]}"
            backend.put(key, [memoryview(b"x")])
            assert backend.head(key).size == 1
            list(backend.list())
            backend.delete(key)
        print("done")
        """,
        *((str(root), str(process)) for process in range(PROCESSES)),
    )
    assert told == ["done\n"] * PROCESSES
    assert list(root.rglob("*")) == []


@pytest.mark.parametrize("moment", ["pwritev", "fsync", "replace", "link"])
def test_a_process_killed_in_a_write_leaves_the_old_object_and_an_orphan(
    backend: PosixBackend, root: Path, moment: str
) -> None:
    old = backend.put("key", view(b"old"))
    process = start(
        f"""
        import os, signal
        setattr(os, {moment!r}, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        backend.put("other" if {moment!r} == "link" else "key", [memoryview(b"new")], if_absent={moment!r} == "link")
        """,
        str(root),
    )
    process.communicate("\n")
    assert process.returncode == -9
    assert list(backend.list()) == [old]
    assert backend.read("key", limit=9) == (b"old", old)
    (orphan,) = backend.uploads()
    backend.abort(orphan.key, orphan.upload)
    backend.put("key", view(b"newer"), if_match=old.etag)  # a lock of the killed process is free
    assert [path.name for path in root.iterdir()] == ["key"]
    assert os.path.isdir(root)
