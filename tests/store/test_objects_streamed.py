"""The streaming writers of single objects, one for each kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

import s3dlio
from s3dlio import CancelledError, ConfigError, PyWriterOptions, S3dlioError, pools
from s3dlio.engine.checksum import crc32c, format_crc32c
from s3dlio.object_writers import PyObjectWriter
from tests.store.live import random_bytes

MIB = 1 << 20
CHUNK = 16 * MIB


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    """The pool that the writers keep, ended after the last test."""
    s3dlio.exists("file:///dev/null/")
    yield
    pools.let_go()


def written(writer: PyObjectWriter, data: bytes) -> tuple[int, int]:
    for start in range(0, len(data), 3 * MIB):
        writer.write_chunk(memoryview(data)[start : start + 3 * MIB])
    assert writer.bytes_written() == len(data)
    return writer.finalize()


@pytest.mark.parametrize("data", [b"", b"few", bytes(5 * MIB) + random_bytes(CHUNK)], ids=["none", "few", "many"])
@pytest.mark.parametrize(
    ("create", "scheme"),
    [
        (s3dlio.create_filesystem_writer, "file"),
        (s3dlio.create_direct_filesystem_writer, "direct"),
        (s3dlio.create_direct_filesystem_writer, "file"),
    ],
)
def test_a_streaming_writer(tmp_path: Path, create: Any, scheme: str, data: bytes) -> None:
    writer = create(f"{scheme}://{tmp_path}/x")
    assert writer.checksum() is None
    assert written(writer, data) == (len(data), len(data))
    assert (tmp_path / "x").read_bytes() == data
    assert (writer.bytes_written(), writer.compressed_bytes()) == (len(data), len(data))
    assert writer.checksum() == format_crc32c(crc32c(data))
    with pytest.raises(S3dlioError, match="is closed"):
        writer.write_chunk(b"x")
    with pytest.raises(S3dlioError, match="is closed"):
        writer.finalize()


@pytest.mark.parametrize("data", [b"", b"few", bytes(5 * MIB) + random_bytes(CHUNK)], ids=["none", "few", "many"])
@pytest.mark.parametrize("name", ["x.bin", "x.bin.zst"])
def test_a_compressing_writer(tmp_path: Path, name: str, data: bytes) -> None:
    options = PyWriterOptions().with_buffer_size(4096).with_compression("zstd", 1)
    told = written(s3dlio.create_filesystem_writer(f"file://{tmp_path}/{name}", options), data)
    (path,) = tmp_path.iterdir()
    assert path.name == "x.bin.zst"
    stored = path.read_bytes()
    assert told == (len(data), len(stored))
    reader = zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True)
    assert reader.read(len(data) + 1) == data
    assert not data or len(stored) < len(data) + 64


def test_a_streaming_writer_on_s3(s3_bucket: Any) -> None:
    uri = f"{s3_bucket.uri}/a/x"
    with s3dlio.create_s3_writer(uri, None, store_options=s3_bucket.options) as writer:
        assert written(writer, b"some") == (4, 4)
    assert s3dlio.get(uri, options=s3_bucket.options) == b"some"


def test_a_streaming_writer_on_azure(az_container: Any) -> None:
    uri = f"{az_container.uri}/a/x"
    with s3dlio.create_azure_writer(uri, store_options=az_container.options) as writer:
        assert written(writer, b"some") == (4, 4)
    assert s3dlio.get(uri, options=az_container.options) == b"some"


def test_a_streaming_writer_without_finalize_publishes_nothing(tmp_path: Path) -> None:
    with s3dlio.create_filesystem_writer(f"file://{tmp_path}/x") as writer:
        writer.write_owned_bytes(random_bytes(CHUNK + 1))
    with pytest.raises(CancelledError):
        writer.finalize()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("create", "uri"),
    [
        (s3dlio.create_filesystem_writer, "s3://bucket/x"),
        (s3dlio.create_direct_filesystem_writer, "s3://bucket/x"),
        (s3dlio.create_s3_writer, "file:///tmp/x"),
        (s3dlio.create_azure_writer, "s3://bucket/x"),
    ],
)
def test_a_writer_of_another_store(create: Any, uri: str) -> None:
    with pytest.raises(ConfigError, match="which this writer writes to"):
        create(uri)


def test_options_of_the_wrong_kind() -> None:
    with pytest.raises(ConfigError, match="store_options="):
        s3dlio.create_s3_writer("s3://bucket/x", {"region": "r"})  # type: ignore[arg-type]
    for name in ("lz4", "", 3):
        with pytest.raises(ConfigError, match="is unknown"):
            PyWriterOptions().with_compression(name)  # type: ignore[arg-type]
    for level in (0, 23, "3", True):
        with pytest.raises(ConfigError, match="level must be"):
            PyWriterOptions().with_compression("ZSTD", level)  # type: ignore[arg-type]
    for size in (0, "1", 1.5):
        with pytest.raises(ConfigError, match="buffer size"):
            PyWriterOptions().with_buffer_size(size)  # type: ignore[arg-type]
    assert PyWriterOptions().with_compression("zstd").with_compression("NONE").coding.codec == "none"
