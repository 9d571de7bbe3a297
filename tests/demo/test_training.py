from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from s3dlio.demo.options import SIZES
from s3dlio.demo.text import Corpus, load_corpus
from s3dlio.demo.training import SEED, Training, digests, fix_randomness, rate_at, tensor_bytes

STEPS = 8


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(limit=50_000)


def fresh(corpus: Corpus) -> Training:
    fix_randomness(SEED, threads=1)
    return Training(SIZES["tiny"], corpus, steps=STEPS)


def trained(corpus: Corpus, steps: int = STEPS) -> Training:
    training = fresh(corpus)
    for _ in range(steps):
        training.advance()
    return training


def test_two_runs_agree_in_every_bit(corpus: Corpus) -> None:
    assert digests(trained(corpus).state()) == digests(trained(corpus).state())


def test_a_resumed_run_equals_an_uninterrupted_one(corpus: Corpus) -> None:
    whole = trained(corpus)
    state = copy.deepcopy(trained(corpus, 5).state())
    resumed = fresh(corpus)
    resumed.restore(state)
    assert resumed.step == 5
    while resumed.step < STEPS:
        resumed.advance()
    assert digests(resumed.state()) == digests(whole.state())
    assert resumed.losses == whole.losses
    assert resumed.held_out_loss() == whole.held_out_loss()


@pytest.mark.parametrize("part", ["model", "optimizer", "rng"])
def test_every_part_of_the_state_matters(corpus: Corpus, part: str) -> None:
    state = copy.deepcopy(trained(corpus, 5).state())
    resumed = fresh(corpus)
    state[part] = copy.deepcopy(resumed.state()[part] if part != "optimizer" else trained(corpus, 1).state()[part])
    resumed.restore(state)
    while resumed.step < STEPS:
        resumed.advance()
    assert digests(resumed.state())["model"] != digests(trained(corpus).state())["model"]


def test_the_loss_falls(corpus: Corpus) -> None:
    training = trained(corpus, 30)
    assert training.losses[-1] < training.losses[0] - 0.5
    assert training.held_out_loss() < 5.6


def test_the_held_out_loss_changes_nothing(corpus: Corpus) -> None:
    training = trained(corpus, 3)
    before = digests(training.state())
    training.held_out_loss()
    assert digests(training.state()) == before


def test_one_bit_changes_the_digest_of_its_part_only(corpus: Corpus) -> None:
    state = copy.deepcopy(trained(corpus, 2).state())
    before = digests(state)
    state["optimizer"]["state"][0]["exp_avg"].view(torch.int32)[0, 0] ^= 1
    after = digests(state)
    assert [part for part in before if before[part] != after[part]] == ["optimizer"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.tensor(1), torch.tensor([1])),
        (0.1, 0.1 + 2**-55),
        ({"a": 1}, {"b": 1}),
        ({1: 2}, {"1": 2}),
        ([1, 2], [2, 1]),
    ],
)
def test_digests_tell_apart(one: Any, other: Any) -> None:
    assert digests({"x": one}) != digests({"x": other})
    assert digests({"x": one}) == digests({"x": copy.deepcopy(one)})


def test_tied_weights_count_once(corpus: Corpus) -> None:
    training = trained(corpus, 1)
    state = training.state()
    assert training.model.head.weight is training.model.embed.weight
    moments = 2 * 4 * training.parameters
    steps = 4 * len(state["optimizer"]["state"])
    assert tensor_bytes(state) == 4 * training.parameters + moments + steps + state["rng"].nbytes


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    rates = [rate_at(step, 100) for step in range(101)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(max(rates) / 10)


def test_a_state_of_another_size_is_refused(corpus: Corpus) -> None:
    state = trained(corpus, 1).state()
    with pytest.raises(RuntimeError, match="size mismatch"):
        Training(SIZES["small"], corpus, steps=1).restore(state)
