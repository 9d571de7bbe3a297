"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
from pathlib import Path

from .harness import GIB, Options, Report, say, title

SIZES = {"scale": 16.0, "s3": 1.0, "azure": 1.0, "latency": 1.0}
"""GiB where ``--size`` is not given, if not 2."""
BENCHMARKS = {
    "throughput": "save to durable, cold and warm load, against the disk and against peers",
    "stall": "what save_async costs the training loop, against one warm copy and DCP",
    "interference": "steps lost and longest pause of a training loop while a save runs",
    "memory": "memory of all processes beyond the state",
    "scale": "1 to 16 GiB, 10 to 1,000,000 tensors",
    "dcp": "torch DCP over two ranks: save, stall, memory, and loads by three, against torch's own storage",
    "ranks": "simulated: rank 0 of up to 16,384 ranks and 10,000,000 tensors, from the first word to the commit",
    "s3": "save and load against the sink and LocalStack, beside a bare boto3 loop and peers; memory",
    "azure": "save and load against the sink and Azurite, beside a bare azure-storage-blob loop and its files",
    "latency": "a store 15 ms away against its connections; codecs on a link of 100 MB/s and on a fast one",
    "codec": "saving and speed of the codecs on a trained state",
    "hotspots": "simulated: 64 to 16,384 ranks on a store that limits requests by key prefix, per strategy",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The chosen benchmark and its options."""
    parser = argparse.ArgumentParser(
        prog="python -m perf",
        description="Benchmarks of s3dlio.",
        epilog="\n".join(f"{name:14}{what}" for name, what in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help="one of the benchmarks below")
    parser.add_argument(
        "--size", type=float, metavar="GIB", help="size of the state (default 2; scale: 16; s3, azure, latency: 1)"
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measured rounds (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--folder", type=Path, default=Path(".cache/perf"), help="for data and the peers' environments")
    parser.add_argument("--requests", type=int, default=2, metavar="N", help="requests in flight of the plain cases")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave other packages out")
    found = parser.parse_args(arguments)
    found.size = SIZES.get(found.name, 2.0) if found.size is None else found.size
    if found.size <= 0 or found.repeat < 1 or found.requests < 1:
        parser.error("--size, --repeat and --requests must be positive")
    return found


def main() -> None:
    """Run one benchmark, print its tables, write its JSON."""
    found = parse()
    folder = found.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(int(found.size * GIB), found.repeat, folder, found.requests, found.peers)
    print(title(found.name), flush=True)
    try:
        report: Report = importlib.import_module(f"{__package__}.{found.name}").run(options)
    finally:
        shutil.rmtree(folder / "data", ignore_errors=True)
    if report.notes:
        print("", *report.notes, sep="\n")
    if found.json:
        found.json.write_text(json.dumps(report.as_json(), indent=1, default=str) + "\n")
        say(f"every sample: {found.json}")


if __name__ == "__main__":
    main()
