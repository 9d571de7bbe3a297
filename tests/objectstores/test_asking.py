"""What a store can do is asked once by the workers of a pool, whichever of them dies, and leaves nothing for ever."""

from __future__ import annotations

import os
import signal
import time

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.contract import PROBE
from s3dlio.leftovers import find_leftovers, remove_leftovers
from tests.faults.waiting import until
from tests.objectstores.checks import commits, new, old, unharmed
from tests.objectstores.conftest import Scripting
from tests.objectstores.places import MIB, Place, Which
from tests.servers.faults import Hold
from tests.store.live import worker_pids

pytestmark = pytest.mark.slow

TRAINER = """
    store = open_store(options=ARGS["options"], memory=64 * states.MIB, chunk_size=5 * states.MIB)
    store.save(1, states.make(1, 1))
"""


def asking(place: Place) -> Which:
    """The request that begins the question about checksums."""
    begins = {"method": "POST", "query": "uploads"} if place.kind == "s3" else {"header": "^x-ms-content-crc64:"}
    return {"path": PROBE, **begins}


def checking(place: Place) -> Which:
    """A request that comes when the store holds what it was asked with."""
    if place.kind == "s3":
        return {"method": "PUT", "path": PROBE, "header": "^if-match:"}
    return {"path": PROBE, "header": "^content-md5:"}


def clean(store: CheckpointStore) -> int:
    """Clean up an hour from now."""
    control = store.control()
    found = find_leftovers(control, min_age=0, now=time.time() + 3600, each=control.each)
    return remove_leftovers(control, found, control.each)


def test_a_pool_asks_once(place: Place) -> None:
    with place.open(memory=48 * MIB, connections=1) as store:  # a pool of its own, whose workers store one part each
        held = place.proxy.rule(Hold(), times=2, **place.part())
        handle = store.save_async(2, new())
        held.wait(2)  # both are at it
        held.release()
        handle.result()
        for step in range(3, 7):
            store.save(step, old())
    assert len(place.proxy.requests(**asking(place))) == 1
    asked = len(place.proxy.requests(path=PROBE))
    assert asked == {"s3": 6 + 5, "az": 2}[place.kind]  # checksums and, of S3, conditions
    assert place.keys(PROBE) == []


def test_a_worker_that_dies_while_it_asks_holds_nobody_up(place: Place) -> None:
    with place.open(memory=48 * MIB) as store:
        held = place.proxy.rule(Hold(), **asking(place))
        handle = store.save_async(1, old())
        held.wait()
        for pid in worker_pids(store):
            os.kill(pid, signal.SIGKILL)
        assert handle.result().step == 1
        held.release()  # what the dead worker had sent arrives late
        if place.kind == "s3":
            until(place.uploads, "the upload to be begun")
            assert clean(store) == 1
        commits(place, store)


def test_what_the_dead_left_is_no_checkpoint_and_is_cleaned_up(place: Place, script: Scripting) -> None:
    held = place.proxy.rule(Hold(), **checking(place))
    trainer = script(place, TRAINER)
    held.wait()
    trainer.signal_group(signal.SIGKILL)
    trainer.all_gone()
    place.proxy.clear()
    left = place.keys(PROBE)
    assert len(left) == (1 if place.kind == "s3" else 0)  # Azure has a block of it, for a week, and no blob
    with place.open() as store:
        assert store.list() == []
        assert store.cleanup(min_age=0) == 0  # somebody may be asking now
        assert clean(store) == len(left)
        assert place.keys(PROBE) == []
        store.save(1, old())
        clean(store)  # its shard
        unharmed(place, store, [1])
