"""Which credential and which endpoint an ``az://`` store has: given as options first, then in the environment.

Pure: options and environment variables in, options of the location out. Owns connection strings, SAS tokens and URLs
of accounts, and how it is told that azure-identity found nothing; makes no client. No message here shows a credential.
Called by ``azure_options`` and ``azure_errors``.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, urlsplit

from ..contract import Option, Secret
from ..errors import ConfigError

PUBLIC = ".blob.core.windows.net"
IDENTITY = ("AZURE_", "IDENTITY_", "MSI_")
"""How the variables begin that azure-identity reads."""

_ATTEMPT = re.compile(r"(\w+)Credential(?:: (.*))?")
_REASON = 100  # characters of each

_GIVEN = ("connection_string", "account_key", "sas_token", "anonymous")
_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_BLOB_ENDPOINT_URL", "AZURE_STORAGE_SERVICE_ENDPOINT")
_ACCOUNTS = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
_FROM_ENVIRONMENT = {
    "AZURE_STORAGE_CONNECTION_STRING": "connection_string",
    "AZURE_STORAGE_KEY": "account_key",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_token",
}


def choose(account: str, given: Mapping[str, Option], environ: Mapping[str, str]) -> dict[str, Option]:
    """The options that say how to reach ``account``: an endpoint where it is not the public one, and one credential.

    None of ``account_key``, ``sas_token`` and ``anonymous`` means azure-identity's default credential, for which
    ``environment`` holds the variables it reads.
    """
    found: dict[str, Option] = {}
    stated = [name for name in _GIVEN if given.get(name)]
    if len(stated) > 1:
        raise ConfigError(f"the options {' and '.join(stated)} exclude each other: give one")
    if stated:
        source = f"option {stated[0]}"
        found[stated[0]] = given[stated[0]]
    else:
        source = _from_environment(account, environ, found)
    string = found.pop("connection_string", None)
    if isinstance(string, Secret):  # it says all: what the environment has of an endpoint is another account's
        found = _read_connection_string(account, string.value, source)
        endpoint = given.get("endpoint_url") or found.get("endpoint_url")
    else:
        endpoint = given.get("endpoint_url") or _endpoint_of(environ)
    if isinstance(endpoint, str):
        found["endpoint_url"] = endpoint
        _check_account(account, endpoint)
    if found.keys() <= {"endpoint_url"}:
        if isinstance(endpoint, str) and not endpoint.startswith("https:"):
            raise ConfigError(
                f"{endpoint} is no https: endpoint, and tokens go only through TLS; give the option account_key, "
                "sas_token, connection_string or anonymous"
            )
        variables = {name: value for name, value in sorted(environ.items()) if name.startswith(IDENTITY)}
        found["environment"] = Secret(json.dumps(variables))
    return found


def account_url(account: str, endpoint: str | None) -> str:
    """The URL of ``account``.

    An address, ``localhost`` or a name without a dot is an emulator's or a proxy's, which has the account in the path.
    """
    if endpoint is None:
        return f"https://{account}{PUBLIC}"
    parts = urlsplit(endpoint)
    if parts.path.strip("/") or not _is_local(parts.hostname or ""):
        return endpoint
    return f"{endpoint}/{account}"


def check_endpoint(text: str, source: str) -> str:
    """``text`` without a slash at its end; ``ConfigError``, which shows nothing secret, if it is no plain URL."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{source} is no URL: write https://account.blob.core.windows.net") from None
    if parts.query or parts.fragment or "@" in parts.netloc or "?" in text:
        raise ConfigError(f"{source} holds more than scheme, host and path: a SAS token has an option of its own")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not text.isprintable():
        raise ConfigError(f"{source} must be http:// or https:// with a host, not {text!r}")
    return text.rstrip("/")


def tried(text: str) -> str:
    """What azure-identity says of the credentials it tried, in many lines, as one; its first line where it names none.

    Of each the first sentence that tells more than that it is unavailable.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    attempts = []
    for found in filter(None, map(_ATTEMPT.fullmatch, lines)):
        sentences = [each.rstrip(".") for each in (found.group(2) or "").split(". ")]
        reason = next((each for each in sentences if each and not each.endswith("unavailable")), "unavailable")
        attempts.append(f"{found.group(1)} ({reason[:_REASON]})")
    return f"tried {', '.join(attempts)}" if attempts else "".join(lines[:1])


def _check_key(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw:
        raise ConfigError("option account_key is no key of a storage account: those are base64")
    return text


def _check_sas(text: str) -> str:
    token = text.lstrip("?")
    if not token.isascii() or not token.isprintable() or " " in token or "sig" not in parse_qs(token):
        raise ConfigError("option sas_token is no SAS token: those look like sv=...&se=...&sp=...&sig=...")
    return token


CHECKS: dict[str, Callable[[str], str]] = {"account_key": _check_key, "connection_string": str, "sas_token": _check_sas}
"""How each credential is checked; gives it in the form that the SDK takes."""


def _from_environment(account: str, environ: Mapping[str, str], found: dict[str, Option]) -> str:
    """Put the first credential of the environment into ``found``; returns the variable's name."""
    for variable, name in _FROM_ENVIRONMENT.items():
        value = environ.get(variable, "").strip()
        if not value:
            continue
        _check_owner(account, variable, name, environ)
        try:
            found[name] = Secret(CHECKS[name](value))
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"option {name}", variable)) from None
        return variable
    return ""


def _check_owner(account: str, variable: str, name: str, environ: Mapping[str, str]) -> None:
    """A key or token of the environment is that of the environment's account, where it names one."""
    for owner in _ACCOUNTS:
        named = environ.get(owner, "").strip()
        if name != "connection_string" and named and named != account:
            raise ConfigError(
                f"{variable} belongs to the account {named} ({owner}), and the URI names {account}: "
                f"give the credential of {account} as an option"
            )


def _endpoint_of(environ: Mapping[str, str]) -> str | None:
    for variable in _ENDPOINTS:
        text = environ.get(variable, "").strip()
        if text:
            return check_endpoint(text, variable)
    return None


def _read_connection_string(account: str, text: str, source: str) -> dict[str, Option]:
    parts: dict[str, str] = {}
    for item in filter(None, text.strip().split(";")):
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{source} is no connection string: it must be name=value pairs with ; between them")
        parts[name.strip().lower()] = value.strip()
    owner = parts.get("accountname")
    if owner and owner != account:
        raise ConfigError(f"{source} is that of the account {owner!r}, and the URI names {account!r}")
    found: dict[str, Option] = {}
    if "accountkey" in parts:
        found["account_key"] = Secret(_checked(_check_key, parts["accountkey"], "AccountKey", source))
    elif "sharedaccesssignature" in parts:
        found["sas_token"] = Secret(
            _checked(_check_sas, parts["sharedaccesssignature"], "SharedAccessSignature", source)
        )
    else:
        raise ConfigError(f"{source} holds neither AccountKey nor SharedAccessSignature")
    if "blobendpoint" in parts:
        found["endpoint_url"] = check_endpoint(parts["blobendpoint"], f"BlobEndpoint of {source}")
    elif parts.get("endpointsuffix", "core.windows.net") != "core.windows.net" or (
        parts.get("defaultendpointsprotocol", "https") != "https"
    ):
        protocol = parts.get("defaultendpointsprotocol", "https")
        suffix = parts.get("endpointsuffix", "core.windows.net")
        found["endpoint_url"] = check_endpoint(f"{protocol}://{account}.blob.{suffix}", source)
    return found


def _checked(check: Callable[[str], str], value: str, part: str, source: str) -> str:
    try:
        return check(value)
    except ConfigError:
        raise ConfigError(f"{part} of {source} is malformed") from None


def _check_account(account: str, endpoint: str) -> None:
    host = urlsplit(endpoint).hostname or ""
    owner = host.split(".")[0].removesuffix("-secondary")
    if host.endswith(PUBLIC) and owner != account:
        raise ConfigError(f"the endpoint {endpoint} is that of the account {owner!r}, and the URI names {account!r}")


def _is_local(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return True
