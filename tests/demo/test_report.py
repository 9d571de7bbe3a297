from __future__ import annotations

import json
from dataclasses import replace

from s3dlio.cli.terminal import Style
from s3dlio.demo.report import DemoReport, as_json, as_text

REPORT = DemoReport(
    store="file:///there/checkpoints",
    steps=80,
    save_every=5,
    parameters=4_823_552,
    state_bytes=57_900_000,
    first_loss=5.55,
    last_loss=2.34,
    held_out_loss=2.5,
    died_at=50,
    died_stored=16_000_000,
    died_total=57_900_000,
    workers=2,
    workers_left=0,
    committed_after_death=(35, 40, 45),
    resumed_from=45,
    load_seconds=0.02,
    reference={"model": "a" * 64, "rng": "b" * 64},
    resumed={"model": "a" * 64, "rng": "b" * 64},
    stalls=(0.004, 0.005, 0.006),
    blocking=(0.05, 0.1),
    commits=(0.04, 0.06),
    step_alone=(0.2,),
    step_saving=(0.21,),
    blocking_elsewhere=False,
    seconds=61.0,
)


def lines(report: DemoReport) -> str:
    return as_text(report, Style())


def test_a_good_run_says_what_it_showed() -> None:
    text = lines(REPORT)
    assert "equals the uninterrupted one, bit for bit. (61 s)" in text
    assert "SIGKILL in the save of step 50, 16.0 MB of 57.9 MB stored\n" in text
    assert "that save is not listed; its worker processes (2) ended by themselves\n" in text
    assert "from step 45, loaded in 20.0 ms" in text
    assert "5.0 ms" in text
    assert "75.0 ms  median of 2, 15.0 times as long" in text
    assert "1.2 GB/s" in text
    assert "s3dlio ls file:///there/checkpoints" in text
    assert "\x1b" not in text


def test_a_difference_is_named_by_part() -> None:
    bad = replace(REPORT, resumed={"model": "a" * 64, "rng": "c" * 64})
    assert not bad.well
    row = next(line for line in lines(bad).splitlines() if line.strip().startswith("rng"))
    assert "DIFFERS" in row
    assert "The resumed run differs" in lines(bad)


def test_digests_of_nothing_are_not_equal() -> None:
    assert not replace(REPORT, reference={}, resumed={}).equal


def test_a_missing_part_differs() -> None:
    bad = replace(REPORT, resumed={"model": "a" * 64})
    assert not bad.equal
    assert "DIFFERS" in lines(bad)


def test_a_resume_from_nothing_and_left_workers_are_failures() -> None:
    nothing = replace(REPORT, resumed_from=None, load_seconds=None)
    assert not nothing.well
    assert "Nothing was resumed" in lines(nothing)
    left = replace(REPORT, workers_left=1)
    assert not left.well
    assert "1 worker processes outlived the kill" in lines(left)


def test_a_save_committed_in_the_instant_of_the_kill_is_told() -> None:
    assert "was committed in the instant of the kill" in lines(replace(REPORT, committed_after_death=(45, 50)))


def test_numbers_that_were_not_measured_are_left_out() -> None:
    bare = replace(REPORT, stalls=(), blocking=(), commits=(), step_alone=(), step_saving=())
    assert "stall" not in lines(bare)
    assert as_json(bare)["stalls_median"] is None


def test_json_holds_everything_and_the_verdict() -> None:
    value = json.loads(json.dumps(as_json(REPORT)))
    assert value["equal"] is True
    assert value["well"] is True
    assert value["torn_hidden"] is True
    assert value["stalls_median"] == 0.005
    assert value["resumed_from"] == 45
