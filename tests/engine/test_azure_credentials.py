"""Which account, endpoint and credential an ``az://`` store gets: from options, else from the environment."""

from __future__ import annotations

import json

import pytest

from s3dlio.engine.backends.azure_credentials import tried
from s3dlio.engine.backends.azure_options import parse, read
from s3dlio.engine.contract import Secret
from s3dlio.engine.errors import ConfigError
from tests.engine.azure_given import KEY, OTHER, PUBLIC, SAS, SIGNATURE, STRING, record, shown


def test_a_connection_string_says_all() -> None:
    options = record({"connection_string": STRING}, {"AZURE_STORAGE_ENDPOINT": "https://other.example"})
    assert (options.endpoint_url, options.account_key) == (PUBLIC, Secret(KEY))


@pytest.mark.parametrize(
    ("change", "endpoint"),
    [
        ("BlobEndpoint=http://127.0.0.1:10000/account/;", "http://127.0.0.1:10000/account"),
        ("blobendpoint=https://data.example.com;", "https://data.example.com"),
        ("EndpointSuffix=core.chinacloudapi.cn;", "https://account.blob.core.chinacloudapi.cn"),
        ("DefaultEndpointsProtocol=http;", "http://account.blob.core.windows.net"),
        ("QueueEndpoint=https://x;", PUBLIC),
    ],
)
def test_a_connection_string_names_the_endpoint(change: str, endpoint: str) -> None:
    assert record({"connection_string": f"{change}AccountName=account;AccountKey={KEY};"}).endpoint_url == endpoint


def test_a_connection_string_may_hold_a_token() -> None:
    options = record({"connection_string": f"BlobEndpoint={PUBLIC};SharedAccessSignature={SAS}"})
    assert (options.sas_token, options.account_key) == (Secret(SAS), None)


@pytest.mark.parametrize("where", ["option", "environment"])
def test_a_connection_string_of_another_account_is_refused(where: str) -> None:
    text = STRING.replace("=account;", "=elsewhere;")
    options, environ = ({"connection_string": text}, {}) if where == "option" else ({}, _env("CONNECTION_STRING", text))
    with pytest.raises(ConfigError, match="account 'elsewhere', and the URI names 'account'") as caught:
        parse("account/box", options, environ)
    assert KEY not in shown(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"account_key": KEY, "sas_token": SAS},
        {"account_key": KEY, "anonymous": True},
        {"connection_string": STRING, "account_key": KEY},
        {"connection_string": STRING, "sas_token": SAS},
    ],
    ids="+".join,
)
def test_credentials_exclude_each_other(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=" and ".join(options)) as caught:
        parse("account/box", options, {})
    assert KEY not in shown(caught.value)
    assert SIGNATURE not in shown(caught.value)


def _env(name: str, value: str) -> dict[str, str]:
    return {f"AZURE_STORAGE_{name}": value}


@pytest.mark.parametrize(
    ("environ", "key", "token"),
    [
        (_env("CONNECTION_STRING", STRING), KEY, None),
        (_env("CONNECTION_STRING", STRING) | _env("KEY", OTHER), KEY, None),
        (_env("KEY", KEY), KEY, None),
        (_env("ACCOUNT_KEY", KEY), KEY, None),
        (_env("KEY", KEY) | _env("SAS_TOKEN", SAS), KEY, None),
        (_env("SAS_TOKEN", "?" + SAS), None, SAS),
        (_env("KEY", KEY) | _env("ACCOUNT", "account"), KEY, None),
        (_env("KEY", "") | _env("SAS_TOKEN", SAS), None, SAS),
    ],
)
def test_the_environment_gives_what_the_options_do_not(
    environ: dict[str, str], key: str | None, token: str | None
) -> None:
    options = record({}, environ)
    assert options.account_key == (Secret(key) if key else None)
    assert options.sas_token == (Secret(token) if token else None)
    assert options.environment == {}
    given = record({"account_key": OTHER}, environ)
    assert (given.account_key, given.sas_token) == (Secret(OTHER), None)
    assert record({"anonymous": True}, environ).account_key is None


@pytest.mark.parametrize("name", ["ACCOUNT", "ACCOUNT_NAME"])
def test_a_key_of_another_account_is_not_used(name: str) -> None:
    environ = _env("KEY", KEY) | _env(name, "elsewhere")
    with pytest.raises(ConfigError, match="AZURE_STORAGE_KEY belongs to the account elsewhere"):
        parse("account/box", {}, environ)
    assert record({"account_key": OTHER}, environ).account_key == Secret(OTHER)


def test_a_malformed_key_of_the_environment_is_refused_by_its_variable() -> None:
    with pytest.raises(ConfigError, match="AZURE_STORAGE_KEY is no key") as caught:
        parse("account/box", {}, _env("KEY", SIGNATURE + "!"))
    assert SIGNATURE not in shown(caught.value)


def test_without_a_credential_the_environment_goes_to_the_worker() -> None:
    environ = {"AZURE_CLIENT_ID": "me", "AZURE_CLIENT_SECRET": SIGNATURE, "IDENTITY_ENDPOINT": "x", "MSI_SECRET": "y"}
    location = parse("account/box", {}, {**environ, "HOME": "/home", "XAZURE_": "z"})
    assert dict(location.options) == {"environment": Secret(json.dumps(dict(sorted(environ.items()))))}
    assert read(location).environment == environ
    assert SIGNATURE not in f"{location} {location!r} {read(location)!r}"


# Endpoints


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://127.0.0.1:10000", "http://127.0.0.1:10000/account"),
        ("http://127.0.0.1:10000/account/", "http://127.0.0.1:10000/account"),
        ("http://[::1]:10000", "http://[::1]:10000/account"),
        ("http://localhost:10000", "http://localhost:10000/account"),
        ("http://azurite:10000", "http://azurite:10000/account"),
        ("https://data.example.com", "https://data.example.com"),
        ("https://account-secondary.blob.core.windows.net", "https://account-secondary.blob.core.windows.net"),
    ],
)
def test_an_endpoint_on_this_network_has_the_account_in_its_path(endpoint: str, expected: str) -> None:
    assert record({"account_key": KEY, "endpoint_url": endpoint}).endpoint_url == expected


@pytest.mark.parametrize(
    "variable", ["AZURE_STORAGE_ENDPOINT", "AZURE_BLOB_ENDPOINT_URL", "AZURE_STORAGE_SERVICE_ENDPOINT"]
)
def test_the_environment_names_the_endpoint(variable: str) -> None:
    environ = {variable: "http://127.0.0.1:10000/"}
    assert record({"account_key": KEY}, environ).endpoint_url == "http://127.0.0.1:10000/account"
    assert (
        record({"account_key": KEY, "endpoint_url": "https://x.example"}, environ).endpoint_url == "https://x.example"
    )
    with pytest.raises(ConfigError, match=variable) as caught:
        parse("account/box", {"account_key": KEY}, {variable: f"https://x/?sig={SIGNATURE}"})
    assert SIGNATURE not in shown(caught.value)


def test_an_endpoint_of_another_account_is_refused() -> None:
    with pytest.raises(ConfigError, match="account 'elsewhere'"):
        parse("account/box", {"account_key": KEY, "endpoint_url": "https://elsewhere.blob.core.windows.net"}, {})


def test_an_identity_is_not_sent_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="no https: endpoint"):
        parse("account/box", {"endpoint_url": "http://data.example.com"}, {})


CHAIN = """DefaultAzureCredential failed to retrieve a token from the included credentials.
Attempted credentials:
\tEnvironmentCredential: EnvironmentCredential authentication unavailable. Environment variables are not there.
Visit https://example.com/a to troubleshoot this issue.
\tManagedIdentityCredential: ManagedIdentityCredential authentication unavailable.
\tAzureCliCredential: Azure CLI not found on path
\tBrokerCredential
\tOtherCredential: Authentication failed: %s. More
To mitigate this issue, please refer to the guidelines."""


def test_what_was_tried_is_one_line() -> None:
    assert tried(CHAIN % "wrong secret") == (
        "tried Environment (Environment variables are not there), ManagedIdentity (unavailable), "
        "AzureCli (Azure CLI not found on path), Broker (unavailable), Other (Authentication failed: wrong secret)"
    )
    assert len(tried(CHAIN % ("x" * 1000))) < 350


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("one\ntwo", "one"), ("\n  the token has expired \n", "the token has expired")]
)
def test_other_words_are_shown_to_the_first_line(text: str, line: str) -> None:
    assert tried(text) == line
