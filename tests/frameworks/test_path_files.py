"""What Lightning sees of its checkpoints' folders through fsspec, on schemes that fsspec itself does not serve here."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from s3dlio import CheckpointStore
from s3dlio.config import CheckpointConfig
from s3dlio.engine.errors import StorageError, UnsupportedError
from s3dlio.frameworks import path_files
from s3dlio.frameworks.paths import PathStores, uri_of
from tests.servers.azurite import Container
from tests.servers.s3_server import Bucket
from tests.store.live import SMALL, keeping_pool


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    with keeping_pool(tmp_path_factory.mktemp("pool")) as store:
        yield store


@pytest.fixture
def stores() -> Iterator[PathStores]:
    stores = PathStores(CheckpointConfig(**SMALL))
    path_files.ask(stores)
    yield stores
    stores.close()


@pytest.fixture(params=["direct", "s3", "az"])
def base(request: pytest.FixtureRequest, tmp_path: Path, s3_bucket: Bucket, az_container: Container) -> Iterator[str]:
    """A folder that holds one checkpoint and one object, on stores that are asked from now on."""
    stored: dict[str, Bucket | Container] = {"s3": s3_bucket, "az": az_container}
    where = stored.get(request.param)
    uri = f"direct://{tmp_path}/run" if where is None else f"{where.uri}/run"
    stores = PathStores(CheckpointConfig(**SMALL, options={} if where is None else where.options))
    path_files.ask(stores)
    with stores.opened(f"{uri}/a.ckpt") as store:
        store.save(3, {"x": 1}, coordinator=None)
    with stores.opened(uri) as store:
        store.control().put("file.txt", [memoryview(b"12345")])
    yield uri
    stores.close()


def test_what_is_there_is_seen(base: str) -> None:
    files, name = url_to_fs(base)
    plain = base.partition("://")[2]
    assert name == plain
    assert files.exists(f"{base}/a.ckpt")
    assert files.isdir(base)
    assert files.isdir(f"{base}/a.ckpt/")
    assert files.isfile(f"{base}/file.txt")
    assert not files.isfile(f"{base}/a.ckpt")
    info = files.info(f"{base}/file.txt")
    assert (info["name"], info["type"], info["size"]) == (f"{plain}/file.txt", "file", 5)
    assert not files.exists(f"{base}/a.ck")
    assert not files.exists(f"{base}/none/deeper.ckpt")
    assert sorted(files.ls(base, detail=False)) == [f"{plain}/a.ckpt", f"{plain}/file.txt"]
    assert {entry["name"]: entry["type"] for entry in files.ls(base, detail=True)}[f"{plain}/a.ckpt"] == "directory"
    files.makedirs(f"{base}/new", exist_ok=True)  # in an object store folders come with what lies in them
    for gone in (files.ls, files.modified):
        with pytest.raises(FileNotFoundError):
            gone(f"{base}/none")


def test_the_time_of_a_checkpoint_is_that_of_its_newest_object(base: str) -> None:
    files, _ = url_to_fs(base)
    assert abs(files.modified(f"{base}/a.ckpt").timestamp() - time.time()) < 600


def test_the_root_of_a_store_is_a_folder(base: str) -> None:
    root = "direct:///" if base.startswith("direct") else base.removesuffix("/run")
    assert url_to_fs(root)[0].isdir(root)


def test_objects_are_not_opened(s3_bucket: Bucket) -> None:
    files, _ = url_to_fs(s3_bucket.uri)
    for mode in ("rb", "wb"):
        with pytest.raises(UnsupportedError, match="S3dlioCheckpointIO"):
            files.open(f"{s3_bucket.uri}/file.txt", mode)


def test_a_save_on_its_way_is_there(s3_bucket: Bucket) -> None:
    stores = PathStores(CheckpointConfig(**SMALL, options=s3_bucket.options))
    path_files.ask(stores)
    uri = f"{s3_bucket.uri}/run/a.ckpt"
    files, _ = url_to_fs(uri)
    assert not files.exists(uri)
    with stores.opened(uri):
        assert files.exists(uri)
    stores.close()


def test_a_store_that_does_not_answer_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    options = {"endpoint_url": endpoint, "access_key_id": "a", "secret_access_key": "b", "retry_deadline": 0.1}
    stores = PathStores(CheckpointConfig(**SMALL, options=options))
    path_files.ask(stores)
    files, _ = url_to_fs("s3://bucket/run")
    with pytest.raises(StorageError):
        files.exists("s3://bucket/run/a.ckpt")
    stores.close()


@pytest.mark.slow
def test_without_a_plugin_the_environment_tells_where_to_ask(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_bucket.write("run/a.ckpt/x", b"x")
    for name, value in s3_bucket.options.items():
        upper = {"endpoint_url": "AWS_ENDPOINT_URL", "region": "AWS_REGION"}.get(name, f"AWS_{name.upper()}")
        monkeypatch.setenv(upper, value)
    path_files.ask(PathStores(CheckpointConfig()))  # which nobody keeps
    gc.collect()
    files, _ = url_to_fs(s3_bucket.uri)
    assert files.exists(f"{s3_bucket.uri}/run/a.ckpt")
    assert not files.exists(f"{s3_bucket.uri}/run/b.ckpt")


def test_local_paths_stay_with_fsspec(tmp_path: Path) -> None:
    assert isinstance(url_to_fs(str(tmp_path))[0], LocalFileSystem)
    assert uri_of(tmp_path / "a" / ".." / "b") == f"file://{tmp_path}/b"
    assert uri_of("s3://bucket/run/") == "s3://bucket/run"


def test_stores_of_one_path_are_one_until_the_last_leaves(tmp_path: Path, stores: PathStores) -> None:
    one = stores.open(f"file://{tmp_path}")
    assert stores.open(f"file://{tmp_path}") is one
    stores.release(f"file://{tmp_path}")
    one.save(1, {"a": 1}, coordinator=None)
    stores.release(f"file://{tmp_path}")
    assert stores.open(f"file://{tmp_path}") is not one
    stores.release(f"file://{tmp_path}")
