"""Trainers that run and end in unusual ways: daemons, forks, no guard, no close, signals, a `socket.py` in the way."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.faults import states
from tests.faults.conftest import Open, Sabotaging, Scripting
from tests.faults.folders import contents, hidden
from tests.faults.injected import HOLD, Rule
from tests.faults.processes import workers
from tests.faults.waiting import until

pytestmark = pytest.mark.slow

DAEMON = """
    import multiprocessing
    def work():
        with open_store() as store:
            store.save(1, states.make(1))
            assert states.same(store.load(), states.make(1))
        say("daemon", multiprocessing.current_process().daemon)
    if __name__ == "__main__":
        process = multiprocessing.get_context(ARGS["how"]).Process(target=work, daemon=True)
        process.start()
        process.join()
        say(process.exitcode)
"""


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_a_daemonic_process_saves(script: Scripting, how: str) -> None:
    """Such a process may have no children of multiprocessing; workers are none."""
    trainer = script(DAEMON, how=how)
    assert trainer.line() == "daemon True"
    assert trainer.line() == "0"
    assert trainer.end() == 0, trainer.errors
    trainer.all_gone()


UNGUARDED = """
    say("from the top")
    store = open_store()
    store.save(1, states.make(1))
    assert states.same(store.load(), states.make(1))
    store.close()
    say("well")
"""


def test_a_script_without_a_guard(script: Scripting) -> None:
    """Its ``__main__`` is not run again in any worker."""
    trainer = script(UNGUARDED)
    assert trainer.end() == 0, trainer.errors
    assert trainer.output == "from the top\nwell\n"


FORKED = """
    store = open_store()
    store.save(1, states.make(1))
    handle = store.save_async(2, states.make(2))
    pid = os.fork()
    if not pid:
        assert states.same(store.load(1), states.make(1))      # with workers of its own
        store.save(3, states.make(3))
        store.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert handle.result().step == 2
    store.save(4, states.make(4))
    for step in range(1, 5):
        assert states.same(store.load(step), states.make(step)), step
    store.close()
    say("well")
"""


def test_a_forked_child_and_its_parent(script: Scripting, open_store: Open) -> None:
    """The child starts workers of its own; the parent, in the middle of a save, notices nothing."""
    trainer = script(FORKED)
    assert trainer.line() == "well"
    assert trainer.end() == 0, trainer.errors
    trainer.all_gone()


FORKED_WHILE_HELD = """
    from s3dlio.engine.errors import PoolClosedError
    store = open_store()
    handle = store.save_async(1, states.make(1))
    pid = os.fork()
    if not pid:
        for ask in (handle.result, handle.cancel):
            try:
                ask()
            except PoolClosedError as error:
                say(error)
        os._exit(0)
    os.waitpid(pid, 0)
    say(handle.result().step)
    store.close()
"""


def test_a_handle_belongs_to_its_process(sabotage: Sabotaging, script: Scripting) -> None:
    """The save cannot end before the child has asked: its index is held."""
    held = sabotage(Rule("Call.put", key=".idx", do=HOLD), here=False)
    trainer = script(FORKED_WHILE_HELD, python=held.executable)
    for _ in range(2):
        assert "forked" in trainer.line()
    held.release()
    assert trainer.line() == "1"
    assert trainer.end() == 0, trainer.errors


EXITS = """
    store = open_store(memory=ARGS.get("memory", 24 * states.MIB))
    store.save(1, states.make(1))
    handle = store.save_async(2, states.make(2), defer_staging=ARGS.get("deferred", False))
    say("asked")
    {end}
"""
ENDS = {"falls off the end": "", "sys.exit": "sys.exit(7)", "an exception": "raise LookupError('mine')"}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("deferred", [False, True])
def test_an_end_without_close(
    sabotage: Sabotaging, script: Scripting, open_store: Open, folder: Path, end: str, deferred: bool
) -> None:
    """The last save is committed and the log tells that it was waited for; the exit status is the trainer's own."""
    held = sabotage(Rule("StorePart", key="ckpt-2-", at="io", do=HOLD), here=False)
    trainer = script(EXITS.format(end=ENDS[end]), python=held.executable, deferred=deferred)
    trainer.line()
    held.wait()
    held.release()
    assert trainer.end() == {"sys.exit": 7, "an exception": 1}.get(end, 0)
    assert "was not closed: waiting for 1 save" in trainer.errors
    assert ("LookupError: mine" in trainer.errors) == (end == "an exception")
    trainer.all_gone()
    with open_store(workers=1) as store:
        assert states.same(store.load(), states.make(2))
    assert hidden(folder) == []


def test_an_end_without_close_after_a_failure(sabotage: Sabotaging, script: Scripting, open_store: Open) -> None:
    """Nobody asked the handle: the log tells."""
    held = sabotage(Rule("StorePart", key="ckpt-2-", at="io", do=28), here=False)
    trainer = script(EXITS.format(end=""), python=held.executable)
    assert trainer.end() == 0
    assert "the save of ckpt-2-" in trainer.errors
    assert "No space left on device" in trainer.errors
    with open_store(workers=1) as store:
        assert states.same(store.load(), states.make(1))


INTERRUPTED = """
    store = open_store(memory=ARGS["memory"])
    store.save(1, states.make(1))
    say("asked")
    try:
        store.save(2, states.make(2, 6))
    except KeyboardInterrupt:
        say("interrupted")
    store.save(3, states.make(3))
    say("goes on")
    store.close()
    say("closed")
"""


@pytest.mark.parametrize("memory", [3 * states.MIB, 24 * states.MIB], ids=["staging", "waiting"])
@pytest.mark.parametrize("at", ["start", "io"])
def test_ctrl_c_during_a_save(
    sabotage: Sabotaging, script: Scripting, open_store: Open, folder: Path, memory: int, at: str
) -> None:
    """The interrupt is raised while the worker is still busy, the save is given up, the store goes on."""
    held = sabotage(Rule("StorePart", key="ckpt-2-", at=at, do=HOLD), here=False)
    trainer = script(INTERRUPTED, python=held.executable, memory=memory)
    assert trainer.line() == "asked"
    held.wait()
    trainer.signal_group(signal.SIGINT)
    assert trainer.line() == "interrupted"
    held.release()
    assert [trainer.line(), trainer.line()] == ["goes on", "closed"]
    assert trainer.end() == 0, trainer.errors
    trainer.all_gone()
    with open_store(workers=1) as store:
        assert [info.step for info in store.list()] == [1, 3]
        assert states.same(store.load(), states.make(3))
    assert not [name for name in contents(folder) if "ckpt-2-" in name]
    assert hidden(folder) == []


INTERRUPTED_LOAD = """
    store = open_store()
    state = states.make(1)
    store.save(1, state)
    target = states.zeroed(state)
    say("asked")
    try:
        store.verify() if ARGS["how"] == "verify" else store.load(**({"into": target} if ARGS["how"] == "into" else {}))
    except KeyboardInterrupt:
        say("interrupted")
    assert states.same(store.load(), state)
    store.close()
    say("well")
"""


@pytest.mark.parametrize("how", ["load", "into", "verify"])
def test_ctrl_c_during_a_load(sabotage: Sabotaging, script: Scripting, how: str) -> None:
    """It is raised once no worker can touch the memory any more, which then is let go of."""
    held = sabotage(Rule("Fetch", at="io", do=HOLD), here=False)
    trainer = script(INTERRUPTED_LOAD, python=held.executable, how=how)
    assert trainer.line() == "asked"
    held.wait()
    trainer.signal_group(signal.SIGINT)
    held.release()
    assert [trainer.line(), trainer.line()] == ["interrupted", "well"]
    assert trainer.end() == 0, trainer.errors
    trainer.all_gone()


SIGNALLED = {
    # how the trainer takes the signal -> its code, its status, the step that is the latest afterwards
    "SIGINT, unhandled": ("handle.result()", -signal.SIGINT, 2),
    "SIGTERM, unhandled": ("handle.result()", -signal.SIGTERM, 1),
    "SIGTERM, sys.exit": ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); say('ready'); handle.result()", 5, 2),
    "SIGTERM, ignored": ("signal.signal(signal.SIGTERM, signal.SIG_IGN); say('ready'); handle.result()", 0, 2),
    "SIGINT, ignored": ("signal.signal(signal.SIGINT, signal.SIG_IGN); say('ready'); handle.result()", 0, 2),
}


@pytest.mark.parametrize("case", SIGNALLED)
def test_a_signal_to_the_whole_group_during_the_last_save(
    sabotage: Sabotaging, script: Scripting, open_store: Open, folder: Path, case: str
) -> None:
    """Workers leave the decision to the trainer; if it ends in order, its last save is committed."""
    code, status, latest = SIGNALLED[case]
    held = sabotage(Rule("StorePart", key="ckpt-2-", at="io", do=HOLD), here=False)
    trainer = script(EXITS.format(end=code), python=held.executable)
    assert trainer.line() == "asked"
    if "ready" in code:
        assert trainer.line() == "ready"
    held.wait()
    trainer.signal_group(signal.SIGINT if "SIGINT" in case else signal.SIGTERM)
    if latest == 2:
        if "ignored" not in case:
            trainer.error_line("was not closed")  # the signal has had its effect: the trainer is ending
        held.release()
    assert trainer.end() == status, trainer.errors
    assert not re.search(r"worker \d+ died", trainer.errors)
    trainer.all_gone()
    with open_store(workers=1) as store:
        assert states.same(store.load(), states.make(latest))
        store.save(3, states.make(3))
        store.cleanup(min_age=0)
    assert hidden(folder) == []


WRONG_MODULES = ("socket.py", "json.py", "numpy.py", "queue.py", "s3dlio.py", "awscrt.py", "zstandard.py")


@pytest.mark.parametrize("how", ["beside the working folder", "at the end of sys.path"])
def test_modules_of_the_working_folder(script: Scripting, tmp_path: Path, how: str) -> None:
    """A worker imports the standard library's ``socket`` and our own packages, whatever lies there."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    for name in WRONG_MODULES:
        (folder / name).write_text("raise SystemExit('the wrong module')")
    add = "sys.path.append('')\n    " if how == "at the end of sys.path" else ""
    trainer = script(f"\n    {add}{UNGUARDED.strip()}\n", cwd=folder)
    assert trainer.end() == 0, trainer.errors
    assert trainer.output == "from the top\nwell\n"
    assert "wrong module" not in trainer.errors


def test_a_worker_ends_with_its_store(open_store: Open) -> None:
    """Workers live as long as a store uses them, and no longer."""
    store = open_store()
    store.save(1, states.make(1))
    assert len(workers()) == 2
    store.close()
    until(lambda: workers() == [], "workers of a closed store to end")
