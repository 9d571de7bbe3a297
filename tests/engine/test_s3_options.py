"""Options of ``s3://``: what is taken, what is refused with which words, and that nothing is lost on the way."""

from __future__ import annotations

import pickle
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.config import parse_uri
from s3dlio.engine.backends.s3_options import ADDRESSING, SSE, S3Options, parse, read
from s3dlio.engine.contract import Secret
from s3dlio.engine.errors import ConfigError

KEY = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "hush-hush"}

_text = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=40)
_tag = st.text("aé 7_.:/=+-@", min_size=1, max_size=20)
_token = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20)
_seconds = st.floats(min_value=0.001, max_value=1e6)
_component = st.text(string.ascii_letters + "-_.é ", min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
_options = st.fixed_dictionaries(
    {},
    optional={
        "endpoint_url": st.sampled_from(["http://127.0.0.1:9000", "https://s3.example.com", "http://[::1]:4566"]),
        "region": _text,
        "addressing": st.sampled_from(ADDRESSING),
        "verify": st.booleans() | _text,
        "storage_class": _text,
        "tags": st.dictionaries(_tag, _tag, max_size=10),
        "metadata": st.dictionaries(_token.map(str.lower), _token, max_size=10),
        "requester_pays": st.booleans(),
        "connect_timeout": _seconds,
        "read_timeout": _seconds,
        "retry_deadline": _seconds,
        "first_deadline": _seconds,
        "sse": st.sampled_from(SSE),
    },
)
_identity: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.just({"anonymous": True}),
    st.fixed_dictionaries({"profile": _text}),
    st.fixed_dictionaries({"access_key_id": _text, "secret_access_key": _text}, optional={"session_token": _text}),
)


@given(
    bucket=st.text(string.ascii_lowercase + string.digits, min_size=3, max_size=63),
    prefix=st.lists(_component, max_size=3).map("/".join),
    options=_options,
    identity=_identity,
    environ=st.dictionaries(_token.map(lambda name: f"AWS_{name}"), st.text(), max_size=4),
)
def test_what_is_parsed_is_read(
    bucket: str, prefix: str, options: dict[str, Any], identity: dict[str, Any], environ: dict[str, str]
) -> None:
    given_options = options | identity
    location = parse(f"{bucket}/{prefix}/", given_options, environ | {"HOME": "/root", "XAWS_": "no"})
    assert hash(location) == hash(pickle.loads(pickle.dumps(location)))
    expected: dict[str, Any] = {
        name: Secret(value) if name in ("access_key_id", "secret_access_key", "session_token") else value
        for name, value in given_options.items()
    }
    assert read(location) == S3Options(bucket, prefix, environment=environ, **expected)
    assert location.uri == (f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}")


@given(identity=st.fixed_dictionaries({"access_key_id": _token, "secret_access_key": _token, "session_token": _token}))
def test_no_repr_shows_a_secret(identity: dict[str, str]) -> None:
    marked = {name: f"SECRET{value}" for name, value in identity.items()}
    location = parse("bucket", marked, {"AWS_SECRET_ACCESS_KEY": "SECRETvariable"})
    for shown in (repr(location), str(location), repr(read(location)), location.uri):
        assert "SECRET" not in shown


@pytest.mark.parametrize(
    ("rest", "root"),
    [
        ("bucket", "bucket"),
        ("bucket/", "bucket"),
        ("bucket/a/b/", "bucket/a/b"),
        ("my.Old_bucket-1/a", "my.Old_bucket-1/a"),
    ],
)
def test_a_uri_names_bucket_and_prefix(rest: str, root: str) -> None:
    location = parse_uri(f"s3://{rest}")
    assert location.root == root
    bucket, _, prefix = root.partition("/")
    assert (read(location).bucket, read(location).prefix) == (bucket, prefix)


@pytest.mark.parametrize(
    "rest", ["", "/a", "ab", "-bucket", "bucket-", "a..b", "b" * 64, "buc ket", "buc\nket/a", "büro"]
)
def test_what_is_no_bucket_name_is_refused(rest: str) -> None:
    with pytest.raises(ConfigError, match="bucket"):
        parse(rest, {}, {})


@pytest.mark.parametrize("prefix", ["a//b", "..", "a/../b", "a/./b", "a\\b"])
def test_what_is_no_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="not a key"):
        parse(f"bucket/{prefix}", {}, {})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"regin": "eu-west-1"}, "no option 'regin'; known are access_key_id, addressing, anonymous"),
        ({"environment": "{}"}, "no option 'environment'"),
        ({"region": 1}, "region must be a string .* not a value of type int"),
        ({"region": ""}, "region must be a string that is not empty, not an empty string"),
        ({"region": "a\nb"}, "region must be a string"),
        ({"access_key_id": "A"}, "access_key_id alone make no key"),
        ({"session_token": "A", "secret_access_key": "B"}, "alone make no key"),
        (KEY | {"access_key_id": 3}, "access_key_id must be a string"),
        (KEY | {"profile": "p"}, "exclude each other"),
        (KEY | {"anonymous": True}, "anonymous excludes"),
        ({"profile": "p", "anonymous": True}, "anonymous excludes"),
        ({"anonymous": "yes"}, "anonymous must be True or False"),
        ({"addressing": "host"}, "one of auto, path, virtual, not 'host'"),
        ({"sse": "aes"}, "one of AES256"),
        ({"kms_key_id": "k"}, "needs sse"),
        ({"kms_key_id": "k", "sse": "AES256"}, "needs sse"),
        ({"verify": 1}, "verify must be a string"),
        ({"connect_timeout": 0}, "seconds above 0"),
        ({"first_deadline": 0}, "seconds above 0"),
        ({"read_timeout": True}, "seconds above 0"),
        ({"retry_deadline": float("inf")}, "seconds above 0"),
        ({"retry_deadline": float("nan")}, "seconds above 0"),
        ({"retry_deadline": "60"}, "seconds above 0"),
        ({"endpoint_url": "localhost:9000"}, "must be http://host or https://host"),
        ({"endpoint_url": "http://"}, "must be http://host or https://host"),
        ({"endpoint_url": "http://host:port"}, "must be http://host or https://host"),
        ({"endpoint_url": "http://[::1"}, "must be http://host or https://host"),
        ({"endpoint_url": "http://user:hush-hush@host"}, "must hold no credentials"),
        ({"endpoint_url": "http://host/?X-Amz-Signature=hush-hush"}, "must hold no credentials"),
        ({"tags": ["a"]}, "tags must be a dict of strings"),
        ({"tags": {"a": 1}}, "tags must be a dict of strings"),
        ({"tags": {str(n): "" for n in range(11)}}, "11 tags; an object takes at most 10"),
        ({"tags": {"": "x"}}, "1 to 128 characters"),
        ({"tags": {"a": "x" * 257}}, "at most 256"),
        ({"tags": {"a": "x&b=c"}}, "letters, digits"),
        ({"metadata": {"a b": "x"}}, "plain ASCII"),
        ({"metadata": {"a": "é"}}, "plain ASCII"),
        ({"metadata": {"a": "x\r\nEvil: 1"}}, "plain ASCII"),
        ({"metadata": {"a": "1", "A": "2"}}, "capitals"),
        ({"metadata": {"a": "x" * 2048}}, "2048 bytes"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        parse("bucket", options, {})
    assert "hush-hush" not in str(caught.value)


def test_a_secret_in_the_wrong_place_is_not_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("bucket", {"connect_timeout": "hush-hush", **KEY}, {})
    assert "hush-hush" not in str(caught.value)


def test_what_is_none_is_not_given() -> None:
    assert parse("bucket", {"region": None, "profile": None}, {}) == parse("bucket", {}, {})


def test_options_in_another_order_are_the_same_location() -> None:
    one = parse("bucket", {"region": "r", "tags": {"a": "1", "b": "2"}}, {"AWS_A": "1", "AWS_B": "2"})
    two = parse("bucket", {"tags": {"b": "2", "a": "1"}, "region": "r"}, {"AWS_B": "2", "AWS_A": "1"})
    assert one == two


def test_the_environment_is_taken_when_the_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://first")
    location = parse_uri("s3://bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://second")
    assert read(location).environment["AWS_ENDPOINT_URL"] == "http://first"


def test_tags_are_encoded_for_a_header() -> None:
    assert read(parse("bucket", {"tags": {"b": "x y", "a+": "é="}}, {})).tagging == "a%2B=%C3%A9%3D&b=x%20y"


def test_a_location_written_by_hand_is_checked_as_well() -> None:
    location = parse("bucket", {}, {})
    for name, value in (("region", 3), ("tags", "no json"), ("tags", "[1]"), ("environment", "{}x"), ("nothing", "x")):
        with pytest.raises(ConfigError):
            read(type(location)("s3", "bucket", ((name, value),)))
