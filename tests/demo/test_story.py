from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s3dlio import CheckpointStore
from s3dlio.demo.options import DemoOptions
from s3dlio.demo.story import check_options, death_step, run
from s3dlio.engine.errors import ConfigError, DependencyError, S3dlioError
from tests.demo.fake_store import FakeStore

TINY = DemoOptions(size="tiny", steps=9, save_every=3)
FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

SCRIPTED = """
import json, os, signal, sys
def say(event, **fields): print(json.dumps({"event": event, **fields}), flush=True)
dying, store = "--die-at" in sys.argv, "--store" in sys.argv
say("start", parameters=10, resumed_from=4 if store and not dying else None, load_seconds=0.1)
say("step", step=1, loss=5.0, seconds=0.2)
if store: say("stall", step=1, seconds=0.01); say("blocking", step=1, seconds=0.04)
if dying:
    say("dying", step=6, stored=1, total=2, workers=[])
    os.kill(os.getpid(), signal.SIGKILL)
if store: say("committed", step=1, seconds=0.5)
say("final", digests={"model": "same"}, state_bytes=40, held_out=4.0)
"""


def scripted(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def fake(mode: str) -> tuple[str, ...]:
    return (sys.executable, str(FAKE_TRAINER), mode)


def test_the_numbers_come_from_what_the_trainers_say(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    report = run(
        replace(TINY, uri=f"file://{tmp_path}"),
        open_store=FakeStore,
        watch=lambda phase, event, steps: heard.append((phase, event["event"])),
        trainer=scripted(SCRIPTED),
    )
    assert report.equal
    assert report.well
    assert (report.died_at, report.died_stored, report.died_total) == (6, 1, 2)
    assert report.resumed_from == 4
    assert report.stalls == (0.01, 0.01)
    assert report.blocking == (0.04, 0.04)
    assert report.commits == (0.5,)
    assert report.step_alone == (0.2,)
    assert report.committed_after_death == ()
    assert ("killed", "dying") in heard
    assert [phase for phase, event in heard if event == "final"] == ["uninterrupted", "resumed"]


def test_a_resume_from_nothing_is_not_well(tmp_path: Path) -> None:
    script = SCRIPTED.replace("4 if store and not dying else None", "None")
    report = run(replace(TINY, uri=f"file://{tmp_path}"), open_store=FakeStore, trainer=scripted(script))
    assert report.equal
    assert not report.well


def test_a_failing_trainer_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(S3dlioError, match=r"failed with code 1: ZeroDivisionError: division by zero"):
        run(replace(TINY, uri=f"file://{tmp_path}"), open_store=FakeStore, trainer=scripted("1/0"))


def test_a_trainer_that_never_dies_is_told(tmp_path: Path) -> None:
    script = SCRIPTED.replace('"--die-at" in sys.argv', "False")
    with pytest.raises(S3dlioError, match="never caught a save in the middle"):
        run(replace(TINY, uri=f"file://{tmp_path}"), open_store=FakeStore, trainer=scripted(script))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "huge"}, "unknown size 'huge': choose one of tiny, small, medium"),
        ({"steps": 8}, "take --steps 9 or more"),
        ({"save_every": 0}, "--save-every must be at least 1"),
        ({"keep": -1}, "--keep at least 0"),
    ],
)
def test_options_that_tell_no_story_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(replace(TINY, uri=f"file://{tmp_path}", **change), open_store=FakeStore)
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 's3dlio\[torch\]'"):
        check_options(TINY)


@pytest.mark.parametrize("every", range(1, 12))
@pytest.mark.parametrize("intervals", range(3, 12))
def test_the_death_has_a_save_before_and_a_save_after(every: int, intervals: int) -> None:
    step = death_step(every * intervals, every)
    assert step % every == 0
    assert every < step < every * intervals


@pytest.mark.slow
def test_the_whole_story_on_real_training_and_the_real_store(tmp_path: Path) -> None:
    """When exactly the kill meets the save is up to the machine: workers that live longer may even commit it."""
    with_store = partial(CheckpointStore, workers=1, memory=32 << 20)
    report = run(replace(TINY, uri=f"file://{tmp_path}"), open_store=with_store)
    assert report.well
    assert report.equal
    assert set(report.reference) == {"model", "optimizer", "rng", "step", "losses"}
    assert report.died_at in (6, 9)
    assert report.died_stored > 0
    assert report.committed_after_death[0] == 3
    assert report.resumed_from == report.committed_after_death[-1]
    assert report.workers >= 2
    assert report.workers_left == 0
    assert report.stalls
    assert report.blocking
    assert report.commits
    assert len(report.step_alone) == 9
    with with_store(report.store) as store:
        assert store.load()["step"] == 9
        assert all(store.verify(info.step).ok for info in store.list())


@pytest.mark.slow
def test_one_flipped_bit_in_the_resumed_state_is_found(tmp_path: Path) -> None:
    report = run(replace(TINY, uri=f"file://{tmp_path}"), open_store=FakeStore, trainer=fake("spoiled"))
    assert not report.equal
    assert not report.well
    assert report.resumed_from == 3


@pytest.mark.slow
def test_a_store_too_fast_to_die_in_is_told(tmp_path: Path) -> None:
    with pytest.raises(S3dlioError, match="never caught a save in the middle"):
        run(replace(TINY, uri=f"file://{tmp_path}"), open_store=FakeStore, trainer=fake("instant"))
