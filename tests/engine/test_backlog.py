"""The supervisor's queue: who goes next, and who is taken back."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.backlog import Backlog, Sent, is_remote, priority
from s3dlio.engine.contract import Location
from s3dlio.engine.errors import S3dlioError
from s3dlio.engine.messages import (
    Abort,
    Begin,
    Call,
    Complete,
    Encode,
    Fetch,
    Inflate,
    Populate,
    PutWhole,
    Span,
    StorePart,
    Task,
)

SPAN = Span(0, 0, 1)
FILE = Location("file", "/checkpoints")
S3 = Location("s3", "bucket/prefix")
AZ = Location("az", "account/container")
BEGIN, ENCODE, POPULATE = Begin(FILE, "key", 1), Encode("zstd", 1, SPAN, None), Populate(SPAN)


def part(location: Location, number: int = 1) -> StorePart:
    return StorePart(location, "key", "upload", number, 0, (SPAN,), False)


def fetch(location: Location) -> Fetch:
    return Fetch(location, "key", 0, 1, "none", 1, None, SPAN)


class Job:
    """Somebody who has tasks; equal to any other, for only identity counts."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job)

    __hash__ = None  # type: ignore[assignment]

    def on_done(self, token: Hashable, value: object) -> None:
        raise AssertionError("a queue answers nobody")

    def on_failed(self, token: Hashable, error: S3dlioError) -> None:
        raise AssertionError("a queue answers nobody")


def filled(*tasks: Task, owner: Job | None = None) -> Backlog:
    """The tasks under the tokens 0, 1, 2 ..."""
    backlog, owner = Backlog(), owner or Job()
    for token, task in enumerate(tasks):
        backlog.add(owner, token, task)
    return backlog


def tokens(backlog: Backlog) -> list[Hashable]:
    return [sent.token for sent in backlog.drain()]


def pop(backlog: Backlog, *, local: bool = True, remote: bool = True) -> Sent | None:
    return backlog.pop(lambda kind: remote if kind else local)


def test_an_empty_queue_has_nothing() -> None:
    backlog = Backlog()
    assert not backlog
    assert pop(backlog) is None
    assert backlog.withdraw(Job()) == []
    assert tokens(backlog) == []


@pytest.mark.parametrize("location", [FILE, S3])
def test_what_frees_memory_goes_before_what_fills_it(location: Location) -> None:
    backlog = filled(
        POPULATE, fetch(location), ENCODE, PutWhole(location, "key", (SPAN,), False), part(location), BEGIN
    )
    assert tokens(backlog) == [5, 3, 4, 1, 2, 0]


def test_commits_and_lookups_wait_for_nobody() -> None:
    first: list[Task] = [
        Begin(S3, "key", None),
        Complete(S3, "key", "upload", ()),
        Abort(S3, "key", "upload"),
        Call(S3, "head", ("key",)),
    ]
    assert {priority(task) for task in first} == {0}
    assert tokens(filled(part(S3), *first)) == [1, 2, 3, 4, 0]


def test_equals_go_in_the_order_they_came() -> None:
    assert tokens(filled(*(part(S3, number) for number in range(1, 50)))) == list(range(49))


def test_the_network_is_told_from_cores_and_disks() -> None:
    remote: list[Task] = [part(S3), part(AZ), fetch(S3), Call(AZ, "limits"), Inflate(S3, "key", 1, 0, 1)]
    local: list[Task] = [part(FILE), fetch(Location("direct", "/x")), ENCODE, POPULATE, Call(FILE, "limits")]
    assert [is_remote(task) for task in remote + local] == [True] * 5 + [False] * 5


def test_a_kind_without_room_holds_up_no_other() -> None:
    backlog = filled(part(S3), ENCODE, part(AZ), POPULATE)
    sent = [pop(backlog, remote=False), pop(backlog, remote=False), pop(backlog, remote=False)]
    assert [each and each.token for each in sent] == [1, 3, None]
    assert pop(backlog, local=False, remote=False) is None
    assert backlog
    assert tokens(backlog) == [0, 2]


def test_room_for_both_is_given_to_the_more_urgent() -> None:
    backlog = filled(ENCODE, part(S3), part(FILE), fetch(S3))
    assert tokens(backlog) == [1, 2, 0, 3]


def test_a_popped_task_is_as_it_was_added() -> None:
    owner = Job()
    sent = pop(filled(part(S3), owner=owner))
    assert sent is not None
    assert (sent.owner is owner, sent.token, sent.task, sent.remote) == (True, 0, part(S3), True)
    assert (sent.sends, sent.limit, sent.deadline, sent.stuck) == (0, 0.0, 0.0, 0)


def test_a_task_put_back_keeps_its_place() -> None:
    backlog = filled(part(S3, 1), part(S3, 2), part(S3, 3), ENCODE)
    first, second = pop(backlog), pop(backlog)
    assert first is not None
    assert second is not None
    first.sends = 1
    backlog.add(Job(), "late", part(S3, 4))
    backlog.put_back(second)
    backlog.put_back(first)
    sent = list(backlog.drain())
    assert [each.token for each in sent] == [0, 1, 2, "late", 3]
    assert sent[0] is first


def test_withdraw_takes_the_owners_alone_in_their_order() -> None:
    mine, other = Job(), Job()
    backlog = Backlog()
    owners = [mine, other, mine, mine, other, mine]
    tasks: list[Task] = [ENCODE, part(S3), part(S3), BEGIN, POPULATE, POPULATE]
    for number, (owner, task) in enumerate(zip(owners, tasks, strict=True)):
        backlog.add(owner, number, task)
    assert backlog.withdraw(mine) == [3, 2, 0, 5]
    assert backlog.withdraw(mine) == []
    assert tokens(backlog) == [1, 4]


def test_drain_takes_what_is_added_meanwhile() -> None:
    backlog, owner = filled(BEGIN, part(S3)), Job()
    seen: list[Hashable] = []
    for sent in backlog.drain():
        seen.append(sent.token)
        if sent.token == 0:
            backlog.add(owner, "abort", Abort(S3, "key", "upload"))
    assert seen == [0, "abort", 1]
    assert not backlog


@given(seed=st.integers(0, 10_000))
def test_it_is_a_sorted_list(seed: int) -> None:
    """Against the plain form of the same promises: a list, sorted by urgency and arrival."""
    chance = random.Random(seed)
    kinds: list[Task] = [BEGIN, ENCODE, POPULATE, part(S3), part(FILE), fetch(S3), fetch(FILE), Call(S3, "head")]
    owners = [Job(), Job(), Job()]
    backlog = Backlog()
    model: list[tuple[int, int, bool, int]] = []  # urgency, token, remote, owner
    sent: list[tuple[Sent, tuple[int, int, bool, int]]] = []
    for token in range(60):
        match chance.randrange(6):
            case 0 | 1 | 2:
                task = kinds[chance.randrange(len(kinds))]
                owner = chance.randrange(3)
                backlog.add(owners[owner], token, task)
                model.append((priority(task), token, is_remote(task), owner))
            case 3:
                rooms = {False: chance.random() < 0.7, True: chance.random() < 0.7}
                expected = min((entry for entry in model if rooms[entry[2]]), default=None)
                found = backlog.pop(rooms.__getitem__)
                assert (found and found.token) == (expected and expected[1])
                if found and expected:
                    model.remove(expected)
                    sent.append((found, expected))
            case 4 if sent:
                again, entry = sent.pop(chance.randrange(len(sent)))
                backlog.put_back(again)
                model.append(entry)
            case 5 if chance.random() < 0.3:
                owner = chance.randrange(3)
                assert backlog.withdraw(owners[owner]) == [entry[1] for entry in sorted(model) if entry[3] == owner]
                model = [entry for entry in model if entry[3] != owner]
        assert bool(backlog) == bool(model)
    assert tokens(backlog) == [entry[1] for entry in sorted(model)]
