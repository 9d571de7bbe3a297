"""What the codecs save on a trained state of bf16 weights and fp32 moments, and how fast a core encodes and decodes.

Each case runs in one process and in two at once, since two cores share caches and memory. Processes are started before
the clock and measure themselves.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from s3dlio.engine import codec
from s3dlio.engine.grouping import Runs

from .harness import Case, Options, Report, Table, Timed, alternate, say

CHUNK = 16 << 20
_WINDOW = 1.0  # seconds each measurement lasts at least
CASES = (("zstd", 1), ("zstd", 3), ("zstd-grouped", 0))

_WORKER = "import sys; from perf.codec import serve; serve(sys.argv[1])"


def run(options: Options) -> Report:
    """Measure every codec."""
    from . import sample  # not in the workers: it imports torch

    say("training a small transformer")
    data, runs = sample.trained()
    path = options.folder / "trained.bin"
    path.write_bytes(data)
    workers = [_start(path, runs) for _ in range(2)]
    try:
        cases = [_case(workers[:n], name, level, n) for name, level in CASES for n in (1, 2)]
        results = alternate(cases, options.repeat)
    finally:
        for worker in workers:
            worker.communicate()
        path.unlink()
    rows = []
    for name, level in CASES:
        one, two = _label(name, level, 1), _label(name, level, 2)
        rows.append((
            one.partition(",")[0],
            results.median(one, "saved %"),
            results.median(one, "encode GB/s"),
            results.median(one, "decode GB/s"),
            results.ratio(two, one, "encode GB/s"),
            results.ratio(two, one, "decode GB/s"),
        ))  # fmt: skip
    columns = ("codec", "saved %", "encode GB/s", "decode GB/s", "two processes: encode ×", "decode ×")
    report = Report("codec", {"bytes": len(data), "repeat": options.repeat, "steps": sample.STEPS})
    title = f"a trained transformer's bf16 weights and fp32 moments, {len(data) / 1e6:.0f} MB, one core"
    report.add(Table(title, columns, rows))
    report.take({"codec": results})
    return report


def _label(name: str, level: int, processes: int) -> str:
    return f"{name}{f' level {level}' if level else ''}, {processes} at once"


def _case(workers: list[subprocess.Popen[str]], name: str, level: int, processes: int) -> Case:
    def run() -> Timed:
        for worker in workers:
            assert worker.stdin
            worker.stdin.write(f"{name} {level or codec.LEVEL}\n")
            worker.stdin.flush()
        answers = []
        for worker in workers:
            assert worker.stdout
            answers.append([float(word) for word in worker.stdout.readline().split()])
        saved = answers[0][0]
        encode, decode = sum(a[1] for a in answers), sum(a[2] for a in answers)
        return Timed({"saved %": saved, "encode GB/s": encode, "decode GB/s": decode})

    return Case(_label(name, level, processes), run)


def _start(path: Path, runs: Runs) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin
    worker.stdin.write(f"{runs!r}\n")
    worker.stdin.flush()
    return worker


def serve(path: str) -> None:
    """A worker: for each line ``codec level`` prints the saving in %, then encode and decode rates in GB/s."""
    data = Path(path).read_bytes()
    runs: Runs = ast.literal_eval(sys.stdin.readline())
    for line in sys.stdin:
        name, level = line.split()
        print(*_rates(data, runs, name, int(level)), flush=True)


def _rates(data: bytes, runs: Runs, name: str, level: int) -> tuple[float, float, float]:
    raws = [memoryview(data)[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    specs = [codec.CodecSpec(name, level, _clip(runs, i * CHUNK, len(raw))) for i, raw in enumerate(raws)]
    outs = [memoryview(bytearray(codec.bound(name, len(raw)))) for raw in raws]
    backs = [memoryview(bytearray(len(raw))) for raw in raws]
    found: list[codec.Encoded] = []

    def encode() -> None:
        found[:] = [codec.encode(s, raw, out) for s, raw, out in zip(specs, raws, outs, strict=True)]

    def decode() -> None:
        for f, raw, out, back in zip(found, raws, outs, backs, strict=True):
            codec.decode(f.codec, raw if f.codec == codec.NONE else out[: f.length], back)

    encoding, decoding = _seconds(encode), _seconds(decode)
    if backs != raws:
        raise AssertionError(f"{name} does not give back what it got")
    stored = sum(f.length for f in found)
    return 100 * (1 - stored / len(data)), len(data) / encoding / 1e9, len(data) / decoding / 1e9


def _clip(runs: Runs, start: int, size: int) -> Runs:
    clipped = ((max(a - start, 0), min(b - start, size), width) for a, b, width in runs)
    return tuple(run for run in clipped if run[0] < run[1])


def _seconds(act: Callable[[], None]) -> float:
    """Mean seconds of ``act``, over a window long enough for two processes to overlap."""
    act()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < _WINDOW:
        act()
        count += 1
    return (time.perf_counter() - started) / count
