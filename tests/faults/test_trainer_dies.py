"""The trainer is SIGKILLed at every point: what is committed loads, what is torn is invisible, nothing lives.

The workers are held at an exact place of an exact task (see ``injected``), the trainer dies, and its workers must end
by themselves: the store is then as that place left it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from s3dlio import CheckpointStore
from tests.faults import states
from tests.faults.conftest import Open, Sabotaging, Scripting
from tests.faults.folders import unfinished
from tests.faults.injected import HOLD, Rule
from tests.faults.processes import marked, our_memory, workers
from tests.faults.waiting import until

pytestmark = pytest.mark.slow

SAVE = """
    store = open_store(**ARGS["options"])
    say("open")
    store.save(2, states.make(2, 6))
    say("saved")
"""
TINY: dict[str, object] = {"memory": 4 * states.MIB}
Place = tuple[str, Rule, dict[str, object]]
OLD: list[Place] = [
    ("staging", Rule("StorePart", at="io", do=HOLD), TINY),
    ("begin", Rule("Begin", do=HOLD), {}),
    ("begun", Rule("Begin", at="end", do=HOLD), {}),
    ("encoding", Rule("Encode", at="codec", do=HOLD), {"compression": "zstd-grouped"}),
    ("storing", Rule("StorePart", at="io", do=HOLD, times=4), {}),
    ("one request", Rule("PutWhole", at="io", do=HOLD), {"multipart_threshold": 64 << 20}),
    ("completing", Rule("Complete", do=HOLD), {}),
    ("shard named", Rule("Complete", at="named", do=HOLD), {}),
    ("shard stored", Rule("Complete", at="end", do=HOLD), {}),
    ("index", Rule("Call.put", key=".idx", at="io", do=HOLD), {}),
    ("index stored", Rule("Call.put", key=".idx", at="end", do=HOLD), {}),
    ("checking", Rule("Call.head", key="rank-0.bin", do=HOLD), {}),
    ("manifest", Rule("Call.put", key="manifests/ckpt-2-", do=HOLD), {}),
    ("manifest written", Rule("Call.put", key="manifests/ckpt-2-", at="io", do=HOLD), {}),
]
NEW: list[Place] = [
    ("manifest named", Rule("Call.put", key="manifests/ckpt-2-", at="named", do=HOLD), {}),
    ("manifest stored", Rule("Call.put", key="manifests/ckpt-2-", at="end", do=HOLD), {}),
    ("pointer", Rule("Call.put", key="manifests/latest.json", do=HOLD), {}),
    ("pointer written", Rule("Call.put", key="manifests/latest.json", at="io", do=HOLD), {}),
    ("pointer named", Rule("Call.put", key="manifests/latest.json", at="named", do=HOLD), {}),
    ("second pointer", Rule("Call.put", key="latest.json", skip=1, do=HOLD), {}),
]


@pytest.mark.parametrize(
    ("newest", "rule", "options"),
    [(1, rule, options) for _, rule, options in OLD] + [(2, rule, options) for _, rule, options in NEW],
    ids=[name for name, *_ in OLD + NEW],
)
def test_killed_while(
    open_store: Open,
    sabotage: Sabotaging,
    script: Scripting,
    folder: Path,
    newest: int,
    rule: Rule,
    options: dict[str, object],
) -> None:
    """Until the manifest has its name the old checkpoint is the latest, from then on the new one."""
    with open_store(workers=1) as store:
        store.save(1, states.make(1))
        held = sabotage(rule, here=False)
        trainer = script(SAVE, python=held.executable, options=options)
        assert trainer.line() == "open"
        held.wait(times=rule.times)
        assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
        trainer.all_gone()
        check_after(store, folder, newest)


def check_after(store: CheckpointStore, folder: Path, newest: int) -> None:
    """The old one is whole, the torn one invisible; the next save is the latest, and a clean-up leaves nothing."""
    sizes = {1: 3, 2: 6}
    assert [info.step for info in store.list()] == list(range(1, newest + 1))
    for step in range(1, newest + 1):
        assert states.same(store.load(step), states.make(step, sizes[step]))
        assert store.verify(step).ok
    latest = store.latest()
    assert latest is not None
    assert latest.step == newest
    assert states.same(store.load(), states.make(newest, sizes[newest]))
    store.save(3, states.make(3))
    store.cleanup(min_age=0)
    assert states.same(store.load(), states.make(3))
    assert unfinished(folder) == []
    shards = {path.parent.name for path in folder.glob("shards/*/*")}
    assert shards == {info.id for info in store.list()}


def test_killed_at_rest(open_store: Open, script: Scripting, folder: Path) -> None:
    """With workers idle: nothing to tear, but processes and memory to let go of."""
    with open_store(workers=1) as store:
        store.save(1, states.make(1))
        trainer = script(
            """
            store = open_store()
            store.warmup()
            handle = store.save_async(2, states.make(2, 6))
            handle.result()
            say("done")
            signal.pause()
            """
        )
        trainer.line()
        assert len(workers(trainer.pid)) == 2
        assert any(our_memory(pid) for pid in workers(trainer.pid))
        trainer.end(signal.SIGKILL)
        trainer.all_gone()
        check_after(store, folder, 2)


OTHERWISE = """
    store = open_store(memory=ARGS["memory"])
    say("open")
    {doing}
    signal.pause()
"""
DOINGS: dict[str, tuple[str, Rule, int]] = {
    # what the trainer is doing -> its code, where its workers are held, the memory number
    "deferred staging": (
        "store.save_async(2, states.make(2, 6), defer_staging=True)",
        Rule("StorePart", key="ckpt-2-", at="io", do=HOLD),
        4 * states.MIB,
    ),
    "a stream": (
        "stream = store.writer(1, 0).get_distributed_shard_stream(2, 0, ''); stream.write_chunk(bytes(5 << 20))",
        Rule("StorePart", key="ckpt-2-", at="io", do=HOLD),
        24 * states.MIB,
    ),
    "warming up": ("store.warmup()", Rule("Populate", do=HOLD), 24 * states.MIB),
    "loading": ("store.load()", Rule("Fetch", at="io", do=HOLD), 24 * states.MIB),
    "loading into": (
        "store.load(into=states.zeroed(states.make(1)))",
        Rule("Fetch", at="io", do=HOLD),
        24 * states.MIB,
    ),
    "verifying": ("store.verify()", Rule("Fetch", at="io", do=HOLD), 24 * states.MIB),
}


@pytest.mark.parametrize("doing", DOINGS)
def test_killed_while_doing_something_else(
    open_store: Open, sabotage: Sabotaging, script: Scripting, folder: Path, doing: str
) -> None:
    """It changes nothing that is committed, and its workers end though they are held."""
    code, rule, memory = DOINGS[doing]
    with open_store(workers=1) as store:
        store.save(1, states.make(1))
        held = sabotage(rule, here=False)
        trainer = script(OTHERWISE.format(doing=code), python=held.executable, memory=memory)
        assert trainer.line() == "open"
        held.wait()
        assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
        trainer.all_gone()
        check_after(store, folder, 1)


DELETE = """
    store = open_store()
    say("open")
    store.delete(2)
"""
DELETED: list[tuple[str, Rule, bool]] = [
    # where -> the rule, and whether the checkpoint is still there afterwards
    ("pointer", Rule("Call.put", key="manifests/latest.json", at="io", do=HOLD), True),
    ("manifest", Rule("Call.delete", key="manifests/ckpt-2-", do=HOLD), True),
    ("manifest gone", Rule("Call.delete", key="manifests/ckpt-2-", at="end", do=HOLD), False),
    ("shard", Rule("Call.delete", key="rank-0.bin", do=HOLD), False),
    ("index", Rule("Call.delete", key="rank-0.idx", at="end", do=HOLD), False),
]


@pytest.mark.parametrize(("rule", "there"), [(rule, there) for _, rule, there in DELETED], ids=[n for n, *_ in DELETED])
def test_killed_while_deleting(
    open_store: Open, sabotage: Sabotaging, script: Scripting, folder: Path, rule: Rule, there: bool
) -> None:
    """The checkpoint is there whole, or it is not there: a clean-up finds what is left of it."""
    with open_store(workers=1) as store:
        store.save(1, states.make(1))
        store.save(2, states.make(2, 6))
        held = sabotage(rule, here=False)
        trainer = script(DELETE, python=held.executable)
        assert trainer.line() == "open"
        held.wait()
        assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
        trainer.all_gone()
        check_after(store, folder, 2 if there else 1)


FORK = """
    import multiprocessing, threading, time
    store = open_store()
    def live():
        say("child", os.getpid())
        signal.pause()
    def fork():
        if not os.fork():
            live()
    def process():
        multiprocessing.get_context("fork").Process(target=live).start()
    how = {"fork": fork, "process": process}[ARGS["how"]]
    how()               # before there are workers
    store.save(1, states.make(1))
    how()               # while they live
    loaded = store.load()
    how()               # with a load's memory mapped
    store.save(2, states.make(2, 6))
"""


@pytest.mark.parametrize("how", ["fork", "process"])
def test_killed_while_its_forked_children_live(
    sabotage: Sabotaging, script: Scripting, open_store: Open, folder: Path, how: str
) -> None:
    """As a DataLoader's workers outlive their trainer: they keep neither our workers nor our memory alive."""
    held = sabotage(Rule("StorePart", key="ckpt-2-", at="io", do=HOLD), here=False)
    trainer = script(FORK, python=held.executable, how=how)
    children = {int(trainer.line().removeprefix("child ")) for _ in range(3)}
    held.wait()
    trainer.process.kill()
    trainer.process.wait()
    until(lambda: set(marked(trainer.mark)) == children, "workers to end though their trainer's children live")
    for child in children:
        arena = [held for held in our_memory(child) if "s3dlio-arena" in held]
        assert arena == []
        os.kill(child, signal.SIGKILL)
    trainer.all_gone()
    with open_store(workers=1) as store:
        check_after(store, folder, 1)
