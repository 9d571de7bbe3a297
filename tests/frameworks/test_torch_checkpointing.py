"""The storage of torch_checkpointing, through its own managers and by itself, on all four schemes."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checkpointing import CheckpointManager, ItemSpec
from torch_checkpointing.checkpoint_layout import JsonSerialization, LayoutInfo, SafetensorsSerialization
from torch_checkpointing.config import SyncCheckpointSaverConfig

from s3dlio import ConfigError, CorruptError, ExistsError, ManifestError, NotFoundError, StorageError
from s3dlio.config import CheckpointConfig
from s3dlio.engine.source import BufferSource
from s3dlio.frameworks.torch_checkpointing import S3dlioStorage, S3dlioStorageConfig, shutdown
from s3dlio.frameworks.torch_checkpointing.marks import COMMITTED, UNFINISHED, load
from s3dlio.frameworks.torch_checkpointing.places import settled, spot_of
from s3dlio.object_uri import split_object
from s3dlio.objects import start_storing, wait_for
from s3dlio.pools import keep
from tests.frameworks import dcp_ranks
from tests.servers.azurite import Container
from tests.servers.s3_server import Bucket
from tests.store.live import MIB, SMALL, keeping_pool

STEP = Path("step_1")
TEMPORARY = Path("tmp_step_1")


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with keeping_pool(tmp_path_factory.mktemp("pool")):
        yield
        shutdown()


@pytest.fixture(params=["file", "direct", "s3", "az"])
def config(
    request: pytest.FixtureRequest, tmp_path: Path, s3_bucket: Bucket, az_container: Container
) -> S3dlioStorageConfig:
    return _config(request.param, tmp_path, s3_bucket, az_container)


@pytest.fixture(params=["s3", "az"])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, s3_bucket: Bucket, az_container: Container
) -> S3dlioStorage:
    return _config(request.param, tmp_path, s3_bucket, az_container).create_storage()


def _config(scheme: str, folder: Path, bucket: Bucket, container: Container) -> S3dlioStorageConfig:
    stored: dict[str, Bucket | Container] = {"s3": bucket, "az": container}
    where = stored.get(scheme)
    if where is None:
        return S3dlioStorageConfig(uri=f"{scheme}://{folder}/run", **SMALL)
    return S3dlioStorageConfig(uri=f"{where.uri}/run", options=where.options, **SMALL)


def _state(seed: int = 0) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn(700, 1000, generator=chance)
    return {"model": {"w": weight, "half": weight[0].bfloat16(), "empty": torch.empty(0, 3)}, "step": 7 + seed}


def _empty() -> dict[str, Any]:
    model = {name: torch.zeros_like(value) for name, value in _state()["model"].items()}
    return {"model": model, "step": 0}


def _check(loaded: Any, seed: int = 0) -> None:
    state = _state(seed)
    assert loaded["step"] == state["step"]
    for name, tensor in state["model"].items():
        assert torch.equal(loaded["model"][name], tensor), name


def _manager(config: S3dlioStorageConfig, save: Any = None, **more: Any) -> CheckpointManager:
    return CheckpointManager.Config(save=save or SyncCheckpointSaverConfig(), storage_config=config, **more).build()


def _put(storage: S3dlioStorage, folder: Path, *names: str) -> None:
    for name in names or ("a", "b"):
        storage.mkdir((folder / name).parent)
        storage.write(folder / name, name.encode())


# through its own manager


def test_a_manager_saves_and_loads(config: S3dlioStorageConfig) -> None:
    manager = _manager(config)
    for seed in range(2):
        manager.save(f"step_{seed}", _state(seed))
    for seed in range(2):
        into = _empty()
        _check(manager.load(f"step_{seed}", into=into), seed)
        assert torch.equal(into["model"]["w"], _state(seed)["model"]["w"])
    storage = config.create_storage()
    assert storage.ls(Path()) == ["step_0", "step_1"]
    assert storage.glob("step_*") == ["step_0", "step_1"]
    with pytest.raises(FileExistsError, match=r"there already|committed checkpoint"):
        manager.save("step_1", _state(5))
    _check(manager.load("step_1", into=_empty()), 1)
    with pytest.raises(FileNotFoundError):
        manager.load("step_9", into=_empty())
    manager.close()


def test_without_the_mapped_load_and_by_uri(config: S3dlioStorageConfig) -> None:
    manager = _manager(config)
    manager.save(f"{config.uri}/deep/step_1", _state())
    reader = CheckpointManager.Config(storage_config=config, save=SyncCheckpointSaverConfig())
    reader.load.use_mmap = False
    manager.close()
    manager = reader.build()
    _check(manager.load("deep/step_1", into=_empty()))
    manager.close()


def test_other_formats(config: S3dlioStorageConfig) -> None:
    def layout(rank: int) -> dict[str, ItemSpec]:
        return {
            "model": ItemSpec(layout=LayoutInfo(f"parts/{rank}.safetensors", SafetensorsSerialization())),
            "step": ItemSpec(layout=LayoutInfo("step.json", JsonSerialization())),
        }

    manager = _manager(config, items=layout(0))
    manager.save("step_1", _state())
    _check(manager.load("step_1", into=_empty()))
    storage = config.create_storage()
    assert json.loads(storage.read(STEP / "step.json")) == 7
    assert storage.ls(STEP / "parts") == ["0.safetensors"]
    assert storage.isdir(STEP / "parts")
    manager.close()


# In processes of their own: what torch_checkpointing starts beside its saves lives as long as its process.
RANKS = """
    from torch.distributed.tensor import distribute_tensor
    from torch_checkpointing import CheckpointManager, ItemSpec
    from torch_checkpointing.config import AsyncCheckpointSaverConfig, SyncCheckpointSaverConfig
    from torch_checkpointing.default_resharder import DefaultResharder
    from s3dlio.frameworks import torch_checkpointing as ours

    def manager(save, **items):
        storage = ours.S3dlioStorageConfig(uri=URI, **OPTIONS)
        return CheckpointManager.Config(items=items, save=save, storage_config=storage).build()

    full = torch.arange(3000 * 200, dtype=torch.float32).reshape(3000, 200)
"""


@pytest.mark.slow
def test_a_background_process_saves(tmp_path: Path, s3_bucket: Bucket) -> None:
    body = """
    both = manager(AsyncCheckpointSaverConfig())
    for step in range(2):
        both.save(f"step_{step}", {"model": {"w": full + RANK}, "step": step}).result(timeout=90)
    for step in range(2):
        into = {"model": {"w": torch.zeros_like(full)}, "step": 9}
        assert both.load(f"step_{step}", into=into)["step"] == step
        assert torch.equal(into["model"]["w"], full + RANK)
    dist.barrier()
    late = both.save("step_1", {"model": {"w": full}, "step": 5})
    for use in (lambda: late.result(timeout=90), both.close):  # the other process's error, of its class
        try:
            use()
        except FileExistsError as error:
            assert "is a committed checkpoint" in str(error), error
        else:
            raise AssertionError
    ours.shutdown()
    """
    dcp_ranks.run(tmp_path, 2, RANKS + body, uri=f"{s3_bucket.uri}/run", options=s3_bucket.options)
    names = (COMMITTED, "model_0.pt", "model_1.pt", "step_0.pt", "step_1.pt")
    assert s3_bucket.keys() == [f"run/step_{step}/{name}" for step in range(2) for name in names]


@pytest.mark.slow
def test_a_load_on_more_ranks_reads_rows(tmp_path: Path, s3_bucket: Bucket) -> None:
    """Saved by one rank: to gather what several have, torch_checkpointing 0.1.1 needs a GPU on each."""
    save = """
    one = manager(SyncCheckpointSaverConfig(), model=ItemSpec(resharder=DefaultResharder()))
    one.save("step_1", {"model": {"w": distribute_tensor(full, mesh, [Shard(0)])}})
    one.close()
    ours.shutdown()
    """
    load = """
    three = manager(SyncCheckpointSaverConfig(), model=ItemSpec(resharder=DefaultResharder()))
    into = {"model": {"w": distribute_tensor(torch.zeros_like(full), mesh, [Shard(0)])}}
    three.load("step_1", into=into)
    assert torch.equal(into["model"]["w"].full_tensor(), full)
    three.close()
    ours.shutdown()
    """
    given: dict[str, Any] = {"uri": f"{s3_bucket.uri}/run", "options": s3_bucket.options}
    dcp_ranks.run(tmp_path, 1, RANKS + save, **given)
    assert s3_bucket.keys() == [f"run/step_1/{name}" for name in (COMMITTED, "metadata.pkl", "model_0.pt")]
    dcp_ranks.run(tmp_path, 3, RANKS + load, **given)


# what torch_checkpointing asks of every storage


def test_files_and_folders(config: S3dlioStorageConfig) -> None:
    storage = config.create_storage()
    assert not storage.exists(Path("folder"))
    storage.mkdir(Path("folder/sub"))
    storage.write(Path("folder/a"), b"")
    storage.write(Path("folder/sub/b"), memoryview(b"12345"))
    big = bytes(range(256)) * (3 * MIB // 256 + 7)
    storage.write(Path("folder/big"), big)
    assert storage.ls(Path("folder")) == ["a", "big", "sub"]
    assert [storage.getsize(Path("folder") / name) for name in ("a", "big", "sub/b")] == [0, len(big), 5]
    assert [storage.read(Path("folder") / name) for name in ("a", "big", "sub/b")] == [b"", big, b"12345"]
    assert [storage.exists(Path(name)) for name in ("folder", "folder/a", "folder/sub", "folder/c")] == [
        *(True, True, True, False),
    ]
    assert [storage.isdir(Path(name)) for name in ("folder", "folder/a", "folder/sub", "folder/c")] == [
        *(True, False, True, False),
    ]
    storage.write(Path("folder/a"), b"other")
    assert storage.read(Path("folder/a")) == b"other"
    storage.delete(Path("folder/a"))
    for missing in (storage.delete, storage.read, storage.getsize, storage.stream_read, storage.ls, storage.rmdir):
        with pytest.raises(FileNotFoundError):
            missing(Path("folder/a"))
    storage.rmdir(Path("folder"))
    assert not storage.exists(Path("folder"))
    assert storage.remap_path(Path("x/y")).endswith("/run/x/y")


def test_what_is_read_is_where_it_was_sought(config: S3dlioStorageConfig) -> None:
    storage = config.create_storage()
    data = torch.arange(5 * MIB // 4, dtype=torch.int32).numpy().tobytes()
    storage.mkdir(Path())
    storage.write(Path("file"), data)
    with storage.stream_read(Path("file")) as stream:
        for start, count in ((0, 10), (5, 10), (MIB, 3), (7, 2 * MIB + 3), (len(data) - 4, 100), (3 * MIB + 1, MIB)):
            assert stream.seek(start) == start
            assert stream.read(count) == data[start : start + count]
            assert stream.tell() == min(start + count, len(data))
        assert stream.seek(-3, io.SEEK_END) == len(data) - 3
        assert stream.read() == data[-3:]
        assert stream.read(10) == b""
        assert stream.seek(-10, io.SEEK_CUR) == len(data) - 10
        assert stream.seek(10 * MIB) == 10 * MIB
        assert stream.read(1) == b""
        with pytest.raises(ValueError, match="-1"):
            stream.seek(-1)
        assert stream.readable()
        assert stream.seekable()


def test_a_stream_publishes_all_or_nothing(config: S3dlioStorageConfig) -> None:
    storage = config.create_storage()
    storage.mkdir(Path("x"))
    path = Path("x/file")
    with storage.stream_write(path) as stream:
        for _ in range(3):
            assert stream.write(b"1" * MIB) == MIB
        assert not storage.exists(path)
    stream.close()
    assert storage.getsize(path) == 3 * MIB
    stream = storage.stream_write(path)
    stream.write(b"2" * 4 * MIB)
    stream.__exit__(KeyError, KeyError(), None)
    assert stream.closed
    lost = storage.stream_write(path)
    lost.write(b"3")
    del lost
    with pytest.raises(TypeError), storage.stream_write(path) as stream:
        stream.write("text")
    assert storage.getsize(path) == 3 * MIB


def test_renames(config: S3dlioStorageConfig) -> None:
    storage = config.create_storage()
    for folder in ("tmp_step_1", "tmp_step_2", "plain"):
        _put(storage, Path(folder))
    _put(storage, TEMPORARY, "sub/c")
    storage.rename(TEMPORARY, STEP, is_directory=True)
    assert not storage.exists(TEMPORARY)
    assert storage.ls(STEP) == ["a", "b", "sub"]
    assert storage.read(STEP / "sub/c") == b"sub/c"
    for source in (Path("tmp_step_2"), Path("plain")):
        with pytest.raises(FileExistsError, match="there already"):
            storage.rename(source, STEP, is_directory=True)
        assert storage.ls(source) == ["a", "b"]
    storage.rename(Path("plain"), Path("other"), is_directory=True)
    assert storage.ls(Path()) == ["other", "step_1", "tmp_step_2"]
    assert storage.read(Path("other/b")) == b"b"
    storage.rename(Path("tmp_step_2/a"), Path("tmp_step_2/b"))
    assert storage.ls(Path("tmp_step_2")) == ["b"]
    assert storage.read(Path("tmp_step_2/b")) == b"a"
    with pytest.raises(FileExistsError):
        storage.rename(Path("tmp_step_2/b"), STEP)
    with pytest.raises(FileNotFoundError):
        storage.rename(Path("missing"), Path("elsewhere"))
    storage.rename(Path("other"), Path("tmp_step_9"), is_directory=True)
    storage.rename(Path("tmp_step_9"), Path("step_9"), is_directory=True)
    assert storage.ls(Path("step_9")) == ["a", "b"]


# object stores


def test_a_checkpoint_appears_by_one_object_and_no_copy(s3_bucket: Bucket) -> None:
    storage = S3dlioStorageConfig(uri=s3_bucket.uri, options=s3_bucket.options, **SMALL).create_storage()
    _put(storage, TEMPORARY)
    assert s3_bucket.keys() == [f"step_1/{UNFINISHED}", "step_1/a", "step_1/b"]
    assert storage.ls(Path()) == ["tmp_step_1"]
    assert storage.exists(TEMPORARY)
    for name in ("step_1", "step_1/a"):
        assert not storage.exists(Path(name))
    for use in (storage.read, storage.delete, storage.getsize):
        with pytest.raises(NotFoundError, match="step_1/a does not exist"):
            use(STEP / "a")
    for use in (storage.ls, storage.rmdir):
        with pytest.raises(NotFoundError, match="step_1 does not exist"):
            use(STEP)
    with pytest.raises(ExistsError, match="has not finished"):
        storage.write(STEP / "a", b"")
    storage.rename(TEMPORARY, STEP, is_directory=True)
    assert s3_bucket.keys() == [f"step_1/{COMMITTED}", "step_1/a", "step_1/b"]
    assert storage.read(STEP / "a") == b"a"
    storage.rmdir(STEP)
    assert s3_bucket.keys() == []


def test_a_killed_save_is_taken_up_again(objects: S3dlioStorage) -> None:
    _put(objects, TEMPORARY)
    again = objects._config.create_storage()
    again.write(TEMPORARY / "a", b"again")
    again.rename(TEMPORARY, STEP, is_directory=True)
    assert again.read(STEP / "a") == b"again"
    with pytest.raises(ExistsError, match="committed checkpoint"):
        objects.write(TEMPORARY / "a", b"late")
    with pytest.raises(ExistsError, match="committed checkpoint"):
        objects.stream_write(STEP / "a")
    with pytest.raises(NotFoundError):
        objects.rename(TEMPORARY, STEP, is_directory=True)


def test_two_that_commit_one_folder(objects: S3dlioStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(objects, TEMPORARY)
    other = objects._config.create_storage()
    seen = other._objects.is_folder

    def late(spot: Any) -> bool:
        found = seen(spot)
        objects.rename(TEMPORARY, STEP, is_directory=True)
        return found

    monkeypatch.setattr(other._objects, "is_folder", late)
    with pytest.raises(ExistsError, match="another save was committed first"):
        other.rename(TEMPORARY, STEP, is_directory=True)
    assert objects.read(STEP / "a") == b"a"


def test_files_that_a_late_writer_changed_are_refused(objects: S3dlioStorage) -> None:
    _put(objects, TEMPORARY)
    with objects.stream_write(TEMPORARY / "a") as late:
        late.write(b"late")
        objects.rename(TEMPORARY, STEP, is_directory=True)
        assert objects.read(STEP / "a") == b"a"
    with pytest.raises(StorageError, match="written to after its folder was committed"):
        objects.read(STEP / "a")
    assert objects.read(STEP / "b") == b"b"
    objects.write(STEP / "note", b"files may be added")
    assert objects.read(STEP / "note") == b"files may be added"


def test_a_folder_that_holds_files_takes_no_save(objects: S3dlioStorage) -> None:
    objects.write(STEP / "a", b"plain")
    assert objects.ls(Path()) == ["step_1"]
    with pytest.raises(ExistsError, match="holds files already"):
        objects.write(TEMPORARY / "b", b"")
    assert objects.read(STEP / "a") == b"plain"


def test_ranks_begin_one_folder_together(objects: S3dlioStorage) -> None:
    storages = [objects, objects._config.create_storage()]

    def write(rank: int) -> None:
        storages[rank].mkdir(TEMPORARY)
        storages[rank].write(TEMPORARY / str(rank), b"")

    with ThreadPoolExecutor(2) as ranks:
        list(ranks.map(write, range(2)))
    objects.rename(TEMPORARY, STEP, is_directory=True)
    assert objects.ls(STEP) == ["0", "1"]


def test_a_removal_that_is_broken_off_leaves_no_checkpoint(
    objects: S3dlioStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(objects, TEMPORARY)
    objects.rename(TEMPORARY, STEP, is_directory=True)
    spot = spot_of(STEP, objects._config.uri, objects._config.options)
    control = keep(CheckpointConfig(**SMALL)).control(spot.location)
    control.put(f"step_1/{UNFINISHED}", [])  # what removal does first
    assert objects.exists(STEP)
    control.delete(f"step_1/{COMMITTED}")
    assert not objects.exists(STEP)
    objects.rmdir(TEMPORARY)
    assert not objects.exists(TEMPORARY)


def test_folders_move_between_stores(s3_bucket: Bucket, az_container: Container) -> None:
    storage = S3dlioStorageConfig(options=s3_bucket.options, **SMALL).create_storage()
    _put(storage, Path(f"{s3_bucket.uri}/one/tmp_a"), "x", "y/z")
    storage.rename(Path(f"{s3_bucket.uri}/one/tmp_a"), Path(f"{s3_bucket.uri}/two/b"))
    assert s3_bucket.keys() == [f"two/b/{COMMITTED}", "two/b/x", "two/b/y/z"]
    assert storage.read(Path(f"{s3_bucket.uri}/two/b/y/z")) == b"y/z"
    with pytest.raises(ConfigError, match="one kind of store"):
        storage.rename(Path(f"{s3_bucket.uri}/two/b"), Path("/tmp/b"))


def test_lost_files_and_bad_records_are_errors(objects: S3dlioStorage) -> None:
    _put(objects, TEMPORARY)
    objects.rename(TEMPORARY, STEP, is_directory=True)
    spot = spot_of(STEP, objects._config.uri, objects._config.options)
    place = split_object(f"{spot}/{COMMITTED}", objects._config.options)
    stream = objects.stream_read(STEP / "a")
    wait_for(start_storing(keep(CheckpointConfig(**SMALL)), place, BufferSource(memoryview(b"{}"))))
    with pytest.raises(ManifestError, match="no record of a committed folder"):
        objects.read(STEP / "a")
    keep(CheckpointConfig(**SMALL)).control(spot.location).put("step_1/a", [])
    with pytest.raises(CorruptError):
        stream.read()
    stream.close()


# pure


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"[]", "no record"),
        (b"{", "no record"),
        (b'{"s3dlio_folder": 2, "files": {}}', "version 2"),
        (b'{"s3dlio_folder": 1, "files": []}', "no record"),
        (b'{"s3dlio_folder": 1, "files": {"a": [1]}}', "no record"),
        (b'{"s3dlio_folder": 1, "files": {"a": ["1", "x"]}}', "malformed"),
        (b'{"s3dlio_folder": 1, "files": {"a": [1, 2]}}', "malformed"),
    ],
)
def test_malformed_records(data: bytes, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        load(data, "key")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (("a", "b"), (("a", "b"), None)),
        (("a", "tmp_b", "c"), (("a", "b", "c"), 1)),
        (("tmp_a", "tmp_b"), (("a", "tmp_b"), 0)),
        (("tmp_",), (("tmp_",), None)),
        ((), ((), None)),
    ],
)
def test_temporary_folders(parts: tuple[str, ...], found: object) -> None:
    assert settled(parts, "tmp_") == found


@pytest.mark.parametrize(
    ("path", "base", "uri", "parts"),
    [
        ("step_1/a", "s3://bkt/run", "s3://bkt/run", ("step_1", "a")),
        ("s3:/bkt/run/step_1", "s3://bkt/run/", "s3://bkt/run", ("step_1",)),
        ("s3:/bkt/running", "s3://bkt/run", "s3://bkt/", ("running",)),
        ("s3://bkt/x/y", None, "s3://bkt/", ("x", "y")),
        (".", "s3://bkt/run", "s3://bkt/run", ()),
        ("/x/../y", None, "file:///", ("y",)),
        ("/x", "direct:///z", "direct:///", ("x",)),
        ("x", "direct:///z", "direct:///", ("z", "x")),
        ("file:/x/y", "s3://bkt", "file:///", ("x", "y")),
    ],
)
def test_paths(path: str, base: str | None, uri: str, parts: tuple[str, ...]) -> None:
    spot = spot_of(path, base, {})
    assert (spot.uri, spot.parts) == (uri, parts)


@pytest.mark.parametrize(("path", "base"), [("/x", "s3://bkt"), ("x", None), ("a/../b", "s3://bkt"), ("gs:/b/x", None)])
def test_paths_that_name_nothing(path: str, base: str | None) -> None:
    with pytest.raises(ConfigError):
        spot_of(path, base, {})


@pytest.mark.parametrize(
    "options", [{"uri": "gs://x"}, {"temp_dir_prefix": ""}, {"temp_dir_prefix": "a/b"}, {"memory": 0}, {"workers": "2"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        S3dlioStorageConfig(**options)


def test_marks_are_no_files(s3_bucket: Bucket) -> None:
    storage = S3dlioStorageConfig(uri=s3_bucket.uri, options=s3_bucket.options, **SMALL).create_storage()
    for use in (lambda path: storage.write(path, b""), storage.stream_write):
        with pytest.raises(ConfigError, match="no name of a file"):
            use(Path(f"x/{COMMITTED}"))
    assert not storage.exists(Path(f"x/{COMMITTED}"))
    assert storage.exists(Path())
    assert storage.ls(Path()) == []


def test_a_config_travels_and_keeps_its_secrets(s3_bucket: Bucket) -> None:
    config = S3dlioStorageConfig(uri=s3_bucket.uri, options={"secret_access_key": "hush", "access_key_id": "me"})
    assert pickle.loads(pickle.dumps(config)) == config
    assert "hush" not in repr(config) + repr(config.create_storage())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("s3dlio.frameworks.torch_checkpointing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_checkpointing", None)
    with pytest.raises(ImportError, match=r"pip install 's3dlio\[torch_checkpointing\]'"):
        __import__("s3dlio.frameworks.torch_checkpointing")
