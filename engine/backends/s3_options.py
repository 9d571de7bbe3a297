"""What an ``s3://`` URI and its options say, as a ``Location`` and back as a record: pure, without the SDK.

Owns the names of the options and the rules of bucket names, tags and metadata; reads nothing but what it is given.
``s3dlio.config`` parses in the trainer, the ``s3`` backend reads the record in a worker. All ``AWS_…`` variables travel
along as one secret, so that the client made in a worker sees what the trainer saw, whenever the worker was started.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

from ..contract import Location, Option, Secret, check_key
from ..errors import ConfigError

ADDRESSING = ("auto", "path", "virtual")
SSE = ("AES256", "aws:kms", "aws:kms:dsse")
_ENVIRONMENT = "environment"
_BUCKET = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){1,61}[A-Za-z0-9]"
)  # capitals and _: old buckets, other stores
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TAG = re.compile(r"[\w .:/=+@-]*")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_TAGS, _TAG_KEY, _TAG_VALUE = 10, 128, 256  # of one object
_METADATA = 2048  # bytes of all names and values


@dataclass(frozen=True, slots=True)
class S3Options:
    """A store in S3: ``bucket``, ``prefix`` ("" or without slashes at its ends) and the options as users name them.

    ``endpoint_url``, ``region``, ``profile``, ``access_key_id`` with ``secret_access_key`` and ``session_token``: as
    boto3 knows them, found by its chain where ``None``. ``addressing``: buckets in the path or in the host's name
    (``auto``: the path for every endpoint that is not Amazon's own). ``verify``: check TLS certificates, or the file to
    check them with. ``sse``, ``kms_key_id``, ``storage_class``, ``tags``, ``metadata``: what each object is stored
    with. ``requester_pays``: accept the bucket's charges. ``anonymous``: sign nothing. ``connect_timeout`` and
    ``read_timeout``: seconds without progress. ``retry_deadline``: seconds to insist on a request that fails;
    ``first_deadline``: the same until the store has answered once. ``environment``: the ``AWS_…`` variables of the
    process that named the store.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    anonymous: bool = False
    addressing: str = "auto"
    verify: bool | str = True
    sse: str | None = None
    kms_key_id: str | None = None
    storage_class: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    requester_pays: bool = False
    connect_timeout: float = 20.0
    read_timeout: float = 30.0
    retry_deadline: float | None = None
    first_deadline: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def tagging(self) -> str:
        """The tags as a request carries them."""
        return urlencode(sorted(self.tags.items()), quote_via=quote, safe="")


def parse(rest: str, options: Mapping[str, object], environ: Mapping[str, str]) -> Location:
    """The location of ``s3://`` + ``rest``; ``ConfigError`` for a bad bucket name, prefix or option."""
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not bucket:
        raise ConfigError("s3:// names no bucket: write s3://bucket/prefix")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"{bucket!r} is no bucket name: 3 to 63 letters, digits, hyphens, underscores and single dots between a "
            "letter or digit at either end"
        )
    if prefix:
        check_key(prefix)
    pairs = {name: _check(name, value) for name, value in options.items() if value is not None}
    _check_together(pairs)
    variables = {name: value for name, value in environ.items() if name.startswith("AWS_")}
    if variables:
        pairs[_ENVIRONMENT] = Secret(_encode(variables))
    return Location("s3", f"{bucket}/{prefix}" if prefix else bucket, tuple(sorted(pairs.items())))


def read(location: Location) -> S3Options:
    """The record of a location that ``parse`` made, or that was written by hand; ``ConfigError`` as there."""
    bucket, _, prefix = location.root.partition("/")
    given: dict[str, object] = {}
    for name, value in location.options:
        given[name] = _decode(name, value) if name in (_ENVIRONMENT, "tags", "metadata") else value
    environment = given.pop(_ENVIRONMENT, {})
    assert isinstance(environment, Mapping)
    parse(location.root, given, {})
    return S3Options(bucket, prefix, environment=environment, **given)  # type: ignore[arg-type]


def _check(name: str, value: object) -> Option:
    """The form in which ``Location`` carries an option; ``ConfigError`` unless it has the right name and type."""
    if name not in _CHECKS:
        raise ConfigError(f"s3:// has no option {name!r}; known are {', '.join(sorted(_CHECKS))}")
    return _CHECKS[name](name, value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigError(f"s3 option {name} must be a string that is not empty, not {_shown(value)}")
    return value


def _secret(name: str, value: object) -> Secret:
    text = value.value if isinstance(value, Secret) else value
    if not isinstance(text, str) or not text or not text.isprintable():
        raise ConfigError(f"s3 option {name} must be a string that is not empty")  # and is not shown
    return Secret(text)


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"s3 option {name} must be True or False, not {_shown(value)}")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigError(f"s3 option {name} must be a number of seconds above 0, not {_shown(value)}")
    return float(value)


def _one_of(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if value not in choices:
            raise ConfigError(f"s3 option {name} must be one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return check


def _endpoint(name: str, value: object) -> str:
    text = _text(name, value)
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"s3 option {name} must be http://host or https://host, with or without a port")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f"s3 option {name} must hold no credentials, query or fragment: use access_key_id and others")
    return text


def _verify(name: str, value: object) -> bool | str:
    return value if isinstance(value, bool) else _text(name, value)


def _pairs(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ConfigError(f"s3 option {name} must be a dict of strings, not {_shown(value)}")
    return dict(value)


def _tags(name: str, value: object) -> str:
    tags = _pairs(name, value)
    if len(tags) > _TAGS:
        raise ConfigError(f"s3 option {name} has {len(tags)} tags; an object takes at most {_TAGS}")
    for key, text in tags.items():
        if not 1 <= len(key) <= _TAG_KEY or len(text) > _TAG_VALUE or not _TAG.fullmatch(key + text):
            raise ConfigError(
                f"s3 option {name}: {key!r} must have 1 to {_TAG_KEY} characters and its value at most {_TAG_VALUE}, "
                "all of them letters, digits, spaces or one of _.:/=+-@"
            )
    return _encode(tags)


def _metadata(name: str, value: object) -> str:
    metadata = _pairs(name, value)
    for key, text in metadata.items():
        if not _TOKEN.fullmatch(key) or not _PRINTABLE.fullmatch(text) or text != text.strip():
            raise ConfigError(f"s3 option {name}: {key!r} and its value must be plain ASCII, fit for an HTTP header")
    if len({key.lower() for key in metadata}) < len(metadata):
        raise ConfigError(f"s3 option {name}: two names differ in their capitals only, which a store does not keep")
    if sum(len(key) + len(text) for key, text in metadata.items()) > _METADATA:
        raise ConfigError(f"s3 option {name} holds more than {_METADATA} bytes, all that an object takes")
    return _encode(metadata)


_SECRETS = ("access_key_id", "secret_access_key", "session_token")
_CHECKS: dict[str, Callable[[str, object], Option]] = {
    **dict.fromkeys(_SECRETS, _secret),
    **dict.fromkeys(("region", "profile", "kms_key_id", "storage_class"), _text),
    **dict.fromkeys(("anonymous", "requester_pays"), _bool),
    **dict.fromkeys(("connect_timeout", "read_timeout", "retry_deadline", "first_deadline"), _seconds),
    "addressing": _one_of(ADDRESSING),
    "endpoint_url": _endpoint,
    "metadata": _metadata,
    "sse": _one_of(SSE),
    "tags": _tags,
    "verify": _verify,
}


def _check_together(pairs: Mapping[str, object]) -> None:
    keys = [name for name in _SECRETS if name in pairs]
    if keys and not {"access_key_id", "secret_access_key"} <= set(keys):
        raise ConfigError(
            f"s3 options {' and '.join(keys)} alone make no key: access_key_id and secret_access_key go together"
        )
    if keys and pairs.get("profile"):
        raise ConfigError("s3 options profile and access_key_id exclude each other")
    if pairs.get("anonymous") and (keys or pairs.get("profile")):
        raise ConfigError("s3 option anonymous excludes a profile and keys")
    if pairs.get("kms_key_id") and not str(pairs.get("sse")).startswith("aws:kms"):
        raise ConfigError("s3 option kms_key_id needs sse='aws:kms' or 'aws:kms:dsse'")


def _encode(values: Mapping[str, str]) -> str:
    return json.dumps(dict(values), sort_keys=True, separators=(",", ":"))


def _decode(name: str, value: Option) -> dict[str, str]:
    text = value.value if isinstance(value, Secret) else value
    try:
        return _pairs(name, json.loads(text) if isinstance(text, str) else None)
    except ValueError as error:
        raise ConfigError(f"s3 option {name} is not what parse() wrote") from error


def _shown(value: object) -> str:
    """What a message may say of a wrong value: none of its text, which may be a secret in the wrong place."""
    return "an empty string" if value == "" else f"a value of type {type(value).__name__}"
