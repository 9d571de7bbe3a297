"""The benchmarks' own arithmetic; what they measure is not tested."""

from __future__ import annotations

import importlib
import json
import mmap
import os
from array import array
from pathlib import Path

import pytest
import torch

from perf import harness, interference, limits, loops, meter, scale, state
from perf.__main__ import BENCHMARKS, parse


def test_cases_take_turns_and_begin_differently() -> None:
    order: list[str] = []
    cases = [harness.Case(name, lambda name=name: order.append(name)) for name in "abc"]  # type: ignore[misc]
    results = harness.alternate(cases, 2)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert len(results.rounds) == 2


def test_what_comes_before_and_after_is_called_even_if_a_case_fails() -> None:
    calls: list[str] = []

    def broken() -> None:
        raise OSError("no disk")

    cases = [harness.Case("good", lambda: None), harness.Case("bad", broken, after=lambda: calls.append("after"))]
    results = harness.alternate(cases, 2)
    assert results.failures == {"bad": "OSError: no disk"}
    assert calls == ["after"]
    assert [set(numbers) for numbers in results.rounds] == [{"good"}, {"good"}]


def test_medians_and_ratios_are_of_the_rounds() -> None:
    results = harness.Results()
    results.rounds = [
        {"a": {"seconds": 1.0}, "b": {"seconds": 2.0}},
        {"a": {"seconds": 6.0}, "b": {"seconds": 4.0}},
        {"a": {"seconds": 3.0}, "b": {"seconds": 3.0}},
    ]
    assert results.median("a") == 3.0
    assert results.ratio("a", "b") == 1.0
    assert results.median("c") is None
    assert results.ratio("a", "c") is None


def test_a_case_may_measure_itself() -> None:
    results = harness.alternate([harness.Case("peer", lambda: harness.Timed({"seconds": 7.0}))], 1, warm_up=False)
    assert results.rounds[0]["peer"]["seconds"] == 7.0
    assert "cpu" in results.rounds[0]["peer"]


def test_a_report_shows_its_tables_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    report = harness.Report("stall", {"bytes": 1})
    report.add(harness.Table("title", ("case", "ms"), [("one copy", 150.0), ("ours", None), ("x", 0.01234)]))
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        "case          ms",
        "--------  ------",
        "one copy     150",
        "ours           -",
        "x         0.0123",
    ]
    assert json.loads(json.dumps(report.as_json()))["name"] == "stall"


def test_a_report_keeps_samples_and_failures() -> None:
    report = harness.Report("stall", {})
    results = harness.Results()
    results.rounds = [{"ours": {"seconds": 1.0}}]
    results.failures = {"theirs": "OSError: no disk"}
    report.take({"saves": results})
    assert report.notes == ["saves: theirs failed: OSError: no disk"]
    assert report.samples["saves"] == results.as_json()


@pytest.mark.parametrize("direct", [False, True])
def test_the_bare_loop_lands_the_files_bytes(tmp_path: Path, direct: bool) -> None:
    data = os.urandom(2 * limits.CHUNK + 3 * mmap.PAGESIZE)
    (tmp_path / "file").write_bytes(data)
    loop = limits.Loop(tmp_path / "file", direct=direct)
    try:
        for _ in range(2):
            assert b"".join(bytes(half) for half in loop.read()) == data
    finally:
        loop.close()


@pytest.mark.parametrize("nbytes", [1 << 20, 10_000_000, 1 << 25])
def test_the_reference_state_has_its_size(nbytes: int) -> None:
    tree = state.reference(nbytes)
    tensors = list(state.tensors(tree))
    assert len(tensors) == 297
    assert abs(state.size(tree) - nbytes) < 0.05 * nbytes
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16, torch.float32}
    assert len(state.flat(tree)) == len(tensors)
    assert all(bool(tensor.any()) for tensor in tensors)


def test_a_target_has_the_shape_of_its_state_and_memory_of_its_own() -> None:
    tree = state.reference(1 << 20)
    target = state.empty_like(tree)
    assert list(state.flat(target)) == list(state.flat(tree))
    assert target["step"] == tree["step"]
    assert not any(bool(tensor.any()) for tensor in state.tensors(target))


@pytest.mark.parametrize("direct", [False, True])
def test_the_plain_file_has_the_bytes(tmp_path: Path, direct: bool) -> None:
    file = limits.PlainFile(tmp_path / "plain", 5_000_000, 2, direct=direct)
    file.write()
    file.read()
    assert 5_000_000 <= (tmp_path / "plain").stat().st_size < 5_000_000 + 4096
    limits.cool(limits.files(tmp_path))
    limits.heat(limits.files(tmp_path))


def test_memory_counts_shared_pages_that_nobody_mapped() -> None:
    import os

    size = 64 << 20  # more than what other tests' shared mappings may have left in this process
    before = meter.memory()
    fd = os.memfd_create("test")
    try:
        os.posix_fallocate(fd, 0, size)
        assert before.shared < size <= meter.memory().shared <= before.shared + size
    finally:
        os.close(fd)


def test_quantiles_of_a_stretch() -> None:
    stretch = loops.Stretch(2.0, array("d", [0.1, 0.3, 0.2, 0.4]))
    assert stretch.rate == 2.0
    assert stretch.quantile(1.0) == 0.4
    assert stretch.quantile(0.0) == 0.1
    assert loops.Stretch(1.0, array("d")).quantile(0.5) == 0.0


class Endless:
    """A save that is done only once somebody waits for it."""

    waited = False

    def done(self) -> bool:
        return self.waited

    def result(self) -> None:
        self.waited = True


def test_a_save_that_the_loop_starves_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interference, "_LIMIT", 0.0)
    monkeypatch.setattr(interference, "_ALONE_SECONDS", 0.001)
    cleared: list[int] = []
    results = interference._loop(lambda: None, {"peer": (Endless, lambda: cleared.append(1))}, 2)
    assert results.failures == {"peer": "TimeoutError: its save was not done after 0 s beside the loop"}
    assert [set(numbers) for numbers in results.rounds] == [{"no save"}, {"no save"}]
    assert cleared == [1]


@pytest.mark.parametrize(
    ("most", "room", "sizes", "note"),
    [(16, 18, [1, 2, 4, 8, 16], None), (16, 17, [1, 2, 4, 8], "left out: 16 GiB: 17.0"), (1, 2, [], "left out: 1 GiB")],
)
def test_sizes_that_do_not_fit_the_memory_are_left_out(
    most: int, room: int, sizes: list[int], note: str | None
) -> None:
    found, notes = scale.fitting(most << 30, room << 30)
    assert found == [size << 30 for size in sizes]
    assert bool(notes) == (note is not None)
    assert not notes or str(notes[0]).startswith(str(note))


def test_every_benchmark_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for name in BENCHMARKS:
        assert callable(importlib.import_module(f"perf.{name}").run)
    assert parse(["stall"]).size == 2.0
    assert parse(["scale"]).size == 16.0
    with pytest.raises(SystemExit):
        parse(["stall", "--repeat", "0"])
    assert "must be positive" in capsys.readouterr().err
