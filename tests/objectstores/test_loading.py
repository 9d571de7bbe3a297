"""One thing breaks while a state is loaded: the right bytes arrive, or an error tells which bytes are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import CorruptError, S3dlioError
from tests.faults import states
from tests.objectstores.checks import new, old
from tests.objectstores.places import INDEX, MANIFEST, MIB, SHARD, Place, get
from tests.servers.faults import (
    Action,
    FlipReply,
    Hang,
    ResetBefore,
    ResetReply,
    Status,
    Truncate,
)

BUSY = Status(503, "SlowDown")
OBJECTS = {"shard": SHARD, "index": INDEX, "manifest": MANIFEST}
FAULTS: list[Action] = [BUSY, Status(500, "InternalError"), ResetBefore(), Truncate(0), Truncate(20), ResetReply(20)]


@pytest.fixture
def store(filled: Place) -> Iterator[CheckpointStore]:
    """A store that holds step 1 and, in three parts, step 2."""
    with filled.open() as opened:
        yield opened


@pytest.fixture
def impatient(filled: Place) -> Iterator[CheckpointStore]:
    """The same, which soon gives up."""
    with filled.open(options={"retry_deadline": 0.5}) as opened:
        yield opened


def told(action: object) -> str | None:
    return str(action) if isinstance(action, Action) else None


@pytest.mark.parametrize("action", [*FAULTS, FlipReply(20)], ids=told)
def test_a_load_survives(filled: Place, store: CheckpointStore, action: Action) -> None:
    """The manifest, the index and a range of the shard are struck, one after the other."""
    rules = {name: filled.proxy.rule(action, times=2, **get(path)) for name, path in OBJECTS.items()}
    assert states.same(store.load(2), new())
    for name, rule in rules.items():
        assert rule.fired == 2, name
        assert len(filled.proxy.requests(**get(OBJECTS[name]))) == (5 if name == "shard" else 3), name


@pytest.mark.parametrize("action", [ResetBefore(), Truncate(0), Truncate(200)], ids=told)
def test_a_listing_survives(filled: Place, store: CheckpointStore, action: Action) -> None:
    """What was cut is no short listing, and no empty store: a clean-up would take away what it does not see listed."""
    for call in (store.list, store.latest, store.cleanup, store.load):
        filled.proxy.clear()
        rule = filled.proxy.rule(action, times=2, **filled.listing)
        found = call()
        assert rule.fired == 2
        if call == store.list:
            assert isinstance(found, list)
            assert [info.step for info in found] == [1, 2]
        elif call == store.latest:
            assert getattr(found, "step", None) == 2
        else:
            assert found == 0 or states.same(found, new())


@pytest.mark.parametrize("action", [Truncate, ResetReply])
def test_a_broken_download_goes_on_where_it_ended(
    filled: Place, store: CheckpointStore, action: Callable[[int], Truncate | ResetReply]
) -> None:
    """From the byte reached, not from the beginning, and however often: what arrives counts as progress."""
    at = 2 * MIB + 7
    rule = filled.proxy.rule(action(at), times=3, **get(SHARD))
    assert states.same(store.load(2), new())
    assert rule.fired == 3
    ranges = filled.ranges()
    assert len(ranges) == 6
    by_end: dict[int, list[int]] = {}
    for first, last in ranges:
        by_end.setdefault(last, []).append(first)
    assert len(by_end) == 3  # chunks
    for starts in by_end.values():
        steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
        if action is Truncate:  # a reset may cost bytes that have arrived
            assert all(MIB <= step <= at for step in steps)
        assert all(0 <= step <= at for step in steps)


@pytest.mark.parametrize("how", ["load", "into", "names", "verify", "read_shard"])
def test_a_bit_that_flips_in_a_range_is_noticed(filled: Place, store: CheckpointStore, how: str) -> None:
    """No store gives a checksum with a range: ours tells, and the range is read again."""
    rule = filled.proxy.rule(FlipReply(MIB), **get(SHARD))
    if how == "verify":
        assert store.verify(2).ok
    elif how == "read_shard":
        assert store.read_shard(2)
    elif how == "names":
        assert states.same(store.load(2, names="noise")["noise"], new()["noise"])
    else:
        into = states.zeroed(new()) if how == "into" else None
        loaded = store.load(2, into=into)
        assert states.same(loaded if into is None else into, new())
    assert rule.fired == 1
    assert len(filled.proxy.requests(**get(SHARD))) == 4


def test_a_bit_that_flips_for_ever_in_a_range_is_corruption(filled: Place, store: CheckpointStore) -> None:
    filled.proxy.rule(FlipReply(MIB), times=None, **get(SHARD))
    with pytest.raises(CorruptError, match=r"shards/ckpt-2-.*rank-0\.bin: bytes \d+\.\.\d+ do not match"):
        store.load(2)
    filled.proxy.clear()
    assert states.same(store.load(2), new())
    assert states.same(store.load(1), old())


@pytest.mark.slow
@pytest.mark.parametrize("object_", ["index", "manifest"])
def test_a_bit_that_flips_for_ever_in_a_small_object_is_told(
    filled: Place, impatient: CheckpointStore, object_: str
) -> None:
    filled.proxy.rule(FlipReply(20), times=None, **get(OBJECTS[object_]))
    with pytest.raises(S3dlioError, match=r"ckpt-2-"):
        impatient.load(2)
    filled.proxy.clear()
    assert states.same(impatient.load(2), new())
    assert states.same(impatient.load(1), old())


@pytest.mark.slow
@pytest.mark.parametrize(("object_", "code"), [("shard", 503), ("index", 500), ("manifest", 500)])
def test_a_refusal_for_ever_is_told(filled: Place, impatient: CheckpointStore, object_: str, code: int) -> None:
    name = filled.busy if code == 503 else "InternalError"
    filled.proxy.rule(Status(code, name), times=None, **get(OBJECTS[object_]))
    with pytest.raises(S3dlioError, match=rf"ckpt-2-.* failed \d+ times in .* s, the last time with: .*{name}"):
        impatient.load(2)
    filled.proxy.clear()
    assert states.same(impatient.load(2), new())
    assert states.same(impatient.load(1), old())


@pytest.mark.slow
@pytest.mark.parametrize("object_", ["shard", "manifest"])
def test_a_download_that_hangs_is_begun_again(filled: Place, object_: str) -> None:
    with filled.open(options={"read_timeout": 0.7}) as store:
        rule = filled.proxy.rule(Hang(), **get(OBJECTS[object_]))
        assert states.same(store.load(2), new())
        assert rule.fired == 1


@pytest.mark.slow
def test_a_store_that_hangs_for_ever_is_told(filled: Place) -> None:
    with filled.open(options={"read_timeout": 0.4, "retry_deadline": 0.8}) as store:
        filled.proxy.rule(Hang(), times=None, **get(SHARD))
        with pytest.raises(S3dlioError, match=r"ckpt-2-.* failed \d+ times in .*[Tt]ime.?out"):
            store.load(2)
        filled.proxy.clear()
        assert states.same(store.load(2), new())
