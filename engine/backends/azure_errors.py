"""What Azure's SDK raises, as ours: mapped once, at the boundary of the ``azure`` backend.

Owns the table of error codes and what each means for a caller; no text of the SDK goes into a message without its
queries, because a SAS token is one. Errors are raised ``from None``: a chained traceback would print the SDK's text.
"""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from types import TracebackType

import requests
import urllib3
from azure.core.exceptions import AzureError, ClientAuthenticationError, DecodeError, HttpResponseError

from ..errors import (
    AccessDeniedError,
    ConfigError,
    CorruptError,
    NotFoundError,
    PreconditionError,
    S3dlioError,
    StorageError,
    StorageFullError,
    ThrottledError,
)
from .azure_credentials import tried

NETWORK = (OSError, http.client.HTTPException, requests.RequestException, urllib3.exceptions.HTTPError)
"""What reading a response may raise beside ``AzureError``."""

SKEW = 15 * 60
"""Seconds by which the service lets a request's date differ from its own."""

_QUERY = re.compile(r"\?[^\s'\"<>)]*")
_SIGNATURE = re.compile(r"(?i)\b(sig|signature|accountkey|sharedaccesssignature)=[^\s&;'\"<>)]+")

CHECKSUM = frozenset({"Md5Mismatch", "Crc64Mismatch", "InvalidOperation"})  # the last is what Azurite says
UNSUPPORTED = frozenset({"FeatureNotSupported", "UnsupportedHeader", "NotImplemented"})
BLOCKS_GONE = frozenset({"InvalidBlockList"})

_CONDITION = frozenset({"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet", "UnauthorizedBlobOverwrite"})
_DENIED = {
    "AccountIsDisabled": "the account is disabled",
    "AuthenticationFailed": "the key or the token is wrong or has expired",
    "AuthorizationFailure": "the key or the token is wrong, or the network rules of the account do not allow it",
    "AuthorizationPermissionMismatch": "the identity or the token lacks the permission; for an identity, the role "
    "Storage Blob Data Contributor has it",
    "AuthorizationProtocolMismatch": "the token is for https: only",
    "AuthorizationResourceTypeMismatch": "the token is for another kind of resource: it needs containers and objects",
    "AuthorizationServiceMismatch": "the token is for another service: it needs blobs",
    "AuthorizationSourceIPMismatch": "the token is for other addresses than this machine's",
    "BlobImmutableDueToPolicy": "a policy keeps the blob as it is",
    "InsufficientAccountPermissions": "the account does not allow the operation",
    "InvalidAuthenticationInfo": "the token is malformed or for another tenant",
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys: use an identity",
    "NoAuthenticationInformation": "the container needs a credential",
    "PublicAccessNotPermitted": "the account allows no anonymous access",
}
_FINAL = {
    "BlobArchived": "the blob is archived: rehydrate it first",
    "BlobBeingRehydrated": "the blob is being rehydrated: try again when that is done",
    "BlockCountExceedsLimit": "100,000 uncommitted blocks wait under this key: use another, or wait a week",
    "FeatureNotSupported": "the store does not know what was asked for",
    "InvalidBlobOrBlock": "uncommitted blocks of another tool wait under this key: use another, or wait a week",
    "SnapshotsPresent": "the blob has snapshots, which are not deleted with it: delete them first",
}


def code_of(error: HttpResponseError) -> str:
    """The service's own name of what went wrong, "" if it gave none."""
    headers = getattr(error.response, "headers", None) or {}
    code = getattr(error, "error_code", None) or headers.get("x-ms-error-code") or ""
    return str(getattr(code, "value", code))


def scrub(text: str) -> str:
    """``text`` without the queries of URLs and whatever else is signed."""
    return _SIGNATURE.sub(r"\1=***", _QUERY.sub("?***", text))


class AzureErrors:
    """The errors of one container; ``expires`` is when its SAS token ends, in seconds since the epoch."""

    def __init__(self, account: str, container: str, expires: float | None = None) -> None:
        self._account = account
        self._container = container
        self._expires = expires

    def told(self, doing: str, *, checked: bool = False) -> _Told:
        """A context that raises what the SDK raises in it as ours; ``checked``: the request carried a checksum."""
        return _Told(self, doing, checked)

    def storage_error(self, error: Exception, doing: str, *, checked: bool = False) -> S3dlioError:
        """What ``error`` means for a caller who was ``doing`` something."""
        if isinstance(error, HttpResponseError) and error.status_code is not None:
            return self._answered(error, doing, checked)
        if isinstance(error, ClientAuthenticationError):
            return AccessDeniedError(
                f"{doing}: no credential for the account {self._account} was found "
                f"({scrub(tried(str(error.message or error)))}); set AZURE_STORAGE_CONNECTION_STRING, "
                "AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or the option connection_string, account_key, sas_token "
                "or anonymous, or sign in with: az login"
            )
        if isinstance(error, DecodeError):
            return StorageError(f"{doing}: the answer is damaged ({_first_line(error)})", transient=True)
        return self._unanswered(error, doing)

    def _answered(self, error: HttpResponseError, doing: str, checked: bool) -> S3dlioError:
        status, code = error.status_code or 0, code_of(error)
        said = f"{doing}: {status} {code or _first_line(error)}".rstrip()
        if status < 300:  # an error within a success, or the words of something in between
            return StorageError(f"{said}: this is no answer of the service", transient=True)
        if code == "FilesystemNotFound" or (code.startswith("Container") and status in (404, 409, 410)):
            state = "does not exist" if "NotFound" in code else "is being deleted or disabled"
            return NotFoundError(
                f"{doing}: container {self._container} {state} in the account {self._account}; create it, or correct "
                "the URI"
            )
        if code.startswith("Lease") and status in (409, 412):
            return AccessDeniedError(f"{said}: somebody holds a lease on it")
        if code in _DENIED or status in (401, 403):
            return AccessDeniedError(f"{said}: {self._why_denied(error, code)}")
        if code in _CONDITION or status == 412:
            return PreconditionError(f"{said}: somebody else wrote it")
        if code in _FINAL:
            return StorageError(f"{said}: {_FINAL[code]}")
        if checked and code in CHECKSUM:
            return StorageError(f"{said}: the bytes did not arrive as they were sent", transient=True)
        if status == 416:
            return CorruptError(f"{said}: it ends before")
        if status == 404:
            return NotFoundError(f"{said}: it does not exist")
        if status == 507:
            return StorageFullError(f"{said}: the account is full")
        if status in (429, 503):
            return ThrottledError(f"{said}: the service asks for fewer requests", transient=True)
        return StorageError(said, transient=status == 408 or (status >= 500 and status not in (501, 505)))

    def _why_denied(self, error: HttpResponseError, code: str) -> str:
        """Clocks and ends of tokens look like wrong keys; the answer's date tells them apart."""
        now = _date_of(error)
        if now is not None and abs(now - time.time()) > SKEW:
            return f"the clock of this machine is {abs(now - time.time()) / 60:.0f} minutes off: set it"
        if self._expires is not None and (now or time.time()) > self._expires:
            return "the SAS token has expired: make a new one"
        return _DENIED.get(code, "the credential does not allow it")

    def _unanswered(self, error: Exception, doing: str) -> S3dlioError:
        """No answer came: a name, a connection, a certificate or a time-out."""
        causes = list(_causes(error))
        reason = scrub(f"{type(causes[-1]).__name__}: {causes[-1]}")
        for cause in causes:
            if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
                return StorageError(
                    f"{doing}: the endpoint of the account {self._account} has no address; correct the URI or the "
                    "option endpoint_url"
                )
            if isinstance(cause, ssl.SSLCertVerificationError):
                return ConfigError(
                    f"{doing}: the server's certificate is not trusted (option verify names another CA file): {reason}"
                )
            if isinstance(cause, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
                return ConfigError(f"{doing}: the option endpoint_url is no URL ({reason})")
            if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM):
                return AccessDeniedError(f"{doing}: this machine allows no connection ({reason})")
        return StorageError(f"{doing}: no answer ({reason})", transient=True)


class _Told:
    """Raises an error of the SDK or the network as ours; our own classes pass unchanged."""

    __slots__ = ("_checked", "_doing", "_errors")

    def __init__(self, errors: AzureErrors, doing: str, checked: bool) -> None:
        self._errors = errors
        self._doing = doing
        self._checked = checked

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (AzureError, *NETWORK)) and not isinstance(error, S3dlioError):
            raise self._errors.storage_error(error, self._doing, checked=self._checked) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it came from: the SDK, requests and urllib3 each wrap in a way of their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = [getattr(error, "inner_exception", None), getattr(error, "reason", None), *error.args]
        inner += [error.__cause__, error.__context__]
        error = next((e for e in inner if isinstance(e, BaseException) and id(e) not in seen), None)


def _date_of(error: HttpResponseError) -> float | None:
    headers = getattr(error.response, "headers", None) or {}
    try:
        return parsedate_to_datetime(headers.get("Date") or "").timestamp()
    except ValueError:
        return None


def _first_line(error: AzureError) -> str:
    return scrub(str(error.message or error).strip().split("\n", 1)[0])[:200]
