"""What each command does: ask the store, print for people or machines, say how it went.

Owns the order of calls and the words; never reads arguments or catches what ``main`` tells better. Each command takes
the parsed options and a function that opens a store, and returns the exit code.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from s3dlio.demo.options import DemoOptions
from s3dlio.engine.errors import CheckpointNotFoundError, ConfigError, CorruptError, NotFoundError

from .terminal import Bar, size, style_for, table

Open = Callable[..., Any]
"""``open_store(uri)``, or with the options of an object store ``open_store(uri, options)``."""
OK = 0
FAILED = 1
COMPLETE = "complete"
UNREADABLE = "unreadable"


def ls(options: argparse.Namespace, open_store: Open) -> int:
    """One line a committed checkpoint; an empty store is no failure."""
    with open_store(options.uri) as store:
        infos = store.list()
    if options.json:
        print_json({"uri": options.uri, "checkpoints": [as_plain(info) for info in infos]})
    elif infos:
        head = ("step", "epoch", "saved (UTC)", "size", "decoded", "ranks", "framework", "id")
        print("\n".join(table(head, [_row(info) for info in infos], style_for(sys.stdout), right=(0, 1, 3, 4, 5))))
    else:
        print(f"no committed checkpoint in {options.uri}", file=sys.stderr)
    return OK


def show(options: argparse.Namespace, open_store: Open) -> int:
    """Everything known about one checkpoint."""
    with open_store(options.uri) as store:
        info = pick(store, options.step, options.uri)
    if options.json:
        print_json(as_plain(info))
        return OK
    style = style_for(sys.stdout)
    for name, value in _lines(info):
        print(f"  {style.strong(name):<{13 + style.hidden(name)}} {value}")
    return OK


def verify(options: argparse.Namespace, open_store: Open) -> int:
    """Every byte of one checkpoint, or of all: a damaged one does not hide the others."""
    with open_store(options.uri) as store:
        infos = [info for info in store.list() if options.step in (None, info.step)]
        if options.step is not None and not infos:
            raise _absent(options)
        if not infos:
            raise CheckpointNotFoundError(f"no committed checkpoint in {options.uri}: nothing to verify")
        total = sum(info.total_size for info in infos)
        results = []
        with Bar("verify", sys.stderr) as bar:
            done = 0
            for info in infos:
                bar.show(done, total, f"step {info.step}, {size(total)}")
                results.append(_verified(store, info))
                done += info.total_size
    bad = [result for result in results if not result["ok"]]
    if options.json:
        print_json({"uri": options.uri, "ok": not bad, "checkpoints": results})
    else:
        style = style_for(sys.stdout)
        rows = [
            (
                str(result["step"]),
                str(result["shards"]),
                size(result["bytes"]),
                style.good("ok") if result["ok"] else style.bad("DAMAGED"),
            )
            for result in results
        ]
        print("\n".join(table(("step", "shards", "read", ""), rows, style, right=(0, 1, 2))))
    for result in bad:
        print(f"s3dlio: error: step {result['step']}: {' '.join(str(result['error']).split())}", file=sys.stderr)
    return FAILED if bad else OK


def delete(options: argparse.Namespace, open_store: Open) -> int:
    """Delete all saves of one step after asking; without a terminal to ask on, only with ``--yes``.

    They are found in the listing, which also has those whose manifest is damaged.
    """
    with open_store(options.uri) as store:
        infos = [info for info in store.list() if info.step == options.step]
        if not infos:
            raise _absent(options)
        if not options.yes and not _agreed(infos, options.uri):
            print("nothing was deleted", file=sys.stderr)
            return FAILED
        deleted = bool(store.delete(options.step))
    if options.json:
        print_json({"uri": options.uri, "step": options.step, "deleted": deleted})
    else:
        print(f"deleted step {options.step}" if deleted else f"step {options.step} was already gone")
    return OK if deleted else FAILED


def demo(options: argparse.Namespace, open_store: Open) -> int:
    """Tell the demo's story; 0 only if the resumed run equals the uninterrupted one."""
    from s3dlio.demo import report, story

    asked = DemoOptions(
        uri=options.uri, size=options.size, steps=options.steps, save_every=options.save_every, keep=options.keep
    )
    with _PhaseBar() as phases:
        told = story.run(asked, open_store=open_store, watch=phases.hear)
    if options.json:
        print_json(report.as_json(told))
    else:
        print(report.as_text(told, style_for(sys.stdout)))
    return OK if told.well else FAILED


def pick(store: Any, step: int | None, uri: str) -> Any:
    """The checkpoint of ``step``, or the newest; ``CheckpointNotFoundError`` if there is none."""
    if step is not None:
        return store.info(step)
    info = store.latest()
    if info is None:
        raise CheckpointNotFoundError(f"no committed checkpoint in {uri}")
    return info


def as_plain(value: Any) -> Any:
    """A record, mapping or sequence as values that every JSON reader takes; nan and inf become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [as_plain(inner) for inner in value]
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)


def print_json(value: Any) -> None:
    """One JSON document on the standard output."""
    print(json.dumps(as_plain(value), indent=2, allow_nan=False))


def when(timestamp: str) -> str:
    """``20250131T120000.123456Z-1a2b3c4d`` as ``2025-01-31 12:00:00``; another writer's spelling as it is."""
    try:
        return datetime.strptime(timestamp[:15], "%Y%m%dT%H%M%S").strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return timestamp


class _PhaseBar:
    """The demo's progress: one bar a trainer."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._phase = ""

    def __enter__(self) -> _PhaseBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def hear(self, phase: str, event: dict[str, Any], steps: int) -> None:
        if self._bar is None or phase != self._phase:
            self.__exit__()
            self._bar, self._phase = Bar(f"{phase:<13}", sys.stderr), phase
        if event["event"] == "step":
            self._bar.show(event["step"], steps, f"step {event['step']} of {steps}, loss {event['loss']:.3f}")


def _row(info: Any) -> tuple[str, ...]:
    return (
        str(info.step),
        str(info.epoch),
        when(info.timestamp),
        size(info.total_size),
        "-" if info.raw_size is None else size(info.raw_size),
        str(info.world_size),
        str(info.framework or "-"),
        str(info.id) if info.status == COMPLETE else f"{info.id} ({info.status})",
    )


def _lines(info: Any) -> list[tuple[str, str]]:
    known = [
        ("step", str(info.step)),
        ("epoch", str(info.epoch)),
        ("saved (UTC)", when(info.timestamp)),
        ("id", str(info.id)),
        ("framework", str(info.framework or "-")),
        ("ranks", str(info.world_size)),
        ("status", str(info.status)),
        ("size", f"{size(info.total_size)} ({info.total_size} bytes)"),
        ("decoded", "-" if info.raw_size is None else f"{size(info.raw_size)} ({info.raw_size} bytes)"),
        ("manifest", str(info.manifest_key)),
    ]
    meta = info.user_meta
    if isinstance(meta, Mapping):
        return known + [(f"meta {key}", json.dumps(as_plain(value))) for key, value in meta.items()]
    return known if meta is None else [*known, ("meta", json.dumps(as_plain(meta)))]


def _verified(store: Any, info: Any) -> dict[str, Any]:
    """What reading one checkpoint back showed; damage and loss are results, anything else (no access) is raised."""
    result: dict[str, Any] = {"step": info.step, "id": info.id, "shards": 0, "bytes": 0, "ok": False, "error": None}
    if info.status == UNREADABLE:
        return {**result, "error": f"{info.manifest_key} is damaged or of a newer format"}
    try:
        report = store.verify(id=info.id)
    except (CorruptError, NotFoundError) as error:
        return {**result, "error": str(error)}
    found = {**result, "shards": report.shards, "bytes": report.bytes, "ok": bool(report.ok)}
    return found if report.ok else {**found, "error": "stored bytes are not the bytes that were saved"}


def _absent(options: argparse.Namespace) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"no committed checkpoint of step {options.step} in {options.uri}")


def _agreed(infos: Sequence[Any], uri: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on: add --yes to delete without asking")
    saves = ", ".join(f"{when(info.timestamp)}, {size(info.total_size)}" for info in infos)
    question = f"delete step {infos[0].step} ({saves}) of {uri}? [y/N] "
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
