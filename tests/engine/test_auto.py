from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.auto import INTERVAL, PROBES, START, STOP, Auto, Rates, decide, gain

MB = 1_000_000
CHUNK = 16 * MB


def observed(encode: float, store: float, ratio: float, *, workers: int = 2, active: int = 1) -> Auto:
    auto = Auto(workers)
    for _ in range(PROBES):
        auto.choose()
    auto.encoded(CHUNK, int(CHUNK * ratio), CHUNK / encode, active)
    auto.stored(CHUNK, CHUNK / store, 1)
    return auto


def test_gain_is_bounded_by_the_encoder_and_by_the_saving() -> None:
    assert gain(Rates(encode=1200 * MB, store=100 * MB, ratio=0.8), 2) == pytest.approx(1.25)
    assert gain(Rates(encode=1200 * MB, store=2400 * MB, ratio=0.8), 2) == pytest.approx(1.0)
    assert gain(Rates(encode=1200 * MB, store=4800 * MB, ratio=0.8), 2) == pytest.approx(0.5)


def test_encodes_for_slow_storage_and_not_for_fast() -> None:
    assert observed(1200 * MB, 500 * MB, 0.8).choose()
    assert not observed(1200 * MB, 2600 * MB, 0.8).choose()
    assert not observed(1200 * MB, 500 * MB, 1.0).choose()


def test_more_workers_make_it_worth_more() -> None:
    assert not observed(1200 * MB, 2600 * MB, 0.8, workers=2).choose()
    assert observed(1200 * MB, 2600 * MB, 0.8, workers=4).choose()


def test_chunks_that_share_cores_count_together() -> None:
    alone = observed(1200 * MB, 500 * MB, 0.8, workers=2, active=2).rates
    shared = observed(300 * MB, 500 * MB, 0.8, workers=2, active=8).rates
    assert alone == shared


def test_encodes_until_a_part_was_stored() -> None:
    auto = Auto(2)
    assert [auto.choose() for _ in range(5)] == [True] * 5
    auto.encoded(CHUNK, CHUNK // 2, 1.0, 1)
    assert auto.rates is None
    assert auto.choose()
    assert repr(auto) == "<Auto raw, learning>"
    auto.stored(CHUNK, 0.1, 1)
    assert not auto.choose()


def test_the_first_chunks_are_encoded_however_fast_the_storage_is() -> None:
    auto = Auto(2)
    auto.encoded(CHUNK, CHUNK // 2, 1.0, 1)
    auto.stored(CHUNK, 0.001, 1)
    assert [auto.choose() for _ in range(PROBES + 2)] == [True] * PROBES + [False] * 2


def test_one_chunk_in_an_interval_goes_the_other_way() -> None:
    for store, usual in ((100 * MB, True), (9000 * MB, False)):
        auto = observed(1200 * MB, store, 0.8)
        choices = [auto.choose() for _ in range(3 * INTERVAL)]
        assert choices.count(not usual) == 3


def test_between_the_thresholds_it_stays_as_it_is() -> None:
    rates = Rates(encode=1.0, store=1.0, ratio=2 / (START + STOP))
    assert decide(rates, 2, encoding=True)
    assert not decide(rates, 2, encoding=False)


def test_stops_when_the_saving_is_gone_and_starts_again() -> None:
    auto = observed(1200 * MB, 200 * MB, 0.8)
    assert auto.choose()
    for _ in range(40):
        auto.encoded(CHUNK, CHUNK, CHUNK / (1200 * MB), 1)
    assert not auto.choose()
    for _ in range(40):
        auto.encoded(CHUNK, int(CHUNK * 0.7), CHUNK / (1200 * MB), 1)
    assert auto.choose()


def test_idle_storage_is_not_taken_for_slow_storage() -> None:
    auto = observed(1200 * MB, 2600 * MB, 0.8)
    auto.stored(CHUNK, CHUNK / (200 * MB), 1)
    assert not auto.choose()


def test_storage_that_became_slow_is_believed_after_a_while() -> None:
    auto = observed(1200 * MB, 2600 * MB, 0.8)
    for _ in range(80):
        auto.stored(CHUNK, CHUNK / (200 * MB), 1)
    assert auto.choose()


def test_nothing_is_learnt_from_nothing() -> None:
    auto = Auto(0)
    auto.encoded(0, 0, 1.0, 1)
    auto.encoded(CHUNK, CHUNK, 0.0, 1)
    auto.stored(0, 1.0, 1)
    auto.stored(CHUNK, 0.0, 1)
    assert auto.rates is None


def test_repr_tells_the_state() -> None:
    auto = observed(1200 * MB, 100 * MB, 0.8)
    auto.choose()
    assert repr(auto) == "<Auto encoding, gain 1.25>"


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.integers(1, 1 << 40), st.integers(0, 1 << 40), st.floats(1e-9, 1e6), st.integers(0, 99)
        )
    )
)
def test_same_observations_same_decisions(events: list[tuple[bool, int, int, float, int]]) -> None:
    def run() -> list[bool]:
        auto, choices = Auto(2), []
        for is_store, raw, stored, seconds, active in events:
            if is_store:
                auto.stored(raw, seconds, active)
            else:
                auto.encoded(raw, stored, seconds, active)
            choices.append(auto.choose())
        return choices

    assert run() == run()
