"""``s3dlio copy``: one checkpoint, or all, from one store to another.

Owns the order, the progress and the words; ``s3dlio.copying`` copies and verifies. The parser names it as a command.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

from s3dlio.engine.errors import CheckpointNotFoundError, CorruptError, NotFoundError, PreconditionError

from .commands import FAILED, OK, UNREADABLE, Open, pick, print_json
from .store_options import given
from .terminal import Bar, size, style_for, table

_FOLDERS = ("file://", "direct://")


def copy(options: argparse.Namespace, open_store: Open) -> int:
    """Copy the newest checkpoint, that of STEP, or with ``--all`` each; one that cannot be does not hide the others."""
    with (
        _opened(open_store, options.source, options.store_option, options.from_option) as source,
        _opened(open_store, options.target, options.store_option, options.to_option) as target,
    ):
        infos = source.list() if options.all else [pick(source, options.step, options.source)]
        if not infos:
            raise CheckpointNotFoundError(f"no committed checkpoint in {options.source}: nothing to copy")
        results = _copy_each(source, target, infos)
    bad = [result for result in results if not result["ok"]]
    if options.json:
        print_json({"from": options.source, "to": options.target, "ok": not bad, "checkpoints": results})
    else:
        _print(results)
    for result in bad:
        print(f"s3dlio: error: step {result['step']}: {' '.join(str(result['error']).split())}", file=sys.stderr)
    return FAILED if bad else OK


def _opened(open_store: Open, uri: str, shared: list[Any], own: list[Any]) -> Any:
    """One end's store; folders take none of the options that both ends share."""
    options = given([] if uri.startswith(_FOLDERS) else shared, own)
    return open_store(uri, options) if options else open_store(uri)


def _copy_each(source: Any, target: Any, infos: list[Any]) -> list[dict[str, Any]]:
    total = sum(info.total_size for info in infos)
    results = []
    with Bar("copy", sys.stderr) as bar:
        progress = _Progress(bar, total)
        for info in infos:
            progress.note = f"step {info.step}, {size(total)}"
            progress.add(0)
            results.append(_copied(source, target, info, progress))
    return results


def _copied(source: Any, target: Any, info: Any, progress: _Progress) -> dict[str, Any]:
    """How copying one checkpoint went; damage and conflict are results, anything else (no access) is raised."""
    from s3dlio.copying import copy_checkpoint

    result = {"step": info.step, "id": info.id, "shards": 0, "bytes": 0, "ok": False, "error": None}
    if info.status == UNREADABLE:
        return {**result, "error": f"{info.manifest_key} is damaged or of a newer format"}
    try:
        copied = copy_checkpoint(source, target, id=info.id, on_bytes=progress.add)
    except (CorruptError, NotFoundError, PreconditionError) as error:
        return {**result, "error": str(error)}
    return {**result, "shards": copied.world_size, "bytes": copied.total_size, "ok": True}


def _print(results: list[dict[str, Any]]) -> None:
    style = style_for(sys.stdout)
    rows = [
        (
            str(result["step"]),
            str(result["shards"]),
            size(result["bytes"]),
            style.good("ok") if result["ok"] else style.bad("NOT COPIED"),
        )
        for result in results
    ]
    print("\n".join(table(("step", "shards", "copied", ""), rows, style, right=(0, 1, 2))))


class _Progress:
    """Bytes so far on a bar; they are told by several threads."""

    def __init__(self, bar: Bar, total: int) -> None:
        self.note = ""
        self._bar = bar
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._bar.show(self._done, self._total, self.note)
