"""How a client is made: from boto3's usual chain as the trainer saw it, and from the store's options above that."""

from __future__ import annotations

import os
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from s3dlio.engine.backends import s3, s3_client, s3_options
from s3dlio.engine.errors import AccessDeniedError, ConfigError
from tests.engine.conformance import KEY, data, store_parts, view
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import Bucket

KEYS = {"access_key_id": "AKIDOPTION", "secret_access_key": "hush-hush"}
PLAIN = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


def client_of(options: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> Any:
    return s3_client.make(s3_options.read(s3_options.parse("bucket", options or {}, {**PLAIN, **(environ or {})})))


def credentials_of(client: Any) -> Any:
    return client._request_signer._credentials.get_frozen_credentials()


@pytest.fixture
def profiles(tmp_path: Path) -> dict[str, str]:
    """Files of a user who has two profiles, as variables that name them."""
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text(
        "[default]\nregion = eu-north-1\n[profile lab]\nregion = eu-west-3\nendpoint_url = http://lab.example:9000\n"
    )
    credentials.write_text(
        "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = a\n"
        "[lab]\naws_access_key_id = AKIDLAB\naws_secret_access_key = b\n"
    )
    return {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}


def test_the_environment_of_the_trainer_decides(profiles: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of-the-worker")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://of-the-worker")
    before = dict(os.environ)
    client = client_of(environ=profiles)
    assert dict(os.environ) == before
    assert credentials_of(client).access_key == "AKIDDEFAULT"
    assert client.meta.region_name == "eu-north-1"
    assert s3_client.is_amazon(s3_client.endpoint_of(client))
    client.close()


def test_a_profile_by_variable_or_option(profiles: dict[str, str]) -> None:
    for client in (client_of({"profile": "lab"}, profiles), client_of(environ=profiles | {"AWS_PROFILE": "lab"})):
        assert credentials_of(client).access_key == "AKIDLAB"
        assert client.meta.region_name == "eu-west-3"
        assert s3_client.endpoint_of(client) == "http://lab.example:9000"
        client.close()


def test_options_go_first(profiles: dict[str, str]) -> None:
    environ = profiles | {"AWS_PROFILE": "lab", "AWS_ACCESS_KEY_ID": "AKIDVARIABLE", "AWS_SECRET_ACCESS_KEY": "c"}
    client = client_of({**KEYS, "region": "sa-east-1", "endpoint_url": "http://mine:1"}, environ)
    assert credentials_of(client).access_key == "AKIDOPTION"
    assert client.meta.region_name == "sa-east-1"
    assert s3_client.endpoint_of(client) == "http://mine:1"
    client.close()


def test_variables_of_the_chain() -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIDVARIABLE",
        "AWS_SECRET_ACCESS_KEY": "c",
        "AWS_SESSION_TOKEN": "t",
        "AWS_DEFAULT_REGION": "ap-south-1",
        "AWS_ENDPOINT_URL": "http://all",
        "AWS_ENDPOINT_URL_S3": "http://s3",
    }
    client = client_of(environ=environ)
    assert tuple(credentials_of(client))[:3] == ("AKIDVARIABLE", "c", "t")
    assert client.meta.region_name == "ap-south-1"
    assert s3_client.endpoint_of(client) == "http://s3"
    client.close()


def test_without_region_and_endpoint_it_is_amazons() -> None:
    client = client_of(dict(KEYS))
    assert s3_client.endpoint_of(client) == "https://s3.amazonaws.com"
    client.close()


@pytest.mark.parametrize(
    ("options", "environ", "told"),
    [
        ({"profile": "none"}, {}, "none"),
        ({}, {"AWS_PROFILE": "none"}, "none"),
        ({"region": "no region!"}, {}, "no region!"),
        (KEYS, {"AWS_ENDPOINT_URL": "no-url"}, "no-url"),
        (KEYS, {"AWS_CONFIG_FILE": __file__}, "parse"),
    ],
)
def test_what_makes_no_client_is_told(options: dict[str, object], environ: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"s3://bucket.*{told}"):
        client_of(options, environ)


def test_settings() -> None:
    client = client_of({**KEYS, "endpoint_url": "http://host:1", "connect_timeout": 7, "read_timeout": 8})
    config = client.meta.config
    assert config.retries["total_max_attempts"] == 1
    assert (config.connect_timeout, config.read_timeout) == (7, 8)
    assert config.max_pool_connections == s3_client.CONNECTIONS
    assert config.request_checksum_calculation == config.response_checksum_validation == "when_required"
    client.close()


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"endpoint_url": "http://localhost:9000"}, "http://localhost:9000/bucket/key"),
        ({"endpoint_url": "https://s3.example.com"}, "https://s3.example.com/bucket/key"),
        ({"endpoint_url": "https://s3.example.com", "addressing": "virtual"}, "https://bucket.s3.example.com/key"),
        ({"region": "eu-west-1", "addressing": "path"}, "https://s3.eu-west-1.amazonaws.com/bucket/key"),
    ],
)
def test_addressing(options: dict[str, object], url: str) -> None:
    client = client_of({**KEYS, **options})
    assert client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"}).split("?")[0] == url
    client.close()


@pytest.fixture
def location(s3_bucket: Bucket, s3_proxy: FaultProxy) -> tuple[str, dict[str, object]]:
    return s3_bucket.name, {**s3_bucket.through(s3_proxy.endpoint).options}


def test_a_body_goes_at_once_and_unsigned_with_its_checksum(
    location: tuple[str, dict[str, object]], s3_proxy: FaultProxy
) -> None:
    name, options = location
    backend = s3.open_location(s3_options.parse(name, options, {}))
    backend.put(KEY, view(data(100)))
    (put,) = s3_proxy.requests("PUT", KEY)
    assert put.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert [header for header in put.headers if header.startswith("x-amz-checksum")] == ["x-amz-checksum-crc64nvme"]
    assert "s3dlio" in put.headers["user-agent"]
    assert "expect" not in put.headers, "it asked first: a round trip more for every part"
    backend.close()


def test_how_objects_are_stored(location: tuple[str, dict[str, object]], s3_bucket: Bucket) -> None:
    name, options = location
    options |= {
        "sse": "AES256",
        "storage_class": "STANDARD_IA",
        "tags": {"team": "a/b +c@é="},
        "metadata": {"run": "17"},
        "requester_pays": True,
    }
    backend = s3.open_location(s3_options.parse(f"{name}/p", options, {}))
    backend.put("put", view(b"x"), if_absent=True)
    upload = backend.begin("parts")
    backend.complete("parts", upload, store_parts(backend, "parts", upload, b"y"))
    assert [info.key for info in backend.list()] == ["parts", "put"]
    into = bytearray(1)
    backend.get_range("parts", 0, memoryview(into))
    assert into + backend.read("put", limit=1)[0] == b"yx"
    with s3_bucket.server.client() as client:
        for key in ("p/put", "p/parts"):
            head = client.head_object(Bucket=name, Key=key)
            assert head["ServerSideEncryption"] == "AES256"
            assert head["StorageClass"] == "STANDARD_IA"
            assert head["Metadata"] == {"run": "17"}
            tags = client.get_object_tagging(Bucket=name, Key=key)["TagSet"]
            assert tags == [{"Key": "team", "Value": "a/b +c@é="}]
    backend.close()


def test_requester_pays_is_said_in_every_request(location: tuple[str, dict[str, object]], s3_proxy: FaultProxy) -> None:
    name, options = location
    backend = s3.open_location(s3_options.parse(name, {**options, "requester_pays": True}, {}))
    upload = backend.begin(KEY)
    backend.complete(KEY, upload, store_parts(backend, KEY, upload, b"y"))
    backend.put(KEY, view(b"y"), if_match=backend.head(KEY).etag)
    backend.get_range(KEY, 0, memoryview(bytearray(1)))
    backend.read(KEY, limit=1)
    list(backend.list())
    list(backend.uploads())
    backend.abort(KEY, "none")
    backend.delete(KEY)
    assert {request.headers.get("x-amz-request-payer") for request in s3_proxy.log} == {"requester"}
    backend.close()


def test_anonymous_requests_carry_no_signature(location: tuple[str, dict[str, object]], s3_proxy: FaultProxy) -> None:
    name, options = location
    backend = s3.open_location(
        s3_options.parse(name, {"endpoint_url": options["endpoint_url"], "anonymous": True}, PLAIN)
    )
    assert backend.put(KEY, view(b"x")).size == 1
    assert not any("x-amz-date" in request.headers for request in s3_proxy.log)
    backend.close()


def test_without_credentials_the_advice_is_to_give_some(location: tuple[str, dict[str, object]]) -> None:
    name, options = location
    backend = s3.open_location(s3_options.parse(name, {"endpoint_url": options["endpoint_url"]}, PLAIN))
    with pytest.raises(AccessDeniedError, match="no credentials found: set access_key_id") as caught:
        backend.head(KEY)
    assert not caught.value.transient
    backend.close()


def test_expiring_credentials_are_renewed(location: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    """A process gives credentials that expire within a minute; the SDK renews what has less than ten left."""
    name, options = location
    asked, script, config = tmp_path / "asked", tmp_path / "script.py", tmp_path / "config"
    script.write_text(
        "import datetime, json, pathlib, sys\n"
        f"open({str(asked)!r}, 'a').write('x')\n"
        "soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=1)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': 'a', 'SecretAccessKey': 'b', 'SessionToken': 'c',\n"
        "                  'Expiration': soon.isoformat()}))\n"
    )
    config.write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    environ = PLAIN | {"AWS_CONFIG_FILE": str(config)}
    backend = s3.open_location(s3_options.parse(name, {"endpoint_url": options["endpoint_url"]}, environ))
    list(backend.list())
    first = len(asked.read_text())
    list(backend.list())
    assert 0 < first < len(asked.read_text())
    backend.close()


def test_a_client_is_made_once_and_with_the_first_call(
    location: tuple[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = location
    made: list[int] = []
    make = s3_client.make

    def counted(wanted: s3_options.S3Options) -> Any:
        made.append(threading.get_ident())
        return make(wanted)

    monkeypatch.setattr(s3_client, "make", counted)
    backend = s3.open_location(s3_options.parse(name, options, {}))
    assert made == []
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: list(backend.list()), range(8))) == [[]] * 8
    assert len(made) == 1
    backend.close()


def test_clients_of_many_environments_do_not_mix(location: tuple[str, dict[str, object]]) -> None:
    before = dict(os.environ)

    def make(number: int) -> str:
        client = client_of(environ={"AWS_ACCESS_KEY_ID": f"AKID{number}", "AWS_SECRET_ACCESS_KEY": "x"})
        key = str(credentials_of(client).access_key)
        client.close()
        return key

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(make, range(12))) == [f"AKID{number}" for number in range(12)]
    assert dict(os.environ) == before


def test_no_failure_tells_a_secret(location: tuple[str, dict[str, object]], s3_proxy: FaultProxy) -> None:
    name, options = location
    options |= {"secret_access_key": "hush-hush", "session_token": "hush-token"}
    backend = s3.open_location(s3_options.parse(f"{name}-none-{uuid.uuid4().hex[:6]}", options, {}))
    with pytest.raises(Exception, match="bucket does not exist") as caught:
        backend.put(KEY, view(b"x"))
    assert "hush" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r} {backend!r}"
    backend.close()
