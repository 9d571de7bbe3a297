"""The benchmark sink: Azure Blob as the real SDK speaks it."""

from __future__ import annotations

import base64

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
from azure.storage.blob import BlobBlock

from perf.sink import Sink
from tests.perf.sinks import MIB, azure


def test_azure_blocks_come_back(store_sink: Sink, folder: str) -> None:
    parts = [bytes([number]) * (MIB + number) for number in (1, 2, 3)]
    with azure(store_sink) as container:
        blob = container.get_blob_client(f"{folder}/shard")
        for number in (2, 0, 1):
            sent = blob.stage_block(f"{number:04d}", parts[number], headers={"x-ms-content-crc64": "AAAAAAAAAAA="})
            assert sent["content_crc64"] is not None
        assert list(container.list_blob_names(name_starts_with=folder)) == []
        done = blob.commit_block_list([BlobBlock(f"{number:04d}") for number in range(3)], metadata={"nonce": "n"})
        whole = b"".join(parts)
        assert blob.download_blob().readall() == whole
        assert blob.download_blob(offset=MIB - 5, length=MIB).readall() == whole[MIB - 5 : 2 * MIB - 5]
        properties = blob.get_blob_properties()
        assert (properties.size, properties.etag, properties.metadata) == (len(whole), done["etag"], {"nonce": "n"})
        with pytest.raises(HttpResponseError, match="InvalidBlockList"):
            blob.commit_block_list([BlobBlock("none")])


def test_azure_put_keeps_its_conditions(store_sink: Sink, folder: str) -> None:
    with azure(store_sink) as container:
        blob = container.get_blob_client(f"{folder}/latest.json")
        with pytest.raises(ResourceNotFoundError):
            blob.get_blob_properties()
        first = blob.upload_blob(b"1")
        with pytest.raises(ResourceExistsError):
            blob.upload_blob(b"2")
        blob.upload_blob(b"3", overwrite=True, etag=first["etag"], match_condition=MatchConditions.IfNotModified)
        with pytest.raises(ResourceModifiedError):
            blob.upload_blob(b"4", overwrite=True, etag=first["etag"], match_condition=MatchConditions.IfNotModified)
        assert blob.download_blob().readall() == b"3"
        blob.delete_blob()
        with pytest.raises(ResourceNotFoundError):
            blob.delete_blob()


def test_azure_lists_in_pages(store_sink: Sink, folder: str) -> None:
    names = [f"{folder}/{name}" for name in ("a&b", "b", "c/d", "z z+%")]
    with azure(store_sink) as container:
        assert container.exists()
        for name in names:
            container.upload_blob(name, b"")
        found = list(container.list_blobs(name_starts_with=f"{folder}/", results_per_page=3))
        assert [blob.name for blob in found] == names
        assert {blob.size for blob in found} == {0}
        assert found[0].etag.strip('"') == container.get_blob_client(names[0]).get_blob_properties().etag.strip('"')
        assert container.get_blob_client(names[0]).download_blob().readall() == b""


def test_azure_compares_the_checksums_of_small_bodies(store_sink: Sink, folder: str) -> None:
    right = base64.b64encode((0xAE8B14860A799888).to_bytes(8, "little")).decode()  # the algorithm's check value
    with azure(store_sink) as container:
        blob = container.get_blob_client(f"{folder}/probe")
        with pytest.raises(HttpResponseError, match="Crc64Mismatch"):
            blob.stage_block("0001", b"123456789", headers={"x-ms-content-crc64": "AAAAAAAAAAA="})
        blob.stage_block("0001", b"123456789", headers={"x-ms-content-crc64": right})


def test_azure_tells_of_uncommitted_blocks(store_sink: Sink, folder: str) -> None:
    with azure(store_sink) as container:
        blob = container.get_blob_client(f"{folder}/shard")
        with pytest.raises(ResourceNotFoundError):
            blob.get_block_list("all")
        blob.stage_block("0001", b"body")
        assert list(container.list_blobs(name_starts_with=folder)) == []
        (listed,) = container.list_blobs(name_starts_with=folder, include=["uncommittedblobs"])
        assert (listed.name, listed.size) == (f"{folder}/shard", 0)
        committed, uncommitted = blob.get_block_list("all")
        assert (committed, [(block.id, block.size) for block in uncommitted]) == ([], [("0001", 4)])
