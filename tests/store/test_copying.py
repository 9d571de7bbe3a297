"""Checkpoints copied between stores: the same bytes under the same keys, verified, resumed, and never half there."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import (
    CheckpointInfo,
    CheckpointNotFoundError,
    CheckpointStore,
    ConfigError,
    CorruptError,
    ManifestError,
    NotFoundError,
    PreconditionError,
    StorageError,
)
from s3dlio.copying import copy_checkpoint, is_same_place
from s3dlio.engine.contract import Location, Secret
from s3dlio.engine.messages import Fetch, PutWhole, StorePart
from s3dlio.engine.pool import Pool
from s3dlio.engine.supervisor import Supervisor
from tests.store.live import SMALL, assert_same, contents, open_store, random_bytes, smooth_floats

MIB = 1 << 20
DATA = Path(__file__).parent / "data" / "published"

pytestmark = pytest.mark.usefixtures("kept_pool")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[CheckpointStore]:
    with open_store(tmp_path / "source", multipart_threshold=0) as store:
        yield store


@pytest.fixture
def target(tmp_path: Path) -> Iterator[CheckpointStore]:
    with open_store(tmp_path / "target", multipart_threshold=0) as store:
        yield store


def state_of(seed: int) -> dict[str, Any]:
    return {"w": np.frombuffer(random_bytes(5 * MIB, seed), np.uint8), "x": smooth_floats(MIB), "step": seed}


def save_ranks(store: CheckpointStore, count: int, size: int = 100) -> CheckpointInfo:
    """Step 7, of so many ranks with as many bytes each."""
    records = [
        store.writer(count, rank).save_distributed_shard(7, 0, "jax", random_bytes(size, rank)) for rank in range(count)
    ]
    store.writer(count, 0).finalize_distributed_checkpoint(7, 0, "jax", records)
    return store.info(7)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the parts and whole objects that jobs store from now on."""
    keys: list[str] = []
    submit = Supervisor.submit

    def watch(self: Supervisor, job: Any, token: Any, task: Any) -> None:
        if isinstance(task, (StorePart, PutWhole)):
            keys.append(task.key)
        submit(self, job, token, task)

    monkeypatch.setattr(Supervisor, "submit", watch)
    return keys


def test_a_copy_is_the_same_to_the_byte(source: CheckpointStore, target: CheckpointStore, tmp_path: Path) -> None:
    source.save(1, state_of(1), user_meta={"loss": 1.5})
    counted: list[int] = []
    info = copy_checkpoint(source, target, on_bytes=counted.append)
    assert info == source.latest() == target.latest()
    assert contents(tmp_path / "target") == contents(tmp_path / "source")
    assert sum(counted) == info.total_size
    assert_same(target.load(), state_of(1))


@pytest.mark.parametrize("codec", ["zstd", "zstd-grouped", "auto"])
def test_encoded_bytes_are_copied_as_they_are(tmp_path: Path, target: CheckpointStore, codec: str) -> None:
    with open_store(tmp_path / "source", compression=codec) as source:
        source.save(1, state_of(1))
        copy_checkpoint(source, target)
    assert contents(tmp_path / "target") == contents(tmp_path / "source")
    assert_same(target.load(), state_of(1))


def test_which_checkpoint(source: CheckpointStore, target: CheckpointStore) -> None:
    infos = [source.save(step, bytes([step])) for step in (3, 1, 2, 1)]
    assert copy_checkpoint(source, target) == infos[3]
    assert copy_checkpoint(source, target, 3) == infos[0]
    assert copy_checkpoint(source, target, 1, id=infos[1].id) == infos[1]
    assert copy_checkpoint(source, target, id=infos[2].id) == infos[2]
    assert target.list() == infos
    assert target.load() == b"\1"
    assert target.latest() == infos[3]


def test_what_is_not_there(source: CheckpointStore, target: CheckpointStore) -> None:
    with pytest.raises(CheckpointNotFoundError, match="holds no committed checkpoint"):
        copy_checkpoint(source, target)
    info = source.save(1, b"x")
    with pytest.raises(CheckpointNotFoundError, match="no committed checkpoint of step 2"):
        copy_checkpoint(source, target, 2)
    with pytest.raises(NotFoundError, match=r"ckpt-2-20200101"):
        copy_checkpoint(source, target, id="ckpt-2-20200101-000000")
    for arguments in ({"id": "nonsense"}, {"step": 2, "id": info.id}):
        with pytest.raises(ConfigError, match="is not the id of a checkpoint"):
            copy_checkpoint(source, target, **arguments)
    with pytest.raises(ConfigError):
        copy_checkpoint(source, target, -1)
    assert target.list() == []


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 1])
def test_payloads_of_all_sizes(source: CheckpointStore, target: CheckpointStore, size: int) -> None:
    source.save(1, random_bytes(size))
    copy_checkpoint(source, target)
    assert target.load() == random_bytes(size)


def test_all_ranks(source: CheckpointStore, target: CheckpointStore, tmp_path: Path) -> None:
    info = save_ranks(source, 5)
    assert copy_checkpoint(source, target, 7) == info
    assert info.world_size == 5
    assert contents(tmp_path / "target") == contents(tmp_path / "source")


def test_a_large_index(source: CheckpointStore, target: CheckpointStore, tmp_path: Path) -> None:
    names = {f"array.{number:06}.{'x' * 60}": np.zeros(1, np.uint8) for number in range(9000)}
    source.save(1, names)
    assert max(len(data) for key, data in contents(tmp_path / "source").items() if key.endswith(".idx")) > MIB
    copy_checkpoint(source, target)
    assert contents(tmp_path / "target") == contents(tmp_path / "source")


@pytest.mark.parametrize("name", ["flat", "round_robin_zstd", "binary_zstd"])
def test_checkpoints_of_the_published_package(tmp_path: Path, target: CheckpointStore, name: str) -> None:
    shutil.copytree(DATA / name, tmp_path / "source")
    with open_store(tmp_path / "source") as source:
        info = copy_checkpoint(source, target)
        again = copy_checkpoint(source, target)
    assert info == again == target.latest()
    before, after = (contents(tmp_path / place) for place in ("source", "target"))
    shards = {key: data for key, data in before.items() if key.startswith(("shards/", "manifests/ckpt"))}
    assert shards.items() <= after.items()
    assert target.verify().shards == info.world_size


def test_shards_without_a_checksum(tmp_path: Path, source: CheckpointStore, target: CheckpointStore) -> None:
    writer = source.writer(1, 0)
    record = writer.save_distributed_shard(1, 0, "jax", random_bytes(3 * MIB))
    (tmp_path / "source" / record["index"]["key"]).unlink()
    writer.finalize_distributed_checkpoint(1, 0, "jax", [{**record, "checksum": None, "index": None}])
    copy_checkpoint(source, target)
    shard = tmp_path / "target" / record["key"]
    assert shard.read_bytes() == random_bytes(3 * MIB)
    shard.write_bytes(bytes(3 * MIB))  # nothing tells that this is wrong: what is committed is left alone ...
    info = copy_checkpoint(source, target)
    assert shard.read_bytes() == bytes(3 * MIB)
    (tmp_path / "target" / info.manifest_key).unlink()  # ... and what is not is copied again
    copy_checkpoint(source, target)
    assert shard.read_bytes() == random_bytes(3 * MIB)


@pytest.mark.parametrize("suffixes", [(".bin",), (".idx",), (".bin", ".idx")])
def test_a_damaged_source_does_not_harm_a_copy(
    source: CheckpointStore, target: CheckpointStore, tmp_path: Path, suffixes: tuple[str, ...], stored: list[str]
) -> None:
    source.save(1, state_of(1))
    copy_checkpoint(source, target)
    before = contents(tmp_path / "target")
    for suffix in suffixes:
        (path,) = (tmp_path / "source").rglob(f"rank-0{suffix}")
        path.write_bytes(bytes(path.stat().st_size))
    stored.clear()
    copy_checkpoint(source, target)  # it is there and whole
    assert (stored, contents(tmp_path / "target")) == ([], before)
    (copied,) = (tmp_path / "target").rglob("rank-0.bin")
    copied.write_bytes(copied.read_bytes()[:-1])
    with pytest.raises(CorruptError):
        copy_checkpoint(source, target)  # it would be mended, but not with these bytes
    assert stored == []


def test_a_copy_whose_shards_go_before_it_is_committed(
    source: CheckpointStore, target: CheckpointStore, tmp_path: Path
) -> None:
    info = save_ranks(source, 2)

    def clean_up(_: int) -> None:
        for path in (tmp_path / "target").rglob("rank-0.bin"):
            path.unlink()

    with pytest.raises(NotFoundError, match="rank 0"):
        copy_checkpoint(source, target, on_bytes=clean_up)
    assert not (tmp_path / "target" / info.manifest_key).exists()


def test_the_same_place(source: CheckpointStore, tmp_path: Path) -> None:
    source.save(1, b"x")
    (tmp_path / "link").symlink_to(tmp_path / "source")
    for folder, scheme in (("source", "file"), ("source", "direct"), ("link", "file")):
        with open_store(tmp_path / folder, scheme) as target, pytest.raises(ConfigError, match="are the same place"):
            copy_checkpoint(source, target)


def test_places_that_are_the_same() -> None:
    one = Location("s3", "bucket/run", (("endpoint_url", "http://a"), ("environment", Secret("x"))))
    same = Location("s3", "bucket/run", (("endpoint_url", "http://a"), ("region", "r")))
    assert is_same_place(one, same)
    assert not is_same_place(one, Location("s3", "bucket/run"))
    assert not is_same_place(one, Location("s3", "bucket", (("endpoint_url", "http://a"),)))
    assert not is_same_place(Location("file", "/bucket/run"), Location("s3", "bucket/run"))


def test_from_direct_through_another_pool(tmp_path: Path, source: CheckpointStore) -> None:
    source.save(1, state_of(1))
    with open_store(tmp_path / "target", "direct", memory=8 * MIB, workers=1, chunk_size=2 * MIB) as target:
        copy_checkpoint(source, target)
        assert_same(target.load(), state_of(1))
    assert contents(tmp_path / "target") == contents(tmp_path / "source")


def test_a_copy_again_copies_nothing(source: CheckpointStore, target: CheckpointStore, stored: list[str]) -> None:
    source.save(1, state_of(1))
    info = copy_checkpoint(source, target)
    stored.clear()
    counted: list[int] = []
    assert copy_checkpoint(source, target, on_bytes=counted.append) == info
    assert (stored, counted) == ([], [info.total_size])


def test_what_is_there_already_is_taken_over(
    source: CheckpointStore, target: CheckpointStore, tmp_path: Path, stored: list[str]
) -> None:
    info = save_ranks(source, 4)
    copy_checkpoint(source, target)
    shards = sorted((tmp_path / "target").rglob("rank-*.bin"))
    (tmp_path / "target" / info.manifest_key).unlink()
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[2].write_bytes(bytes(shards[2].stat().st_size))
    shards[3].with_suffix(".idx").unlink()
    stored.clear()
    copy_checkpoint(source, target)
    assert sorted(set(stored)) == [str(path.relative_to(tmp_path / "target")) for path in shards[:3]]
    assert contents(tmp_path / "target") == contents(tmp_path / "source")


def test_another_checkpoint_of_this_id(
    source: CheckpointStore, target: CheckpointStore, tmp_path: Path, stored: list[str]
) -> None:
    info = source.save(1, b"this")
    manifest = tmp_path / "target" / info.manifest_key
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b"another")
    stored.clear()
    with pytest.raises(PreconditionError, match="is taken by another checkpoint"):
        copy_checkpoint(source, target)
    assert (stored, contents(tmp_path / "target")) == ([], {info.manifest_key: b"another"})


def test_a_manifest_that_comes_meanwhile(source: CheckpointStore, target: CheckpointStore, tmp_path: Path) -> None:
    info = source.save(1, b"this")
    manifest = tmp_path / "target" / info.manifest_key

    def come(_: int) -> None:
        manifest.parent.mkdir(parents=True)
        manifest.write_bytes(b"another")

    with pytest.raises(PreconditionError, match="is taken by another checkpoint"):
        copy_checkpoint(source, target, on_bytes=come)
    assert manifest.read_bytes() == b"another"


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_source(
    source: CheckpointStore, target: CheckpointStore, tmp_path: Path, suffix: str, damage: str
) -> None:
    source.save(1, random_bytes(3 * MIB))
    (path,) = (tmp_path / "source").rglob(f"rank-0{suffix}")
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        data[-9] ^= 1
        path.write_bytes(data)
    with pytest.raises(NotFoundError if damage == "gone" else CorruptError, match=f"rank-0{suffix}"):
        copy_checkpoint(source, target)
    assert target.list() == []
    assert not [key for key in contents(tmp_path / "target") if key.startswith("manifests")]


def test_an_incomplete_manifest(tmp_path: Path, target: CheckpointStore) -> None:
    shutil.copytree(DATA / "flat", tmp_path / "source")
    (path,) = (tmp_path / "source/manifests").glob("ckpt-7-*.json")
    path.write_text(path.read_text().replace('"complete"', '"partial"').replace('"Complete"', '"partial"'))
    with open_store(tmp_path / "source") as source, pytest.raises(ManifestError, match="only a complete one"):
        copy_checkpoint(source, target, id=path.stem)
    assert target.list() == []


def test_the_target_fails(source: CheckpointStore, target: CheckpointStore, tmp_path: Path) -> None:
    source.save(1, random_bytes(3 * MIB))
    (tmp_path / "target").write_bytes(b"no folder")
    with pytest.raises(StorageError):
        copy_checkpoint(source, target)


def test_a_newer_checkpoint_stays_the_latest(source: CheckpointStore, target: CheckpointStore) -> None:
    old = source.save(1, b"old")
    new = target.save(2, b"new")
    copy_checkpoint(source, target)
    assert target.list() == [old, new]
    assert target.latest() == new
    assert target.load() == b"new"


def test_what_is_saved_after_a_copy_is_newer(
    source: CheckpointStore, target: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.save(1, b"first")
    monkeypatch.setattr(source._clock, "_now_us", lambda: 4_000_000_000_000_000)
    ahead = source.save(2, b"from a clock that is ahead")
    copy_checkpoint(source, target)
    assert target.latest() == ahead
    saved = target.save(3, b"third")
    assert target.latest() == saved


def test_requests_are_in_flight_at_once(
    source: CheckpointStore, target: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.save(1, random_bytes(4 * MIB))
    together = threading.Barrier(4, timeout=30)
    run = Pool.run

    def meet(self: Pool, task: Any) -> Any:
        if isinstance(task, Fetch):
            together.wait()
        return run(self, task)

    monkeypatch.setattr(Pool, "run", meet)
    copy_checkpoint(source, target)


ENDED = """
import os, sys, threading
from s3dlio import CheckpointStore
from s3dlio.copying import copy_checkpoint

small = dict(memory=64 << 20, workers=2, chunk_size=1 << 20)
left, number, turn = int(sys.argv[3]), int(sys.argv[4]), threading.Lock()

def count(size):
    global left, number
    with turn:
        left -= size
        if left <= 0 and number:
            os.kill(os.getpid(), number)
            number = 0

with CheckpointStore(sys.argv[1], **small) as source, CheckpointStore(sys.argv[2], **small) as target:
    copy_checkpoint(source, target, on_bytes=count)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("after", [1, 5 * MIB, 9 * MIB])
def test_a_copy_that_is_ended_leaves_no_checkpoint(
    source: CheckpointStore, target: CheckpointStore, tmp_path: Path, after: int, number: int
) -> None:
    save_ranks(source, 2, 5 * MIB)
    command = [sys.executable, "-c", ENDED, source.uri, target.uri, str(after), str(int(number))]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == -number, done.stderr
    assert target.list() == []
    copy_checkpoint(source, target)
    expected = contents(tmp_path / "source")
    assert {key: data for key, data in contents(tmp_path / "target").items() if key in expected} == expected
    assert target.verify().shards == 2


@pytest.mark.slow
@pytest.mark.parametrize("via", ["s3", "az"])
def test_there_and_back(
    source: CheckpointStore, target: CheckpointStore, tmp_path: Path, s3_bucket: Any, az_container: Any, via: str
) -> None:
    place = s3_bucket if via == "s3" else az_container
    source.save(1, state_of(1))
    with ExitStack() as stack:
        middle = stack.enter_context(CheckpointStore(f"{place.uri}/runs/one", options=place.options, **SMALL))
        info = copy_checkpoint(source, middle)
        assert middle.list() == [info]
        assert_same(middle.load(), state_of(1))
        copy_checkpoint(middle, target)
    assert contents(tmp_path / "target") == contents(tmp_path / "source")
