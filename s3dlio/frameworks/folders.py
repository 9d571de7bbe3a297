"""A folder as a checkpoint: its files on their way to a store, and back.

Owns the snapshot that keeps the files while they are uploaded, the shard of each file, the commit, and a folder that
appears whole or not at all. ``hf`` says which folder and when; ``CheckpointStore`` does the rest.

Each file is one shard, of the rank that is its place in the sorted list of names; the names stand in the manifest's
``user_meta`` under ``FILES``. So sizes and checksums are the manifest's, and every tool for checkpoints works.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.backends.oserrors import translated
from ..engine.checksum import crc32c, format_crc32c
from ..engine.contract import check_key
from ..engine.errors import ConfigError, CorruptError, ManifestError, S3dlioError
from ..engine.source import view as memory_at
from ..info import CheckpointInfo
from ..reader import ShardReader, Wanted
from ..records import ShardRecord
from ..store import CheckpointStore

SIDE = "_s3dlio"
"""The folder, beside the folders, of snapshots and of what is being restored; HF's uploads to its hub leave it out."""
FILES = "files"
_RESTORING = "restoring-"
_PIECE = 16 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of ``folder`` as they were, under other names in ``path``: names, and size and time of each."""

    folder: Path
    path: Path
    files: dict[str, tuple[int, int]]

    def remove(self) -> None:
        """Let go of the files."""
        shutil.rmtree(self.path, ignore_errors=True)
        _drop_empty(self.path.parent)


def names_in(folder: Path) -> list[str]:
    """The files in a folder and in those within it, relative and sorted; none if it is absent."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def snapshot(folder: Path) -> Snapshot:
    """Keep the files of a folder, whatever becomes of it: by hard links, or copies where the file system has none.

    ``ConfigError`` for a folder that is absent or empty.
    """
    names = names_in(folder)
    if not names:
        raise ConfigError(f"{folder} holds no file to store: is it where the trainer saves?")
    path = folder.parent / SIDE / f"{folder.name}-{secrets.token_hex(4)}"
    with translated(f"snapshot of {folder}"):
        try:
            return Snapshot(folder, path, {name: _keep(folder / name, path / name) for name in names})
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


def _keep(source: Path, target: Path) -> tuple[int, int]:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another device, or a file system without hard links
        shutil.copy2(source, target)
    return _version(os.stat(target))


def _version(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def tidy(folder: Path) -> list[Path]:
    """Remove what a process that was killed left in ``folder / SIDE``; the snapshots that hold the only copy stay.

    Those are of folders that are not there any more; they are returned.
    """
    side = folder / SIDE
    stay = []
    for path in sorted(side.iterdir()) if side.is_dir() else []:
        if path.name.startswith(_RESTORING) or (folder / path.name.rpartition("-")[0]).is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            stay.append(path)
    _drop_empty(side)
    return stay


def _drop_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # another snapshot is in it, or it is gone


def store_files(store: CheckpointStore, taken: Snapshot, step: int, epoch: int, framework: str) -> None:
    """Store the files of a snapshot and commit them as one checkpoint; on an error before the commit nothing stays.

    ``CorruptError`` if a file was written to since the snapshot.
    """
    names = sorted(taken.files)
    records: list[dict[str, Any]] = []
    try:
        for rank, name in enumerate(names):
            with store.writer(len(names), rank).get_distributed_shard_stream(step, epoch, framework) as stream:
                for piece in _pieces(taken.path / name, taken.files[name]):
                    stream.write_chunk(piece)
                records.append(stream.finalize())
    except BaseException:
        _discard(store, records)
        raise
    writer = store.writer(len(names), 0)
    writer.finalize_distributed_checkpoint(step, epoch, framework, records, {FILES: names})


def _pieces(path: Path, version: tuple[int, int]) -> Iterator[memoryview]:
    """A file bit by bit, in one buffer."""
    with translated(f"upload of {path}"), open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(min(_PIECE, max(version[0], 1))))
        while count := file.readinto(buffer):
            yield buffer[:count]
        if _version(os.fstat(file.fileno())) != version:
            raise CorruptError(f"{path} changed while it was uploaded: a saved file must stay as it is")


def _discard(store: CheckpointStore, records: list[dict[str, Any]]) -> None:
    control = store.control()
    try:
        for record in records:
            control.delete(record["key"])
            control.delete(record["index"]["key"])
    except S3dlioError:
        return  # the store that failed the upload fails this too; its cleanup finds what is left


def restore_folder(store: CheckpointStore, info: CheckpointInfo, folder: Path) -> None:
    """Bring a checkpoint back as ``folder``, which it replaces unless that holds these very files already.

    Memory stays bounded. Raises ``ConfigError`` for a checkpoint that is no folder's, ``CorruptError`` for bytes that
    are not those saved; then ``folder`` is as it was.
    """
    names = _names_of(info)
    with store._open_checkpoint(None, info.id) as (manifest, reader):
        records = dict(zip(names, manifest.shards, strict=True))
        if _holds(folder, records):
            return
        aside = folder.parent / SIDE / f"{_RESTORING}{folder.name}-{secrets.token_hex(4)}"
        try:
            for name, record in records.items():
                _fetch(reader, record, aside / name)
            _put_in_place(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            _drop_empty(aside.parent)


def _names_of(info: CheckpointInfo) -> list[str]:
    names = info.user_meta.get(FILES) if isinstance(info.user_meta, dict) else None
    if type(names) is not list or not all(type(name) is str for name in names):
        raise ConfigError(f"{info.id} is not a folder of files: load it with CheckpointStore")
    if len(set(names)) != info.world_size or len(names) != info.world_size:
        raise ManifestError(f"{info.manifest_key}: {len(names)} names of {info.world_size} files")
    for name in names:
        check_key(name)
    return names


def _holds(folder: Path, records: dict[str, ShardRecord]) -> bool:
    """Whether a folder has these files and no other, by their checksums."""
    if set(names_in(folder)) != set(records):
        return False
    sizes = all((folder / name).stat().st_size == record.raw_size for name, record in records.items())
    return sizes and all(_checksum(folder / name) == record.checksum for name, record in records.items())


def _checksum(path: Path) -> str:
    value = 0
    for piece in _pieces(path, _version(path.stat())):
        value = crc32c(piece, value)
    return format_crc32c(value)


def _fetch(reader: ShardReader, record: ShardRecord, path: Path) -> None:
    """A shard as a file, verified and flushed to the disk."""
    index = reader.index(record)
    if index is None:
        raise ManifestError(f"{record.key} has no index: it was not stored as a file")
    with translated(f"restore of {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb", buffering=0) as file:
            fd = file.fileno()
            if index.raw_size:
                reader.pieces(record, index, [Wanted(0, index.raw_size, lambda *piece: _write(fd, *piece))])
            os.fsync(fd)


def _write(fd: int, address: int, start: int, stop: int) -> None:
    rest = memory_at(address, stop - start)
    while rest:
        count = os.pwrite(fd, rest, start)
        rest, start = rest[count:], start + count


def _put_in_place(aside: Path, folder: Path) -> None:
    """Give a whole folder its name; one that has it gives way, and is gone for good only afterwards."""
    with translated(f"restore of {folder}"):
        old = aside.with_name(f"{aside.name}-old")
        if folder.exists():
            folder.rename(old)
        try:
            aside.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
