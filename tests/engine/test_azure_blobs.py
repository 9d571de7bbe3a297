"""What the ``azure`` backend leaves in a container beside the bytes, and what it makes of the blobs of others."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import BlobProperties, BlobServiceClient

from s3dlio.engine.backends import azure, azure_client, azure_options
from s3dlio.engine.backends.azure_wire import block_id, new_upload, started, upload_of
from s3dlio.engine.errors import AccessDeniedError, ConfigError, NotFoundError, StorageError
from tests.engine.azure_stores import store
from tests.engine.conformance import data, keys, view
from tests.servers.azurite import Container

OPTIONS: dict[str, Any] = {"metadata": {"Team": "a=b"}, "tags": {"run": "1 /x"}, "tier": "cool"}


def write_all(container: Container, options: dict[str, Any]) -> dict[str, BlobProperties]:
    with store(container, options) as backend, container.server.client() as client:
        backend.put("whole", view(b"body"))
        for key, body in (("parts", b"body"), ("empty", b"")):
            name = backend.begin(key)
            backend.complete(key, name, [backend.put_part(key, name, 1, 0, view(body))])
        return {key: properties(client, container, key) for key in ("whole", "parts", "empty")}


def properties(client: BlobServiceClient, container: Container, key: str) -> BlobProperties:
    blob = client.get_blob_client(container.name, f"runs/{key}")
    found = blob.get_blob_properties()
    found.tags = blob.get_blob_tags()
    return found


def test_every_blob_gets_the_properties_of_the_store(az_container: Container) -> None:
    for key, found in write_all(az_container, OPTIONS).items():
        assert found.tags == OPTIONS["tags"]
        assert found.blob_tier == "Cool"
        metadata = dict(found.metadata or {})
        assert len(metadata.pop("s3dlio_upload", "")) == (0 if key == "whole" else 24)
        assert metadata == OPTIONS["metadata"]


def test_without_options_a_blob_has_none(az_container: Container) -> None:
    found = write_all(az_container, {})["whole"]
    assert (found.metadata, found.tags, found.blob_tier) == ({}, {}, "Hot")


def test_a_scope_of_encryption_goes_with_each_write(az_container: Container, az_proxy: Any) -> None:
    write_all(az_container.through(az_proxy.endpoint), {"encryption_scope": "scope-1"})
    writes = [request for request in az_proxy.requests("PUT", path="/runs/") if "comp=tags" not in request.query]
    assert len(writes) >= 4
    assert {request.headers.get("x-ms-encryption-scope") for request in writes} == {"scope-1"}


def test_what_is_stored_elsewhere_in_the_container_is_not_seen(az_container: Container) -> None:
    for name in ("other/a", "runs-2/b", "runs", "runs/good", "runs//bad", "runs/end/"):
        az_container.write(name, b"x")
    with store(az_container) as backend:
        assert keys(backend) == ["/bad", "end/", "good"]
    with store(az_container, prefix="") as backend:
        assert keys(backend) == ["other/a", "runs", "runs-2/b", "runs//bad", "runs/end/", "runs/good"]


def test_blobs_whose_names_are_no_keys_are_deleted(az_container: Container) -> None:
    odd = ["/lead", "a/", "a//b", "plain//"]
    for name in (*odd, "a/b", "x/y"):
        az_container.write(f"runs/{name}", b"x")
    with store(az_container) as backend:
        for name in odd:
            backend.delete(name)
            backend.delete(name)
        assert keys(backend) == ["a/b", "x/y"]


@pytest.mark.parametrize("name", ["x\\y", "a/../x/y", "x/./y", ".."])
def test_a_name_that_would_become_another_is_refused(az_container: Container, name: str) -> None:
    with store(az_container) as backend, pytest.raises(ConfigError, match="becomes that of another blob"):
        backend.delete(name)


@pytest.mark.parametrize("key", ["a b/ü?#%25+&='()~.bin", "x" * 200 + "/.hidden", "a:b@c,d;e!f$g*h[i]", "日本/語"])
def test_any_key_is_written_listed_and_read(az_container: Container, key: str) -> None:
    with store(az_container) as backend:
        info = backend.put(key, view(b"body"))
        assert backend.read(key, limit=4) == (b"body", info)
        assert list(backend.list(key)) == [info]
        name = backend.begin(key)
        backend.complete(key, name, [backend.put_part(key, name, 1, 0, view(b"more"))])
        into = bytearray(4)
        backend.get_range(key, 0, memoryview(into))
        assert into == b"more"
        backend.delete(key)
    assert az_container.keys() == []


def test_folders_are_no_objects(az_container: Container) -> None:
    """An account with a hierarchical namespace lists them as blobs without bytes."""
    with az_container.server.client() as client:
        client.get_blob_client(az_container.name, "runs/a").upload_blob(b"", metadata={"hdi_isfolder": "true"})
    az_container.write("runs/a/b", b"x")
    with store(az_container) as backend:
        assert keys(backend) == ["a/b"]
        (page,) = backend.pages(shallow=True)
        assert (page.objects, page.folders) == ((), ("a/",))
        with pytest.raises(NotFoundError):
            backend.head("a")
        with pytest.raises(NotFoundError):
            backend.read("a", limit=1)


def test_uncommitted_blocks_of_others_are_no_uploads(az_container: Container) -> None:
    az_container.write("runs/empty", b"")
    with az_container.server.client() as client:
        client.get_blob_client(az_container.name, "runs/theirs").stage_block("block-1", b"x")
    with store(az_container) as backend:
        assert list(backend.uploads()) == []
        name = backend.begin("theirs")
        with pytest.raises(StorageError, match="400") as caught:
            backend.put_part("theirs", name, 1, 0, view(b"x"))
        assert not caught.value.transient


def test_aborting_says_what_becomes_of_the_blocks(az_container: Container, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "s3dlio.engine.backend")
    with store(az_container) as backend:
        name = backend.begin("k")
        backend.abort("k", name)
        backend.abort("k", "no upload")
    told = [record.getMessage() for record in caplog.records if record.name == "s3dlio.engine.backend"]
    assert len(told) == 1
    assert f"the upload {name} to k by itself after a week" in told[0]


def test_names_of_uploads_tell_when_and_differ() -> None:
    names = {new_upload() for _ in range(1000)}
    assert len(names) == 1000
    assert all(abs(started(name) - time.time()) < 60 for name in names)


def test_ids_of_blocks_have_one_length_and_tell_their_upload() -> None:
    upload = new_upload()
    ids = {block_id(upload, number, size) for number in (1, 50_000) for size in (0, 1, azure.LIMITS.part_max)}
    assert len(ids) == 6
    assert {len(block) for block in ids} == {40}
    assert {upload_of(block) for block in ids} == {upload}
    assert upload_of("probe") is None


def test_many_threads_make_one_client(az_container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[azure_client.Client] = []
    real = azure_client.Client.__init__

    def count(self: azure_client.Client, options: azure_options.AzureOptions) -> None:
        made.append(self)
        real(self, options)

    monkeypatch.setattr(azure_client.Client, "__init__", count)
    with store(az_container) as backend:
        assert made == []
        barrier = threading.Barrier(4)

        def work() -> None:
            barrier.wait()
            backend.put(threading.current_thread().name, view(b"x"))

        threads = [threading.Thread(target=work, name=f"thread-{n}") for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert len(keys(backend)) == 4


class NoCredential:
    """azure-identity's default credential on a machine without any, and closed when the store is."""

    closed = 0

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        raise ClientAuthenticationError("DefaultAzureCredential failed to retrieve a token\nfrom many places")

    def close(self) -> None:
        NoCredential.closed += 1


def test_an_identity_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", NoCredential)
    backend = azure.open_location(azure_options.parse("account/box", {}, {"AZURE_CLIENT_ID": "x"}))
    with pytest.raises(AccessDeniedError, match=r"failed to retrieve a token\).*az login") as caught:
        backend.head("k")
    assert not caught.value.transient
    backend.close()
    backend.close()
    assert NoCredential.closed == 1


def test_a_large_part_goes_in_one_request(az_container: Container, az_proxy: Any) -> None:
    body = data(9 << 20)
    with store(az_container.through(az_proxy.endpoint)) as backend:
        backend.put("whole", view(body))
        into = bytearray(len(body))
        backend.get_range("whole", 0, memoryview(into))
    assert into == body
    assert len(az_proxy.requests(path="/runs/whole")) == 2
