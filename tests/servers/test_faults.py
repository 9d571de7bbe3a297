"""The rules of the fault proxy, without sockets."""

from __future__ import annotations

import threading

import pytest

from tests.servers.faults import Action, Hold, Match, ResetBefore, Rule, Rules, Status


def rule(
    action: Action | None = None,
    *,
    match: Match = Match(),  # noqa: B008  # frozen
    times: int | None = 1,
    skip: int = 0,
    probability: float = 1.0,
) -> Rule:
    return Rule(action or ResetBefore(), match, times, skip, probability)


def picks(rules: Rules, count: int, method: str = "GET") -> list[bool]:
    return [rules.pick(method, "/b/k", "", {}) is not None for _ in range(count)]


def test_a_rule_fires_once_after_those_it_skips() -> None:
    rules = Rules(seed=0)
    rules.add(rule(skip=2, times=1))
    assert picks(rules, 5) == [False, False, True, False, False]


def test_a_rule_without_count_fires_for_ever() -> None:
    rules = Rules(seed=0)
    rules.add(endless := rule(times=None))
    assert all(picks(rules, 20))
    assert endless.fired == 20


@pytest.mark.parametrize(
    ("match", "taken"),
    [
        (Match(), True),
        (Match(method="PUT"), True),
        (Match(method="GET"), False),
        (Match(path="shards/.*bin$"), True),
        (Match(path="^shards"), False),
        (Match(query=r"partNumber=3\b"), True),
        (Match(query="partNumber=4"), False),
        (Match(header=r"^if-none-match: \*$"), True),
        (Match(header="^if-match"), False),
        (Match("PUT", "shards", "partNumber", "if-none"), True),
        (Match("PUT", "shards", "uploads", "if-none"), False),
    ],
)
def test_all_that_is_stated_must_match(match: Match, taken: bool) -> None:
    rules = Rules(seed=0)
    rules.add(rule(match=match))
    found = rules.pick("PUT", "/bucket/shards/rank-0.bin", "partNumber=3&uploadId=u", {"if-none-match": "*"})
    assert (found is not None) == taken


def test_earlier_rules_go_first() -> None:
    rules = Rules(seed=0)
    rules.add(first := rule(Status(500)))
    rules.add(second := rule(Status(503), times=None))
    assert [rules.pick("GET", "/", "", {}) for _ in range(3)] == [first, second, second]


def test_chance_is_the_same_in_every_run() -> None:
    runs = []
    for _ in range(2):
        rules = Rules(seed=7)
        rules.add(rule(times=None, probability=0.5))
        runs.append(picks(rules, 100))
    assert runs[0] == runs[1]
    assert 30 < sum(runs[0]) < 70


def test_the_log_holds_every_request_and_what_was_done_to_it() -> None:
    rules = Rules(seed=0)
    rules.add(rule(match=Match(method="PUT")))
    rules.pick("GET", "/a", "q", {"name": "value"})
    rules.pick("PUT", "/b", "", {})
    assert [(found.method, found.path, found.action) for found in rules.log()] == [
        ("GET", "/a", None),
        ("PUT", "/b", ResetBefore()),
    ]
    rules.clear()
    assert rules.log() == []
    assert picks(rules, 1, "PUT") == [False]


def test_that_a_rule_fired_can_be_waited_for() -> None:
    rules = Rules(seed=0)
    rules.add(awaited := rule(times=2))
    with pytest.raises(TimeoutError, match="was applied 0 times"):
        awaited.wait(timeout=0.01)
    thread = threading.Thread(target=picks, args=(rules, 2))
    thread.start()
    awaited.wait(2)
    thread.join()
    assert awaited.fired == 2


def test_clearing_lets_go_what_is_held() -> None:
    rules = Rules(seed=0)
    rules.add(held := rule(Hold()))
    rules.clear()
    assert held.released.is_set()
