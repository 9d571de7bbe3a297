"""What an ``az://`` URI and its options say, as a ``Location`` and back as a record: pure, without the SDK.

Owns the names of the options and what each may hold; reads nothing but what it is given. ``s3dlio.config`` parses, the
``azure`` backend reads the record in a worker; where credentials come from is decided in ``azure_credentials``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..contract import Location, Option, Secret, check_key
from ..errors import ConfigError
from . import azure_credentials as credentials

UPLOAD = "s3dlio_upload"
"""Name of the metadata that tells which upload made a blob."""

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*")
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_METADATA_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_TAG = re.compile(r"[A-Za-z0-9 +\-./:=_]*")
_SCOPE = re.compile(r"[A-Za-z0-9-]{3,63}")
_TAGS_MAX = 10
_TIERS = {name.lower(): name for name in ("Hot", "Cool", "Cold")}


@dataclass(frozen=True, slots=True)
class AzureOptions:
    """A store as the ``azure`` backend opens it.

    ``endpoint_url`` is the account's whole URL. One of ``account_key``, ``sas_token`` and ``anonymous`` is set, or none
    for the credential that azure-identity finds in ``environment``. Time-outs are in seconds.
    """

    account: str
    container: str
    prefix: str
    endpoint_url: str
    account_key: Secret | None = None
    sas_token: Secret | None = None
    anonymous: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    tier: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    encryption_scope: str | None = None
    connect_timeout: float = 20.0
    read_timeout: float = 30.0


def parse(rest: str, options: Mapping[str, object], environ: Mapping[str, str]) -> Location:
    """The location of ``az://`` + ``rest``.

    Raises ``ConfigError`` for a bad name or option, and for credentials that exclude each other or belong to another
    account.
    """
    account, container, prefix = _split(rest)
    for name in options:
        if name not in _CHECKS:
            raise ConfigError(f"az:// has no option {name!r}; it takes {', '.join(sorted(_CHECKS))}")
    given = {name: _CHECKS[name](name, value) for name, value in options.items() if value is not None}
    found = credentials.choose(account, given, environ)
    given.pop("connection_string", None)
    root = "/".join(filter(None, (account, container, prefix)))
    return Location("az", root, tuple(sorted({**given, **found}.items(), key=lambda item: item[0])))


def read(location: Location) -> AzureOptions:
    """The record of a location that ``parse`` made."""
    account, container, prefix = _split(location.root)
    values: dict[str, Option] = dict(location.options)
    unknown = values.keys() - _CHECKS.keys() - {"environment"}
    if unknown or "connection_string" in values:
        raise ConfigError(f"{location.uri}: a location holds no option {', '.join(sorted(unknown))}; make it by parse")
    environment = values.pop("environment", None)
    for name in ("retry_deadline", "first_deadline"):  # for the retries around the backend
        values.pop(name, None)
    checked: dict[str, Any] = {name: _CHECKS[name](name, value) for name, value in values.items() if value is not None}
    endpoint = checked.pop("endpoint_url", None)
    for name in ("tags", "metadata"):
        checked[name] = json.loads(str(checked.get(name, "{}")))
    return AzureOptions(
        account,
        container,
        prefix,
        endpoint_url=credentials.account_url(account, str(endpoint) if endpoint else None),
        environment=json.loads(environment.value) if isinstance(environment, Secret) else {},
        **checked,
    )


def _split(rest: str) -> tuple[str, str, str]:
    account, _, path = rest.partition("/")
    container, _, prefix = path.partition("/")
    if not account or not container:
        raise ConfigError(f"az://{rest} names no container: write az://account/container/prefix")
    if not _ACCOUNT.fullmatch(account):
        raise ConfigError(f"{account!r} is no storage account: 3 to 24 lower-case letters and digits")
    if not _CONTAINER.fullmatch(container):
        raise ConfigError(
            f"{container!r} is no container: 3 to 63 lower-case letters, digits and single hyphens between them"
        )
    prefix = prefix.rstrip("/")
    return account, container, check_key(prefix) if prefix else ""


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"option {name} must be a string, not {type(value).__name__}")
    return value


def _secret(name: str, value: object) -> Secret:
    """A credential; no message here shows what was given."""
    text = value.value if isinstance(value, Secret) else value
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"option {name} must be a string that is not empty")
    return Secret(credentials.CHECKS[name](text.strip()))


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"option {name} must be true or false, not {type(value).__name__}")
    return value


def _verify(name: str, value: object) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise ConfigError(f"option {name} must be true, false or the path of a file of certificates")


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"option {name} must be a number of seconds above 0, not {value!r}")
    return float(value)


def _endpoint(name: str, value: object) -> str:
    return credentials.check_endpoint(_text(name, value), f"option {name}")


def _tier(name: str, value: object) -> str:
    tier = _TIERS.get(_text(name, value).lower())
    if tier is None:
        raise ConfigError(
            f"option {name} must be one of {', '.join(_TIERS.values())}, not {value!r}: what is archived cannot be read"
        )
    return tier


def _scope(name: str, value: object) -> str:
    if not _SCOPE.fullmatch(_text(name, value)):
        raise ConfigError(f"option {name} must be 3 to 63 letters, digits and hyphens, not {value!r}")
    return str(value)


def _pairs(name: str, value: object) -> dict[str, str]:
    """A mapping of strings, given as one or as the JSON that a location holds."""
    pairs: object = value
    if isinstance(value, str):
        try:
            pairs = json.loads(value)
        except ValueError:
            pairs = None
    if not isinstance(pairs, Mapping) or not all(isinstance(text, str) for pair in pairs.items() for text in pair):
        raise ConfigError(f"option {name} must be a mapping of names to strings, or such an object in JSON")
    return dict(sorted(pairs.items()))


def _tags(name: str, value: object) -> str:
    pairs = _pairs(name, value)
    if len(pairs) > _TAGS_MAX:
        raise ConfigError(f"option {name}: a blob has at most {_TAGS_MAX} tags, not {len(pairs)}")
    for key, text in pairs.items():
        if not 1 <= len(key) <= 128 or len(text) > 256 or not _TAG.fullmatch(key) or not _TAG.fullmatch(text):
            raise ConfigError(
                f"option {name}: {key!r} is no tag: a name of 1 to 128 and a value of at most 256 letters, digits, "
                "spaces and + - . / : = _"
            )
    return json.dumps(pairs)


def _metadata(name: str, value: object) -> str:
    pairs = _pairs(name, value)
    seen: set[str] = {UPLOAD}
    for key, text in pairs.items():
        if not _METADATA_NAME.fullmatch(key) or not _METADATA_VALUE.fullmatch(text):
            raise ConfigError(
                f"option {name}: {key!r} must be an ASCII identifier, and its value printable ASCII without spaces "
                "at its ends"
            )
        if key.lower() in seen:  # the service does not tell upper from lower case
            raise ConfigError(f"option {name}: the name {key!r} is taken")
        seen.add(key.lower())
    return json.dumps(pairs)


_CHECKS: dict[str, Callable[[str, object], Option]] = {
    "account_key": _secret,
    "anonymous": _flag,
    "connect_timeout": _seconds,
    "connection_string": _secret,
    "encryption_scope": _scope,
    "endpoint_url": _endpoint,
    "first_deadline": _seconds,
    "metadata": _metadata,
    "read_timeout": _seconds,
    "retry_deadline": _seconds,
    "sas_token": _secret,
    "tags": _tags,
    "tier": _tier,
    "verify": _verify,
}
