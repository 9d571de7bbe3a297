"""What ``az://`` URIs and options mean, and what of it reaches a worker."""

from __future__ import annotations

import base64
import pickle
import string
import sys
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.config import parse_uri
from s3dlio.engine.backends import open_backend
from s3dlio.engine.backends.azure_options import AzureOptions, parse, read
from s3dlio.engine.contract import Location, Secret
from s3dlio.engine.errors import ConfigError
from tests.engine.azure_given import KEY, PUBLIC, SAS, SIGNATURE, STRING, record, shown
from tests.engine.live import python

# Names


@pytest.mark.parametrize(
    ("rest", "parts"),
    [
        ("account/box", ("account", "box", "")),
        ("account/box/", ("account", "box", "")),
        ("acc0unt/b-0-x/a/b c/é/", ("acc0unt", "b-0-x", "a/b c/é")),
        ("abc/" + "x" * 63 + "/p", ("abc", "x" * 63, "p")),
    ],
)
def test_the_uri_names_account_container_and_prefix(rest: str, parts: tuple[str, str, str]) -> None:
    location = parse(rest, {"account_key": KEY}, {})
    assert location.root == "/".join(filter(None, parts))
    options = read(location)
    assert (options.account, options.container, options.prefix) == parts


@pytest.mark.parametrize("rest", ["", "account", "account/", "/box", "/"])
def test_a_container_is_needed(rest: str) -> None:
    with pytest.raises(ConfigError, match="write az://account/container/prefix"):
        parse(rest, {}, {})


@pytest.mark.parametrize("account", ["ab", "a" * 25, "Account", "acc-ount", "acc.ount", "accöunt", "a\ncount"])
def test_a_bad_account_is_refused(account: str) -> None:
    with pytest.raises(ConfigError, match="no storage account"):
        parse(f"{account}/box", {}, {})


@pytest.mark.parametrize("container", ["bo", "b" * 64, "Box", "-box", "box-", "b--x", "b_x", "bö-x", "$web"])
def test_a_bad_container_is_refused(container: str) -> None:
    with pytest.raises(ConfigError, match="no container"):
        parse(f"account/{container}/p", {}, {})


@pytest.mark.parametrize("prefix", ["/x", "a//b", "../x", "a/./b", "a\\b"])
def test_a_bad_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="not a key"):
        parse(f"account/box/{prefix}", {}, {})


# Options

GOOD: dict[str, tuple[object, object]] = {
    "endpoint_url": ("https://account.blob.core.windows.net/", "https://account.blob.core.windows.net"),
    "verify": ("/etc/ca.pem", "/etc/ca.pem"),
    "tier": ("cool", "Cool"),
    "tags": ({"run": "a b", "x": ""}, {"run": "a b", "x": ""}),
    "metadata": ({"Team": "a=b; c"}, {"Team": "a=b; c"}),
    "encryption_scope": ("scope-1", "scope-1"),
    "connect_timeout": (1, 1.0),
    "read_timeout": (2.5, 2.5),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_option_reaches_the_worker(name: str) -> None:
    value, expected = GOOD[name]
    assert getattr(record({"account_key": KEY, name: value}), name) == expected


def test_what_is_not_given_has_a_default() -> None:
    options = record({"account_key": KEY, "tier": None})
    assert options == AzureOptions("account", "box", "runs", PUBLIC, account_key=Secret(KEY))
    assert (options.connect_timeout, options.read_timeout, options.verify) == (20.0, 30.0, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint_url", 5), ("endpoint_url", ""), ("endpoint_url", "account.blob.core.windows.net"),
        ("endpoint_url", "ftp://host"), ("endpoint_url", "https://"), ("endpoint_url", "https://host:port"),
        ("endpoint_url", "https://host/?" + SAS), ("endpoint_url", f"https://user:{SIGNATURE}@host"),
        ("endpoint_url", "https://host/#" + SIGNATURE), ("endpoint_url", "https://ho\nst"),
        ("account_key", 5), ("account_key", ""), ("account_key", SIGNATURE + "!"), ("account_key", "==="),
        ("sas_token", "?"), ("sas_token", "sv=1&sp=r"), ("sas_token", f"sig={SIGNATURE} x"), ("sas_token", b"sig=x"),
        ("connection_string", "AccountName=account"), ("connection_string", SIGNATURE),
        ("connection_string", f"AccountName=account;AccountKey={SIGNATURE}!"),
        ("connection_string", f"AccountName=account;SharedAccessSignature={SIGNATURE}"),
        ("connection_string", f"AccountName=account;AccountKey={KEY};BlobEndpoint=https://h/?sig={SIGNATURE}"),
        ("anonymous", 1), ("anonymous", "true"), ("verify", 1), ("verify", ""), ("tier", "Archive"), ("tier", 1),
        ("tags", "a=b"), ("tags", [("a", "b")]), ("tags", {"a": 1}), ("tags", {"": "x"}), ("tags", {"a": "b&c"}),
        ("tags", {"a": "x" * 257}), ("tags", {"a" * 129: "x"}), ("tags", {str(n): "x" for n in range(11)}),
        ("metadata", {"a-b": "x"}), ("metadata", {"1a": "x"}), ("metadata", {"a": ""}), ("metadata", {"a": " x"}),
        ("metadata", {"a": "x\ny"}), ("metadata", {"a": "é"}), ("metadata", {"s3dlio_Upload": "x"}),
        ("metadata", {"a": "x", "A": "y"}), ("encryption_scope", "a b c"), ("encryption_scope", 3),
        ("connect_timeout", 0), ("read_timeout", "5"), ("read_timeout", True), ("retry_deadline", float("inf")),
        ("retry_deadline", float("nan")), ("retry_deadline", -1), ("first_deadline", "5"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong_is_refused_without_showing_a_credential(name: str, value: object) -> None:
    given: dict[str, object] = {name: value}
    if name not in ("connection_string", "sas_token", "anonymous", "account_key"):
        given["account_key"] = KEY
    with pytest.raises(ConfigError, match=name) as caught:
        parse("account/box", given, {})
    assert SIGNATURE not in shown(caught.value)
    assert KEY not in shown(caught.value)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no option 'region'; it takes account_key, anonymous, .* verify$"):
        parse("account/box", {"region": "x"}, {})


@pytest.mark.parametrize("name", ["retry_deadline", "first_deadline"])
def test_the_deadlines_of_retries_stay_in_the_location(name: str) -> None:
    location = parse("account/box", {"account_key": KEY, name: 7000}, {})
    assert dict(location.options)[name] == 7000.0
    assert read(location) == read(parse("account/box", {"account_key": KEY}, {}))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "verify": st.booleans() | st.text("abc/.", min_size=1),
            "tier": st.sampled_from(["Hot", "Cool", "Cold"]),
            "tags": st.dictionaries(st.text("abcXYZ019 +-./:=_", min_size=1, max_size=8), st.text("a =_", max_size=8)),
            "metadata": st.dictionaries(
                st.text(string.ascii_lowercase + "_", min_size=1, max_size=8),
                st.text(string.ascii_letters + '"\\%&', min_size=1),
                max_size=5,
            ),
            "encryption_scope": st.text(string.ascii_letters + "-", min_size=3, max_size=9),
            "connect_timeout": st.floats(0.001, 1e6),
            "read_timeout": st.integers(1, 1000),
        },
    ),
    st.one_of(
        st.binary(min_size=1).map(lambda raw: ("account_key", base64.b64encode(raw).decode())),
        st.text(string.ascii_letters + "%", min_size=1).map(lambda text: ("sas_token", f"sig=x{text}")),
        st.just(("anonymous", True)),
    ),
)
def test_what_is_parsed_is_read(options: dict[str, Any], credential: tuple[str, Any]) -> None:
    if len(options.get("tags", {})) > 10:
        options.pop("tags")
    location = parse("account/box", {**options, credential[0]: credential[1]}, {})
    found = read(pickle.loads(pickle.dumps(location)))
    for name, value in options.items():
        assert getattr(found, name) == value
    secret = getattr(found, credential[0])
    assert (secret.value if isinstance(secret, Secret) else secret) == credential[1]
    assert location == parse("account/box", {**options, credential[0]: secret}, {})
    assert hash(location) == hash(pickle.loads(pickle.dumps(location)))


# Locations


def test_no_repr_shows_a_credential() -> None:
    for options in ({"account_key": KEY}, {"sas_token": SAS}, {"connection_string": STRING}):
        location = parse("account/box", options, {})
        text = f"{location!r} {location} {location.uri} {read(location)!r} {location.options}"
        assert KEY not in text
        assert SIGNATURE not in text


@pytest.mark.parametrize("options", [(("region", "x"),), (("connection_string", Secret(STRING)),)])
def test_a_location_that_parse_did_not_make_is_refused(options: tuple[tuple[str, Any], ...]) -> None:
    with pytest.raises(ConfigError, match="a location holds no option") as caught:
        read(Location("az", "account/box", options))
    assert KEY not in shown(caught.value)


def test_parse_uri_reads_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    location = parse_uri("az://account/box/p", {"tier": "hot"})
    assert dict(location.options) == {"account_key": Secret(KEY), "tier": "Hot"}


def test_the_trainer_imports_no_sdk() -> None:
    code = (
        "import sys; from s3dlio.config import parse_uri; parse_uri('az://account/box', {'anonymous': True})\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('azure', 'requests', 'urllib3')))"
    )
    assert python(code) == "[]"


def test_the_end_of_a_token_is_known() -> None:
    from s3dlio.engine.backends.azure_client import expiry

    assert expiry(SAS) == datetime(2030, 1, 2, 3, 4, tzinfo=timezone.utc).timestamp()
    assert expiry("se=2030-01-02&sig=x") == datetime(2030, 1, 2, tzinfo=timezone.utc).timestamp()
    assert expiry("si=policy&sig=x") is None
    assert expiry("se=soon&sig=x") is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from s3dlio.engine.errors import DependencyError

    monkeypatch.setitem(sys.modules, "azure.identity", None)
    store = open_backend(parse("account/box", {}, {}))
    with pytest.raises(DependencyError, match=r"pip install 's3dlio\[azure\]'"):
        store.head("key")
    store.close()
