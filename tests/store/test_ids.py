from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.errors import ConfigError
from s3dlio.ids import (
    STEP_MAX,
    CheckpointId,
    IdClock,
    check_label,
    check_step,
    format_timestamp,
    parse_timestamp,
)
from tests.store.fake import T0, make_id

steps = st.integers(0, STEP_MAX)
moments = st.datetimes(timezones=st.just(timezone.utc))


def micros(moment: datetime) -> int:
    delta = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


def test_a_timestamp_reads_as_documented() -> None:
    assert format_timestamp(T0 + 923_326, "0a1b2c3d") == "20261123T203342.923326Z-0a1b2c3d"


@given(moments)
def test_a_timestamp_keeps_its_microsecond(moment: datetime) -> None:
    assert parse_timestamp(format_timestamp(micros(moment), "00000000")) == micros(moment)


@given(moments, moments)
def test_timestamps_sort_as_text_as_they_do_in_time(one: datetime, two: datetime) -> None:
    texts = sorted(format_timestamp(micros(each), "0") for each in (one, two))
    assert texts == [format_timestamp(each, "0") for each in sorted((micros(one), micros(two)))]


@given(steps, moments)
def test_an_id_comes_back_from_its_manifest_key(step: int, moment: datetime) -> None:
    id_ = CheckpointId(step, format_timestamp(micros(moment), "0a1b2c3d"))
    assert CheckpointId.of_manifest_key(id_.manifest_key) == id_


@given(st.text(max_size=60))
def test_what_parses_is_exactly_a_name(text: str) -> None:
    id_ = CheckpointId.parse(text)
    assert id_ is None or id_.name == text


@pytest.mark.parametrize(
    ("timestamp", "start"),
    [
        ("20261123-203342", T0),
        ("20261123-203342-a", T0),
        ("20261123T203342.000001Z-0a1b2c3d", T0 + 1),
        ("20261123T203342.000001Z", T0 + 1),
        ("20261123T203342.000001Z-any.suffix", T0 + 1),
        ("20261323-203342", None),
        ("20261123-2033420", None),
        ("20261123T203342Z", None),
        ("epoch-3", None),
    ],
)
def test_the_start_of_every_suffix(timestamp: str, start: int | None) -> None:
    assert CheckpointId(7, timestamp).start_us == start


def test_order_is_save_start_then_step() -> None:
    no_time = CheckpointId(9000, "final")
    rust = CheckpointId(8, "20261123-203342")
    ours = make_id(7, seconds=1)
    same_time = make_id(9, seconds=1)
    assert sorted([same_time, ours, rust, no_time], key=lambda id_: id_.order) == [no_time, rust, ours, same_time]


@pytest.mark.parametrize(
    "key",
    [
        "manifests/latest.json",
        "manifests/ckpt-7.json",
        "manifests/ckpt-07-20261123-203342.json",
        "manifests/ckpt--7-20261123-203342.json",
        "manifests/ckpt-99999999999999999999-20261123-203342.json",
        "manifests/ckpt-7-../x.json",
        "manifests/sub/ckpt-7-20261123-203342.json",
        "manifests/ckpt-7-20261123-203342.json.tmp",
        "manifests/ckpt-٧-20261123-203342.json",
        "shards/ckpt-7-20261123-203342.json",
    ],
)
def test_other_keys_are_no_manifests(key: str) -> None:
    assert CheckpointId.of_manifest_key(key) is None


@pytest.mark.parametrize(("step", "timestamp"), [(-1, "a"), (STEP_MAX + 1, "a"), (1, ""), (1, "a/b"), (1, "..")])
def test_an_impossible_id_is_refused(step: int, timestamp: str) -> None:
    with pytest.raises(ConfigError):
        CheckpointId(step, timestamp)


class _Integer:
    def __index__(self) -> int:
        return 5


def test_a_step_may_be_any_integer_type() -> None:
    assert check_step(_Integer()) == 5


@pytest.mark.parametrize("step", [-1, STEP_MAX + 1, True, 1.0, "1", None])
def test_a_bad_step_is_refused(step: object) -> None:
    with pytest.raises(ConfigError, match="step"):
        check_step(step)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", ["job-7", "a", "3.b_c"])
def test_a_label_is_kept(label: str) -> None:
    assert check_label(label) == label


@pytest.mark.parametrize("label", ["", "../x", "a/b", ".a", "a b", "x" * 129, 7, "ü"])
def test_a_bad_label_is_refused(label: object) -> None:
    with pytest.raises(ConfigError, match="id="):
        check_label(label)


def test_a_clock_that_stands_still_or_goes_back_still_mints_in_order() -> None:
    times = iter([T0, T0, T0 - 5_000_000])
    clock = IdClock(lambda: next(times), lambda: "00c0ffee")
    minted = [clock.mint(step) for step in (3, 2, 1)]
    assert [id_.start_us for id_ in minted] == [T0, T0 + 1, T0 + 2]


def test_a_clock_mints_behind_what_it_saw() -> None:
    clock = IdClock(lambda: T0)
    clock.see([make_id(1, seconds=60), make_id(2, seconds=30), CheckpointId(3, "final")])
    clock.see([])
    clock.see([make_id(2, seconds=10)])
    assert clock.mint(4).start_us == T0 + 60_000_001


def test_a_clock_draws_a_new_suffix_each_time() -> None:
    clock = IdClock(lambda: T0)
    assert clock.mint(1).timestamp[-8:] != clock.mint(1).timestamp[-8:]


def test_a_checkpoint_from_the_end_of_time_is_named_as_the_reason() -> None:
    clock = IdClock(lambda: T0)
    clock.see([CheckpointId(1, "99991231T235959.999999Z-00000000")])
    with pytest.raises(ConfigError, match="9999"):
        clock.mint(1)


def test_a_clock_refuses_a_bad_step_before_it_moves() -> None:
    clock = IdClock(lambda: T0)
    with pytest.raises(ConfigError):
        clock.mint(-1)
    assert clock.mint(1).start_us == T0
