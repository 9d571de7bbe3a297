"""Stored bytes are damaged: flipped, cut, lengthened, gone. A load tells which object, and never gives wrong bytes.

Every way of reading is asked: each moves bytes on a road of its own. Older checkpoints load by step.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.errors import CorruptError, NotFoundError, S3dlioError
from tests.faults import states
from tests.faults.conftest import Open
from tests.faults.folders import flip, only

CODECS = [None, "zstd", "zstd-grouped", "auto"]
STATE = states.make(2)
OLD = states.make(1)
FLAT = {"model.weight": STATE["model"]["weight"], "model.half": STATE["model"]["half"]}


def load(store: CheckpointStore) -> bool:
    return states.same(store.load(), STATE)


def into(store: CheckpointStore) -> bool:
    """Also when it fails: what has been filled is right, the rest untouched."""
    target = states.zeroed(STATE)
    try:
        return states.same(store.load(into=target), STATE)
    finally:
        for name, right in FLAT.items():
            found = target["model"][name.removeprefix("model.")]
            assert np.all((found == right) | (found == states.FILLER))


def names(store: CheckpointStore) -> bool:
    found = store.load(names="*")
    return all(states.same(found[name], right) for name, right in FLAT.items())


def verify(store: CheckpointStore) -> bool:
    return store.verify().ok


def read_shard(store: CheckpointStore) -> bool:
    return len(store.read_shard()) > 0 and store.verify().ok


ASKS: list[Callable[[CheckpointStore], bool]] = [load, into, names, verify, read_shard]


@pytest.fixture
def store(open_store: Open, request: pytest.FixtureRequest) -> CheckpointStore:
    """Steps 1 and 2, by a codec."""
    made: CheckpointStore = open_store(compression=getattr(request, "param", None))
    made.save(1, OLD)
    made.save(2, STATE)
    return made


def check(store: CheckpointStore, path: Path, error: type[S3dlioError] = CorruptError, text: str = "") -> None:
    """Every way of reading raises ``error`` and names the object; the older checkpoint loads."""
    for ask in ASKS:
        with pytest.raises(error, match=path.name) as raised:
            ask(store)
        assert "ckpt-2-" in str(raised.value)
        assert text in str(raised.value)
    assert states.same(store.load(1), OLD)


def shard(folder: Path) -> Path:
    return only(folder, "shards/ckpt-2-*/rank-0.bin*")


def bits(path: Path, count: int) -> list[int]:
    """The first, the last, and seeded ones between."""
    size = 8 * path.stat().st_size
    return [0, size - 1, *random.Random(3).sample(range(size), count)]


@pytest.mark.slow
@pytest.mark.parametrize("store", CODECS, indirect=True)
def test_a_flipped_bit_of_a_shard(store: CheckpointStore, folder: Path) -> None:
    """Told, or without effect: a few bits of a zstd frame mean nothing."""
    path = shard(folder)
    told = 0
    for bit in bits(path, 24):
        flip(path, bit)
        for ask in ASKS:
            try:
                assert ask(store), f"{ask.__name__} gave wrong bytes after a flip of bit {bit}"
            except CorruptError as error:
                told += 1
                assert "rank-0.bin" in str(error)  # noqa: PT017 - some flips raise, some do not
        flip(path, bit)
    assert told >= 23 * len(ASKS)
    assert all(ask(store) for ask in ASKS)
    assert states.same(store.load(1), OLD)


@pytest.mark.slow
def test_a_flipped_bit_of_an_index(store: CheckpointStore, folder: Path) -> None:
    path = only(folder, "shards/ckpt-2-*/rank-0.idx")
    for bit in bits(path, 30):
        flip(path, bit)
        check(store, path)
        flip(path, bit)
    assert all(ask(store) for ask in ASKS)


@pytest.mark.slow
def test_a_flipped_bit_of_a_manifest(store: CheckpointStore, folder: Path) -> None:
    """Told by the checksum at its end; where that is no checksum any more, nothing else has changed."""
    path = only(folder, "manifests/ckpt-2-*.json")
    size = 8 * path.stat().st_size
    for bit in bits(path, 60):
        flip(path, bit)
        if bit < size - 8 * 40:
            check(store, path)
        else:
            for ask in ASKS:
                try:
                    assert ask(store)
                except CorruptError as error:
                    assert path.name in str(error)  # noqa: PT017 - some flips raise, some do not
        flip(path, bit)
    assert all(ask(store) for ask in ASKS)


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
@pytest.mark.parametrize("store", CODECS, indirect=True)
def test_a_truncated_shard(store: CheckpointStore, folder: Path, keep: float) -> None:
    path = shard(folder)
    cut(path, keep)
    check(store, path)


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_truncated_index(store: CheckpointStore, folder: Path, keep: float) -> None:
    path = only(folder, "shards/ckpt-2-*/rank-0.idx")
    cut(path, keep)
    check(store, path)


@pytest.mark.parametrize("keep", [0, 1, 0.25, 0.5, 0.75, -3])
def test_a_truncated_manifest(store: CheckpointStore, folder: Path, keep: float) -> None:
    path = only(folder, "manifests/ckpt-2-*.json")
    cut(path, keep)
    check(store, path, text="name another step to load, or delete this one")
    assert [(info.step, info.status) for info in store.list()] == [(1, "complete"), (2, "unreadable")]


@pytest.mark.parametrize("more", [1, 5 << 20])
def test_a_lengthened_shard(store: CheckpointStore, folder: Path, more: int) -> None:
    """What was saved is all there and loads; ``verify`` tells."""
    path = shard(folder)
    with path.open("ab") as file:
        file.write(b"\0" * more)
    assert load(store)
    assert into(store)
    assert names(store)
    with pytest.raises(CorruptError, match=r"rank-0\.bin"):
        store.verify()


@pytest.mark.parametrize("more", [1, 5 << 20])
def test_a_lengthened_index(store: CheckpointStore, folder: Path, more: int) -> None:
    path = only(folder, "shards/ckpt-2-*/rank-0.idx")
    with path.open("ab") as file:
        file.write(b" " * more)
    check(store, path)


@pytest.mark.parametrize("pattern", ["shards/ckpt-2-*/rank-0.bin", "shards/ckpt-2-*/rank-0.idx"])
@pytest.mark.parametrize("left", ["nothing", "a folder", "a dangling link"])
def test_a_missing_object(store: CheckpointStore, folder: Path, pattern: str, left: str) -> None:
    path = only(folder, pattern)
    path.unlink()
    if left == "a folder":
        path.mkdir()
    elif left == "a dangling link":
        path.symlink_to("nowhere")
    check(store, path, NotFoundError)


def test_the_objects_of_another_step(store: CheckpointStore, folder: Path) -> None:
    """Files put in each other's place are whole, but not what the manifest says."""
    for name in ("rank-0.bin", "rank-0.idx"):
        first, second = only(folder, f"shards/ckpt-1-*/{name}"), only(folder, f"shards/ckpt-2-*/{name}")
        first.rename(first.with_suffix(".aside"))
        second.rename(first)
        first.with_suffix(".aside").rename(second)
    for step in (1, 2):
        with pytest.raises(CorruptError, match=f"ckpt-{step}-.*rank-0"):
            store.load(step)


@pytest.mark.parametrize("keep", [0, -1])
def test_a_truncated_payload(open_store: Open, folder: Path, keep: float) -> None:
    """Bytes have the same checks as states."""
    with open_store() as store:
        store.save(1, b"old")
        store.save(2, bytes(range(256)) * 8192)
        path = shard(folder)
        cut(path, keep)
        for ask in (store.load, store.verify, store.read_shard):
            with pytest.raises(CorruptError, match=r"ckpt-2-.*rank-0\.bin"):
                ask()
        assert store.load(1) == b"old"


def test_an_empty_payload_that_is_no_longer_empty(open_store: Open, folder: Path) -> None:
    with open_store() as store:
        store.save(2, b"")
        assert store.load() == b""
        shard(folder).write_bytes(b"x")
        for ask in (store.load, store.verify):
            with pytest.raises(CorruptError, match=r"rank-0\.bin"):
                ask()


def test_damage_leaves_the_rest_alone(store: CheckpointStore, folder: Path) -> None:
    """Saving goes on behind a damaged latest, and then that is not the latest any more."""
    cut(only(folder, "manifests/ckpt-2-*.json"), 0.5)
    with pytest.raises(CorruptError):
        store.load()
    store.save(3, OLD)
    assert states.same(store.load(), OLD)
    with pytest.raises(CorruptError, match="delete this checkpoint"):
        store.cleanup(min_age=0)
    assert store.prune(keep_last=1) == 1
    assert [info.step for info in store.list()] == [2, 3]
    assert store.delete(2)
    assert [info.step for info in store.list()] == [3]
    assert store.cleanup(min_age=0) == 0
    assert not list(folder.glob("**/ckpt-2-*"))


def cut(path: Path, keep: Any) -> None:
    """Keep ``keep`` bytes, a share of them, or all but so many."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(size * keep) if isinstance(keep, float) else keep if keep >= 0 else size + keep)
