"""States of the catalogue, and what must hold of a store after any fault."""

from __future__ import annotations

from functools import cache
from typing import Any

from s3dlio import CheckpointInfo, CheckpointStore
from tests.faults import states
from tests.objectstores.places import Place


def old() -> dict[str, Any]:
    """The state of step 1, stored before anything breaks: small enough for one request."""
    return states.make(1, 1)


@cache
def new() -> dict[str, Any]:
    """The state of step 2, of three parts. Callers share it: change nothing in it."""
    return states.noise(2, 12)


def commits(place: Place, store: CheckpointStore, state: Any = None) -> CheckpointInfo:
    """Save step 2 in spite of the fault: what is stored and what is loaded are the right bytes."""
    state = new() if state is None else state
    info = store.save(2, state)
    assert info.step == 2
    assert states.same(store.load(), state)
    unharmed(place, store, [1, 2])
    return info


def unharmed(place: Place, store: CheckpointStore, steps: list[int]) -> None:
    """The old checkpoint loads, no other than ``steps`` is listed, and nothing half-written is there."""
    assert [info.step for info in store.list()] == steps
    assert states.same(store.load(1), old())
    listed = {key for info in store.list() for key in place.keys(info.id)}
    assert set(place.keys("shards/")) <= listed
    if place.kind == "s3":  # Azure has no call that drops blocks
        assert place.uploads() == []
