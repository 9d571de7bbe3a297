"""One thing breaks while a state is saved, and the save succeeds: the right bytes are stored, nothing else is left."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.faults import states
from tests.objectstores.checks import commits, new, old, unharmed
from tests.objectstores.places import INDEX, MANIFEST, MIB, POINTER, SHARD, Place, Which, put
from tests.servers.faults import (
    Action,
    ErrorIn200,
    FlipRequest,
    Hang,
    LostReply,
    ResetBefore,
    ResetMid,
    Status,
)

BUSY = Status(503, "SlowDown")
BROKEN = Status(500, "InternalError")
REQUESTS: dict[str, Callable[[Place], Which]] = {
    "part": lambda place: place.part(2),
    "complete": lambda place: place.complete,
    "index": lambda _: put(INDEX),
    "manifest": lambda _: put(MANIFEST),
    "pointer": lambda _: put(POINTER),
}
EVERYWHERE = tuple(REQUESTS)
BODIES = ("part", "index", "manifest", "pointer")
FAULTS: list[tuple[Action, tuple[str, ...], int]] = [
    (BUSY, EVERYWHERE, 2),
    (BROKEN, EVERYWHERE, 1),
    (ResetBefore(), EVERYWHERE, 1),
    (ResetMid(20), BODIES, 1),
    (ResetMid(2 * MIB), ("part",), 1),
    (LostReply(), EVERYWHERE, 1),
    (FlipRequest(20), BODIES, 1),
    (FlipRequest(3 * MIB), ("part",), 1),
]


def told(value: object) -> str | None:
    return str(value) if isinstance(value, Action) else None


@pytest.mark.parametrize(("action", "requests", "times"), FAULTS, ids=told)
def test_a_save_survives(place: Place, action: Action, requests: tuple[str, ...], times: int) -> None:
    """Each of the requests that make a checkpoint is struck, one after the other."""
    with place.open() as store:
        store.save(1, old())
        place.proxy.clear()
        chosen = {name: REQUESTS[name](place) for name in requests}
        rules = {name: place.proxy.rule(action, times=times, **which) for name, which in chosen.items()}
        info = commits(place, store)
        assert info.verified == "crc64nvme"
        for key in ("manifests/latest.json", "latest.json"):
            assert json.loads(place.read(key))["manifest_key"] == info.manifest_key
        for name, rule in rules.items():
            assert rule.fired == times, name
            # Before it asks Azure again to make a blob of blocks, it looks whether that was done.
            asked_first = place.kind == "az" and name == "complete" and isinstance(action, LostReply)
            assert len(place.proxy.requests(**chosen[name])) == (1 if asked_first else times + 1), name


def test_a_shard_in_one_request_survives(place: Place) -> None:
    """What is damaged on its way is refused by the store and sent again; what was stored unheard is stored again."""
    which = {"method": "PUT", "path": SHARD}
    with place.open(multipart_threshold=64 * MIB) as store:
        store.save(1, old())
        rules = [
            place.proxy.rule(action, **which)  # type: ignore[arg-type]
            for action in (FlipRequest(3 * MIB), LostReply(), ResetMid(5 * MIB), BUSY)
        ]
        assert commits(place, store).verified == "crc64nvme"
        assert [rule.fired for rule in rules] == [1, 1, 1, 1]
        assert len(place.proxy.requests(**which)) == 5


def test_an_error_within_a_success(place: Place) -> None:
    """As CompleteMultipartUpload may answer; of Azure nothing like it is known, and it is none either."""
    with place.open() as store:
        store.save(1, old())
        rule = place.proxy.rule(ErrorIn200(), times=2, **place.complete)
        commits(place, store)
        assert rule.fired == 2


def test_every_part_is_damaged_once(place: Place) -> None:
    with place.open() as store:
        store.save(1, old())
        rules = [place.proxy.rule(FlipRequest(MIB), **place.part(number)) for number in (1, 2, 3)]
        commits(place, store)
        assert [rule.fired for rule in rules] == [1, 1, 1]
        assert len(place.proxy.requests(**place.part())) == 6


def test_a_save_of_compressed_chunks_survives(place: Place) -> None:
    state = states.make(2, 24)
    with place.open(compression="zstd-grouped") as store:
        store.save(1, old())
        rules = [
            place.proxy.rule(LostReply(), **place.part(1)),
            place.proxy.rule(FlipRequest(MIB), **place.part(1)),
            place.proxy.rule(LostReply(), **place.complete),
        ]
        commits(place, store, state)
        assert [rule.fired for rule in rules] == [1, 1, 1]


def test_a_stream_survives(place: Place) -> None:
    """A shard that is uploaded while its bytes still come."""
    body = new()["noise"].tobytes()
    with place.open() as store:
        store.save(1, old())
        rules = [
            place.proxy.rule(ResetMid(MIB), **place.part(1)),
            place.proxy.rule(FlipRequest(MIB), **place.part(2)),
            place.proxy.rule(LostReply(), **place.complete),
        ]
        writer = store.writer(1, 0)
        stream = writer.get_distributed_shard_stream(2, 0, "torch")
        for at in range(0, len(body), 3 * MIB):
            stream.write_chunk(body[at : at + 3 * MIB])
        rules[1].wait()  # two parts have left, and nobody has said yet that there are no more bytes
        writer.finalize_distributed_checkpoint(2, 0, "torch", [stream.finalize()])
        assert bytes(store.load()) == body
        assert [rule.fired for rule in rules] == [1, 1, 1]
        unharmed(place, store, [1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("request_", ["part", "complete", "manifest"])
def test_a_request_that_hangs_is_sent_again(place: Place, request_: str) -> None:
    with place.open(options={"read_timeout": 0.7}) as store:
        store.save(1, old())
        rule = place.proxy.rule(Hang(), **REQUESTS[request_](place))
        commits(place, store)
        assert rule.fired == 1
