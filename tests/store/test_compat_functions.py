"""The functions of one URI, and stores that the published package wrote (see data/README.md)."""

from __future__ import annotations

import inspect
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import s3dlio
from s3dlio import (
    CheckpointNotFoundError,
    CheckpointStore,
    ConfigError,
    CorruptError,
    ManifestError,
    NotFoundError,
    PyCheckpointStore,
    S3dlioError,
    compat,
    finalize_distributed_checkpoint,
    init_logging,
    load_checkpoint,
    load_checkpoint_with_validation,
    load_checkpoint_with_validation_view,
    pools,
    save_checkpoint,
    save_distributed_shard,
)
from s3dlio.payload import Payload
from s3dlio.shard_uri import split_object_uri, split_shard_uri
from tests.store.live import SMALL, contents
from tests.store.ranks import commit, save_world

DATA = Path(__file__).parent / "data" / "published"


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The pool that the functions keep, started before a test and ended after the last."""
    load_checkpoint(f"file://{tmp_path_factory.mktemp('first')}")
    yield
    pools.let_go()


@pytest.fixture
def uri(functions: None, folder: Path) -> str:
    return f"file://{folder}"


SIGNATURES = {
    save_checkpoint: "(uri, step, epoch, framework, data, user_meta=None)",
    load_checkpoint: "(uri)",
    save_distributed_shard: "(uri, step, epoch, framework, data, world_size, rank)",
    finalize_distributed_checkpoint: "(uri, step, epoch, framework, shard_metas, world_size, rank, user_meta=None)",
    load_checkpoint_with_validation: "(uri, validate_integrity=True)",
    load_checkpoint_with_validation_view: "(uri, validate_integrity=True)",
    init_logging: "(level)",
    PyCheckpointStore.save: "(self, step, epoch, framework, data, user_meta=None)",
    PyCheckpointStore.load_latest: "(self)",
    PyCheckpointStore.list_checkpoints: "(self)",
    PyCheckpointStore.delete_checkpoint: "(self, step)",
    PyCheckpointStore.writer: "(self, world_size, rank)",
    PyCheckpointStore.reader: "(self)",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_are_those_of_the_published_package(function: Any) -> None:
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[function]


def test_the_store_takes_the_published_arguments_by_position() -> None:
    names = [
        name
        for name, each in inspect.signature(PyCheckpointStore).parameters.items()
        if each.kind is not each.KEYWORD_ONLY
    ]
    assert names == ["uri", "strategy", "multipart_threshold", "compression_level"]


def test_save_and_load(uri: str) -> None:
    assert load_checkpoint(uri) is None
    key = save_checkpoint(uri, 1, 2, "jax", np.arange(4, dtype=np.uint8), {"a": 1})
    assert load_checkpoint(uri) == b"\0\1\2\3"
    with CheckpointStore(uri) as store:
        assert store.info(1).manifest_key == key
        assert store.info(1).user_meta == {"a": 1}


def test_ranks_save_and_one_commits(uri: str) -> None:
    records = [save_distributed_shard(uri, 5, 0, "jax", bytes([rank]) * 9, 2, rank) for rank in range(2)]
    assert load_checkpoint(uri) is None
    key = finalize_distributed_checkpoint(uri, 5, 0, "jax", records, 2, 0, user_meta="said")
    manifest = json.loads((Path(uri.removeprefix("file://")) / key).read_text())
    assert (manifest["world_size"], manifest["user_meta"]) == (2, "said")
    with pytest.raises(ConfigError, match="was saved by 2 ranks"):
        load_checkpoint(uri)


def test_the_workers_stay_between_calls(uri: str) -> None:
    before = pools.keep().supervisor.pids()
    save_checkpoint(uri, 1, 0, "", b"x")
    assert load_checkpoint(uri) == b"x"
    assert pools.keep().supervisor.pids() == before


def test_functions_refuse_what_the_store_refuses(uri: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="rank 2 is outside the world"):
        save_distributed_shard(uri, 5, 0, "jax", b"x", 2, 2)
    with pytest.raises(TypeError, match="payload"):
        save_checkpoint(uri, 5, 0, "jax", "text")
    with pytest.raises(ManifestError, match="2 of 2 ranks are missing"):
        finalize_distributed_checkpoint(uri, 5, 0, "jax", [], 2, 0)
    with pytest.raises(ConfigError, match="unknown scheme"):
        load_checkpoint("ftp://host/a")
    assert contents(folder) == {}


# one shard by its URI


@pytest.mark.parametrize("level", [None, 3])
def test_a_shard_is_read_and_verified_by_its_uri(uri: str, folder: Path, level: int | None) -> None:
    with PyCheckpointStore(uri, "binary", None, level) as store:
        records = [store.writer(2, rank).save_distributed_shard(1, 0, "", bytes([rank]) * 1000) for rank in range(2)]
        commit(store, records)
    for rank, record in enumerate(records):
        found = load_checkpoint_with_validation(f"{uri}/{record['key']}")
        assert (type(found), found) == (bytes, bytes([rank]) * 1000)
        view = load_checkpoint_with_validation_view(f"{uri}/{record['key']}")
        assert (type(view), view) == (Payload, found)
        stored = (folder / record["key"]).read_bytes()
        assert load_checkpoint_with_validation(f"{uri}/{record['key']}", False) == stored
        assert (stored == found) is (level is None)


def test_any_object_is_read_unverified(uri: str, folder: Path) -> None:
    key = save_checkpoint(uri, 1, 0, "", b"")
    assert load_checkpoint_with_validation(f"{uri}/{key}", False) == (folder / key).read_bytes()
    (folder / "empty").touch()
    assert load_checkpoint_with_validation(f"{uri}/empty", validate_integrity=False) == b""
    with pytest.raises(NotFoundError):
        load_checkpoint_with_validation(f"{uri}/absent", validate_integrity=False)


def test_a_shard_that_changed_is_refused(uri: str, folder: Path) -> None:
    with PyCheckpointStore(uri) as store:
        records = save_world(store, 2)
        commit(store, records)
    shard = f"{uri}/{records[1]['key']}"
    (folder / records[1]["key"]).write_bytes(b"\1" * 99 + b"\2")
    with pytest.raises(CorruptError, match=r"rank-1\.bin"):
        load_checkpoint_with_validation(shard)
    assert load_checkpoint_with_validation(shard, validate_integrity=False) == b"\1" * 99 + b"\2"


def test_a_shard_without_a_manifest_is_refused(uri: str, folder: Path) -> None:
    record = save_distributed_shard(uri, 1, 0, "", b"x", 1, 0)
    with pytest.raises(CheckpointNotFoundError, match=f"no manifest lists {record['key']}"):
        load_checkpoint_with_validation(f"{uri}/{record['key']}")
    other = save_checkpoint(uri, 1, 0, "", b"y")  # of the same step
    with pytest.raises(CheckpointNotFoundError, match="no manifest lists"):
        load_checkpoint_with_validation(f"{uri}/{record['key']}")
    (folder / other).write_text("torn")
    with pytest.raises(ManifestError, match="is not valid JSON"):
        load_checkpoint_with_validation(f"{uri}/{record['key']}")


def test_a_shard_beside_a_damaged_manifest_is_read(uri: str, folder: Path) -> None:
    record = save_distributed_shard(uri, 1, 0, "", b"x", 1, 0)
    finalize_distributed_checkpoint(uri, 1, 0, "", [record], 1, 0)
    (folder / save_checkpoint(uri, 1, 0, "", b"y")).write_text("torn")
    assert load_checkpoint_with_validation(f"{uri}/{record['key']}") == b"x"


def test_a_shard_recorded_without_a_checksum_is_refused(uri: str) -> None:
    record = save_distributed_shard(uri, 1, 0, "", b"x", 1, 0)
    plain = {name: record[name] for name in ("rank", "key", "size", "step")}
    finalize_distributed_checkpoint(uri, 1, 0, "", [plain], 1, 0)
    with pytest.raises(CorruptError, match="recorded no checksum"):
        load_checkpoint_with_validation(f"{uri}/{record['key']}")
    assert load_checkpoint_with_validation(f"{uri}/{record['key']}", False) == b"x"


SHARD = "shards/ckpt-7-20261123-210835/rank-0.bin"


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        (f"file:///a/b/{SHARD}", "file:///a/b/"),
        (f"file:///{SHARD}", "file:///"),
        (f"file:///a/shards/b/{SHARD}", "file:///a/shards/b/"),
        (f"s3://bucket/run/{SHARD}", "s3://bucket/run/"),
    ],
)
def test_a_shard_uri_is_a_store_and_a_key(uri: str, base: str) -> None:
    assert split_shard_uri(uri) == (base, SHARD)


@pytest.mark.parametrize(
    "uri",
    [
        "file:///a/manifests/ckpt-7-20261123-210835.json",
        "file:///a",
        SHARD,
        f"file:///a/{SHARD.replace('.bin', '.idx')}",
        "file:///a/shards/../../rank-0.bin",
        "",
        7,
        None,
    ],
)
def test_what_is_no_shard_uri_is_refused(uri: Any) -> None:
    with pytest.raises(ConfigError, match=r"is no shard|must be a string"):
        load_checkpoint_with_validation(uri)


def test_an_object_uri_is_a_folder_and_a_name() -> None:
    assert split_object_uri("file:///a/b") == ("file:///a/", "b")
    assert split_object_uri("file:///b") == ("file:///", "b")
    for uri in ("file:///a/", "file://a", "a", ""):
        with pytest.raises(ConfigError, match="names no object"):
            split_object_uri(uri)


# stores of the published package


@pytest.fixture
def foreign(kept_pool: CheckpointStore, folder: Path, request: pytest.FixtureRequest) -> Iterator[PyCheckpointStore]:
    """A copy of one of the stores that the published package wrote."""
    shutil.copytree(DATA / request.param, folder)
    with PyCheckpointStore(f"file://{folder}", **SMALL) as store:
        yield store


@pytest.mark.parametrize(
    ("foreign", "world"), [("flat", 2), ("round_robin_zstd", 2), ("binary_zstd", 17)], indirect=["foreign"]
)
def test_every_rank_of_a_published_store_is_read(
    functions: None, foreign: PyCheckpointStore, folder: Path, world: int
) -> None:
    before = contents(folder)
    reader = foreign.reader()
    manifest = reader.load_latest_manifest()
    assert manifest is not None
    assert (manifest["global_step"], manifest["epoch"], manifest["world_size"]) == (7, 3, world)
    for rank in range(world):
        expected = bytes([65 + rank]) * 40 * (rank + 1)
        assert reader.read_shard_by_rank(manifest, rank) == expected
        shard = f"file://{folder}/{manifest['shards'][rank]['key']}"
        assert load_checkpoint_with_validation(shard) == expected
        stored = load_checkpoint_with_validation(shard, validate_integrity=False)
        assert zstandard.decompress(stored, 1 << 20) == expected if shard.endswith(".zst") else stored == expected
    assert contents(folder) == before


@pytest.mark.parametrize("foreign", ["two_steps"], indirect=True)
def test_the_latest_of_a_published_store_is_loaded_and_followed(foreign: PyCheckpointStore, folder: Path) -> None:
    assert foreign.load_latest() == b"five"
    assert [info.step for info in foreign.list_checkpoints()] == [10, 5]
    foreign.save(4, 0, "jax", b"four")
    assert foreign.load_latest() == b"four"
    assert json.loads((folder / "latest.json").read_text())["global_step"] == 4
    assert foreign.delete_checkpoint(4)
    assert foreign.load_latest() == b"five"


@pytest.mark.parametrize("foreign", ["flat", "round_robin_zstd"], indirect=True)
def test_null_checksums_of_a_published_store_are_accepted(foreign: PyCheckpointStore, folder: Path) -> None:
    (path,) = folder.glob("manifests/ckpt-*.json")
    manifest = json.loads(path.read_text())
    for shard in manifest["shards"]:
        shard["checksum"] = shard["etag"] = None
    path.write_text(json.dumps(manifest))
    reader = foreign.reader()
    found = reader.load_latest_manifest()
    assert found is not None
    assert reader.read_shard_by_rank(found, 1) == b"B" * 80
    assert foreign._store.verify().shards == 2


@pytest.mark.parametrize("foreign", ["flat", "round_robin_zstd"], indirect=True)
def test_a_damaged_published_shard_is_refused(foreign: PyCheckpointStore, folder: Path) -> None:
    manifest = foreign.reader().load_latest_manifest()
    assert manifest is not None
    for rank, end in enumerate((b"", b"\xff")):  # cut short; changed
        path = folder / manifest["shards"][rank]["key"]
        path.write_bytes(path.read_bytes()[:-1] + end)
        with pytest.raises(CorruptError, match=path.name) as raised:
            foreign.reader().read_shard_by_rank(manifest, rank)
        assert isinstance(raised.value, S3dlioError)


# logging


_LOGGING = """
import logging, s3dlio
s3dlio.init_logging("INFO")
s3dlio.init_logging("Debug")
logging.getLogger("s3dlio.engine").debug("told")
s3dlio.init_logging("off")
logging.getLogger("s3dlio.engine").critical("silent")
"""


def test_logging_goes_to_standard_error_once() -> None:
    done = subprocess.run([sys.executable, "-c", _LOGGING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert re.fullmatch(r"[-0-9]+ [:,0-9]+ DEBUG s3dlio.engine: told\n", done.stderr)


def test_handlers_of_the_application_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("s3dlio")
    before, level = logger.handlers[:], logger.level
    try:
        init_logging("warn")
        assert (logger.handlers, logger.level) == (before, logging.WARNING)
    finally:
        logger.setLevel(level)


@pytest.mark.parametrize("level", ["loud", "", None, 10])
def test_an_unknown_level_is_refused(level: Any) -> None:
    with pytest.raises(ConfigError, match="unknown log level"):
        init_logging(level)


def test_the_names_are_those_of_the_package() -> None:
    for name in ("PyCheckpointStore", *(f.__name__ for f in SIGNATURES if not f.__qualname__.startswith("Py"))):
        assert getattr(s3dlio, name) is getattr(compat, name)
