"""Workers and trainers are killed, and saves cancelled, while a part is on its way: nothing is harmed, little is left.

The proxy holds a part, so that it is in the middle of its request when the process dies.
"""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import CancelledError
from tests.faults import states
from tests.faults.processes import workers
from tests.faults.waiting import until
from tests.objectstores.checks import commits, new, old, unharmed
from tests.objectstores.conftest import Scripting
from tests.objectstores.places import INDEX, MANIFEST, MIB, Place, get, put
from tests.servers.faults import Hang, Hold
from tests.store.live import worker_pids

pytestmark = pytest.mark.slow

TRAINER = """
    store = open_store(options=ARGS["options"], memory=64 * states.MIB, chunk_size=5 * states.MIB)
    store.save(2, states.noise(2, 12))
"""
SOME = 2
"""Workers of a store."""


def kill_workers(store: CheckpointStore) -> None:
    """SIGKILL those of this store's pool."""
    pids = worker_pids(store)
    assert len(pids) == SOME
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("request_", ["part", "complete", "index", "manifest"])
def test_a_worker_is_killed_while_it_stores(place: Place, request_: str) -> None:
    """Others do its work again."""
    which = {
        "part": place.part(2),
        "complete": place.complete,
        "index": put(INDEX),
        "manifest": put(MANIFEST),
    }[request_]
    with place.open(memory=48 * MIB) as store:  # a pool of its own
        store.save(1, old())
        held = place.proxy.rule(Hold(), **which)
        handle = store.save_async(2, new())
        held.wait()
        kill_workers(store)
        assert handle.result().step == 2
        assert len(place.proxy.requests(**which)) > 1
        held.release()  # what the dead worker had sent arrives late, and changes nothing
        assert states.same(store.load(), new())
        unharmed(place, store, [1, 2])


def test_a_worker_is_killed_while_it_loads(place: Place) -> None:
    with place.open(memory=48 * MIB) as store:
        store.save(1, old())
        commits(place, store)
        held = place.proxy.rule(Hold(), times=2, **get(r"ckpt-2-.*rank-0\.bin$"))
        loaded: list[object] = []
        thread = threading.Thread(target=lambda: loaded.append(store.load(2)))
        thread.start()
        held.wait(2)
        kill_workers(store)
        thread.join()
        held.release()
        assert states.same(loaded[0], new())


def test_the_trainer_is_killed_in_the_middle_of_an_upload(place: Place, script: Scripting) -> None:
    """Its workers drop the upload, and end."""
    with place.open() as store:
        store.save(1, old())
        held = place.proxy.rule(Hold(), times=None, **place.part())
        trainer = script(place, TRAINER)
        held.wait(3)
        assert len(workers(trainer.pid)) == SOME
        assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
        trainer.all_gone()
        unharmed(place, store, [1])
        assert place.keys("ckpt-2-") == []
        place.proxy.clear()
        commits(place, store)


def test_the_trainer_and_its_workers_are_killed_in_the_middle_of_an_upload(
    place: Place, script: Scripting, caplog: pytest.LogCaptureFixture
) -> None:
    """As by the machine's end: the upload is left, is no checkpoint, and is found by the clean-up."""
    caplog.set_level(logging.INFO, "s3dlio")
    with place.open() as store:
        store.save(1, old())
        held = place.proxy.rule(Hold(), skip=1, times=None, **place.part())
        trainer = script(place, TRAINER)
        held.wait(2)
        until(place.uploads, "a part to be stored")
        trainer.signal_group(signal.SIGKILL)
        trainer.all_gone()
        place.proxy.clear()
        (orphan,) = place.uploads()
        assert "ckpt-2-" in orphan
        assert [info.step for info in store.list()] == [1]
        assert states.same(store.load(), old())
        assert store.cleanup(min_age=0) == 0  # it might be a save in progress: no newer one was committed
        assert place.uploads() == [orphan]
        store.save(3, new())
        caplog.clear()
        removed = store.cleanup(min_age=0)
        if place.kind == "s3":
            assert (removed, place.uploads()) == (1, [])
        else:
            assert (removed, place.uploads()) == (0, [orphan])
            assert "1 unfinished uploads cannot be dropped here" in caplog.text
            assert "Azure drops the blocks of the upload" in caplog.text
        assert states.same(store.load(), new())
        unharmed(place, store, [1, 3])


def test_the_trainer_is_killed_before_it_commits(place: Place, script: Scripting) -> None:
    """All is stored but the manifest: there is no checkpoint, and the clean-up removes what is there."""
    with place.open() as store:
        store.save(1, old())
        held = place.proxy.rule(Hang(), **put(MANIFEST))
        trainer = script(place, TRAINER)
        held.wait()
        trainer.signal_group(signal.SIGKILL)
        trainer.all_gone()
        place.proxy.clear()
        assert [info.step for info in store.list()] == [1]
        assert states.same(store.load(), old())
        store.save(3, old())
        assert len(place.keys("ckpt-2-")) == 2
        assert store.cleanup(min_age=0) == 2
        assert place.keys("ckpt-2-") == []
        unharmed(place, store, [1, 3])


def test_a_save_is_cancelled_in_the_middle_of_an_upload(place: Place) -> None:
    with place.open() as store:
        store.save(1, old())
        held = place.proxy.rule(Hold(), **place.part(2))
        handle = store.save_async(2, new())
        held.wait()
        assert handle.cancel()
        held.release()
        with pytest.raises(CancelledError, match="ckpt-2-"):
            handle.result()
        unharmed(place, store, [1])
        assert place.keys("ckpt-2-") == []
        commits(place, store)


def test_a_store_is_closed_in_the_middle_of_an_upload(place: Place) -> None:
    """It waits for the save."""
    with place.open() as store:
        store.save(1, old())
        held = place.proxy.rule(Hold(), **place.part(2))
        handle = store.save_async(2, new())
        held.wait()
        held.release()
    assert handle.done()
    with place.open() as store:
        assert states.same(store.load(), new())
        unharmed(place, store, [1, 2])
