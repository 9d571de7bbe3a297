"""``s3dlio export``: one rank's state as a safetensors file.

Owns writing the file whole or not at all; never knows codecs: the store decodes and verifies the shard, which for a
state *is* a safetensors file. The parser names it as a command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from s3dlio.engine.errors import ConfigError, UnsupportedError

from .commands import OK, Open, pick, print_json
from .terminal import Bar, size

PIECE = 16 * 1024 * 1024
HEADER_LIMIT = 100_000_000
"""Bytes: what readers of safetensors accept; a larger state keeps its table in the index."""


def export(options: argparse.Namespace, open_store: Open) -> int:
    """Write FILE aside, flush it to the disk, and give it its name; an existing FILE stays unless ``--force``."""
    check_target(options.file, force=options.force)
    with open_store(options.uri) as store:
        info = pick(store, options.step, options.uri)
        rank = choose_rank(options.rank, info.world_size)
        payload = memoryview(store.read_shard(options.step, rank=rank)).cast("B")
        check_safetensors(payload, options.step)
        with Bar("export", sys.stderr) as bar:
            write_whole(options.file, payload, bar)
        written = payload.nbytes
        payload.release()
    if options.json:
        print_json({"uri": options.uri, "step": info.step, "rank": rank, "file": options.file, "bytes": written})
    else:
        print(f"{options.file}: step {info.step}, rank {rank}, {size(written)}")
    return OK


def check_target(file: Path, *, force: bool) -> None:
    """``ConfigError`` where ``file`` cannot become the export, before anything is read."""
    if not file.parent.is_dir():
        raise ConfigError(f"cannot write {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise ConfigError(f"cannot write {file}: it is a folder")
    if file.exists() and not force:
        raise ConfigError(f"{file} exists: take another name, or --force to replace it")


def choose_rank(asked: int | None, world_size: int) -> int:
    """The rank to export; ``ConfigError`` if the checkpoint has several and none, or one outside, was asked for."""
    if asked is None and world_size > 1:
        raise ConfigError(f"the checkpoint has {world_size} ranks: add --rank 0..{world_size - 1}")
    rank = asked or 0
    if rank >= world_size:
        raise ConfigError(f"there is no rank {rank}: the checkpoint has ranks 0..{world_size - 1}")
    return rank


def check_safetensors(payload: memoryview, step: int) -> None:
    """``UnsupportedError`` where ``payload`` is no safetensors file: a plain payload, or a state too wide for one."""
    head = int.from_bytes(payload[:8], "little")
    if payload.nbytes >= 8 and head <= min(HEADER_LIMIT, payload.nbytes - 8):
        try:
            table = json.loads(bytes(payload[8 : 8 + head]))
        except ValueError:
            table = None
        if isinstance(table, dict):
            return
    raise UnsupportedError(
        f"step {step} holds no safetensors state: a plain payload was saved, or more arrays than such a file can name; "
        "read it with CheckpointStore.load()"
    )


def write_whole(file: Path, payload: memoryview, bar: Bar) -> None:
    """Write ``payload`` to ``file``, which appears whole and durable or not at all."""
    aside = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with aside.open("xb") as out:
            for begin in range(0, payload.nbytes, PIECE):
                out.write(payload[begin : begin + PIECE])
                bar.show(min(begin + PIECE, payload.nbytes), payload.nbytes, size(payload.nbytes))
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
