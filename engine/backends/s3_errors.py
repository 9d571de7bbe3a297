"""What failed at an S3 store, in this package's errors: which may be tried again, and what the user can do.

Pure: the tables of S3's codes and of the SDK's exceptions. ``s3`` translates every failure here; nothing of the SDK
leaves it. Names of stores and keys are told, credentials never: neither S3's messages nor the SDK's hold secrets.
"""

from __future__ import annotations

import http.client
from typing import Any

import botocore.exceptions as sdk
import urllib3.exceptions
from botocore.parsers import ResponseParserError

from ..errors import (
    AccessDeniedError,
    ConfigError,
    DependencyError,
    NotFoundError,
    PreconditionError,
    S3dlioError,
    StorageError,
    StorageFullError,
    ThrottledError,
)

FAILURES = (
    sdk.ClientError,
    sdk.BotoCoreError,
    ResponseParserError,  # no S3 answer: a balancer in front of the store speaks
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
"""All that a call of the SDK, or a read of a body, raises."""

THROTTLED = frozenset(
    """SlowDown ServiceUnavailable Throttling ThrottlingException ThrottledException RequestThrottled
    RequestThrottledException RequestLimitExceeded BandwidthLimitExceeded LimitExceededException TooManyRequests
    TooManyRequestsException ProvisionedThroughputExceededException PriorRequestNotComplete SlowDownRead SlowDownWrite
    ServerBusy KMS.ThrottlingException""".split()
)
DAMAGED = frozenset("BadDigest IncompleteBody XAmzContentSHA256Mismatch XAmzContentChecksumMismatch".split())
"""What arrived is not what was sent: a single request is sent again."""
WRONG_PARTS = DAMAGED | frozenset("InvalidDigest InvalidPart InvalidPartOrder InvalidRequest EntityTooSmall".split())
"""Refusals of a completion: the parts, their checksums or sizes are not what the store holds."""
_TRANSIENT = frozenset(
    """InternalError InternalServerError InternalFailure RequestTimeout RequestTimeoutException OperationAborted
    ConditionalRequestConflict""".split()
)
_NOT_FOUND = {
    "NoSuchBucket": "the bucket does not exist: create it, or correct its name",
    "NoSuchKey": "it does not exist",
    "NoSuchUpload": "it has no such open upload",
    "NoSuchVersion": "it does not exist",
}
_CREDENTIALS = {
    "ExpiredToken": "the session token has expired: get new credentials",
    "ExpiredTokenException": "the session token has expired: get new credentials",
    "TokenRefreshRequired": "the session token has expired: get new credentials",
    "InvalidToken": "the session token is wrong: check session_token or AWS_SESSION_TOKEN",
    "InvalidAccessKeyId": "the store does not know this access key: check access_key_id or the profile",
    "SignatureDoesNotMatch": "the secret access key does not fit the access key: check both",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (NTP)",
    "RequestExpired": "this machine's clock is wrong: set it (NTP)",
    "AllAccessDisabled": "the bucket's owner has disabled all access",
    "AccountProblem": "the account is not in order: ask its owner",
    "NotSignedUp": "the account has no S3",
    "UnauthorizedAccess": "the credentials do not allow it",
    "InvalidPayer": "the bucket charges its readers: set requester_pays=True",
    "KMS.DisabledException": "the encryption key is disabled",
    "KMS.NotFoundException": "the encryption key does not exist: check kms_key_id",
    "KMS.InvalidStateException": "the encryption key cannot be used now",
}
_DENIED = "the credentials do not allow it, or the key does not exist and they do not allow to list the bucket"
_CONFIGURATION = {
    "PermanentRedirect": "the bucket is in another region or at another endpoint: set region or endpoint_url",
    "TemporaryRedirect": "the bucket is in another region or at another endpoint: set region or endpoint_url",
    "IllegalLocationConstraintException": "the bucket is in another region: set region",
    "AuthorizationHeaderMalformed": "the request was signed for another region: set region",
    "InvalidBucketName": "this is no bucket name",
    "KeyTooLongError": "the key with the store's prefix is longer than 1024 bytes",
    "InvalidStorageClass": "the store has no such storage class: change storage_class",
    "InvalidTag": "the store refuses the tags: change tags",
    "MetadataTooLarge": "the store refuses that much metadata: change metadata",
    "InvalidEncryptionAlgorithmError": "the store refuses this encryption: change sse",
    "KMS.UnsupportedOperationException": "the encryption key does not do that: change kms_key_id",
}
_FULL = {
    "QuotaExceeded": "the quota is used up",
    "InsufficientStorage": "the store is full",
    "XMinioStorageFull": "the store is full",
    "EntityTooLarge": "the store takes no object of this size",
}
_CONFIG_FAULTS = (
    sdk.ProfileNotFound,
    sdk.ConfigNotFound,
    sdk.ConfigParseError,
    sdk.InvalidConfigError,
    sdk.ValidationError,  # InvalidRegionError among them
    sdk.ParamValidationError,
    sdk.NoRegionError,
    sdk.UnknownEndpointError,
    sdk.EndpointVariantError,
    sdk.EndpointProviderError,
    sdk.InvalidEndpointConfigurationError,
    sdk.InvalidDNSNameError,
    sdk.InvalidS3AddressingStyleError,
    sdk.InvalidHostLabelError,
    sdk.InvalidProxiesConfigError,
    sdk.InvalidRetryConfigurationError,
    sdk.InvalidDefaultsMode,
    sdk.UnsupportedS3ArnError,
    sdk.UnsupportedS3ConfigurationError,
    sdk.UnsupportedS3AccesspointConfigurationError,
)
_CREDENTIAL_FAULTS = (
    sdk.PartialCredentialsError,
    sdk.SSOError,
    sdk.TokenRetrievalError,
    sdk.RefreshWithMFAUnsupportedError,
)
_SOURCE_FAULTS = (sdk.CredentialRetrievalError, sdk.MetadataRetrievalError)
_SHOWN = 300


def code_of(error: BaseException) -> str:
    """S3's code of a refusal, "" for failures of another kind; for replies without a body it is the HTTP status."""
    return str(_details(error).get("Code") or status_of(error) or "") if isinstance(error, sdk.ClientError) else ""


def status_of(error: BaseException) -> int:
    """The HTTP status of a refusal, 0 where there was no answer."""
    if not isinstance(error, sdk.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def whole(reply: dict[str, Any], always: str = "IsTruncated") -> dict[str, Any]:
    """``reply``, unless it was cut before its first byte: the SDK takes that for an answer without anything in it.

    ``always`` is what every such answer holds. Raises ``StorageError``.
    """
    if always not in reply:
        raise StorageError("the store's answer has no body: it was cut on its way", transient=True)
    return reply


def is_absent(error: BaseException) -> bool:
    """Whether the key or the upload does not exist; a bucket that does not exist is another matter."""
    return status_of(error) == 404 and code_of(error) != "NoSuchBucket"


def translate(error: BaseException, what: str) -> S3dlioError:
    """The error to raise for ``error``; ``what`` begins its message: the operation and the key's URI."""
    if isinstance(error, sdk.ClientError):
        return _refusal(error, what)
    if isinstance(error, sdk.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ConfigError(
            f"{what}: the server's certificate is not trusted (option verify names another CA file): {_text(error)}"
        )
    if isinstance(error, sdk.MissingDependencyException):
        return DependencyError(f"{what}: {_text(error)}")
    if isinstance(error, sdk.NoCredentialsError):
        return AccessDeniedError(
            f"{what}: no credentials found: set access_key_id and secret_access_key, a profile, or AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY; anonymous=True signs nothing"
        )
    if isinstance(error, _CREDENTIAL_FAULTS):
        return AccessDeniedError(f"{what}: the credentials cannot be used: {_text(error)}")
    if isinstance(error, _SOURCE_FAULTS):
        return AccessDeniedError(f"{what}: no credentials from their source: {_text(error)}", transient=True)
    if isinstance(error, _CONFIG_FAULTS):
        return ConfigError(f"{what}: {_text(error)}")
    if isinstance(error, sdk.FlexibleChecksumError):
        return StorageError(f"{what}: damaged on its way: {_text(error)}", transient=True)
    return StorageError(f"{what}: {_text(error)}", transient=_is_transient(error))


def _is_transient(error: BaseException) -> bool:
    """Whether the network failed: all that is not the SDK's own, and some that is."""
    network = (sdk.HTTPClientError, sdk.ConnectionError, sdk.IncompleteReadError)
    return isinstance(error, network) or not isinstance(error, sdk.BotoCoreError)


def _refusal(error: sdk.ClientError, what: str) -> S3dlioError:
    code, status = code_of(error), status_of(error)
    told = str(_details(error).get("Message") or "")[:_SHOWN]
    said = f" ({code}: {told})" if told and told != code else f" ({code})"
    if code in THROTTLED or status in (429, 503):
        return ThrottledError(f"{what}: the store asks for fewer requests{said}", transient=True)
    if code in DAMAGED:
        return StorageError(f"{what}: damaged on its way: the store refused it{said}", transient=True)
    if code in _TRANSIENT:
        return StorageError(f"{what}: the store failed{said}", transient=True)
    if code in _NOT_FOUND:
        return NotFoundError(f"{what}: {_NOT_FOUND[code]}{said}")
    if code in _CREDENTIALS:
        return AccessDeniedError(f"{what}: {_CREDENTIALS[code]}{said}")
    if code in _CONFIGURATION or status in (301, 307, 308):
        return ConfigError(f"{what}: {_CONFIGURATION.get(code, _CONFIGURATION['PermanentRedirect'])}{said}")
    if code in _FULL or status == 507:
        return StorageFullError(f"{what}: {_FULL.get(code, 'the store is full')}{said}")
    if code == "PreconditionFailed" or status == 412:
        return PreconditionError(f"{what}: somebody else wrote or deleted it{said}")
    if status in (401, 403) or code in ("AccessDenied", "Forbidden"):
        return AccessDeniedError(f"{what}: {_DENIED}{said}")
    if status == 404:
        return NotFoundError(f"{what}: it does not exist{said}")
    if status == 501 or code in ("NotImplemented", "MethodNotAllowed"):
        return StorageError(f"{what}: the store cannot do this{said}")
    if status >= 500:
        return StorageError(f"{what}: the store failed{said}", transient=True)
    return StorageError(f"{what}: the store refused it{said}")


def _details(error: BaseException) -> dict[str, object]:
    return dict(error.response.get("Error") or {}) if isinstance(error, sdk.ClientError) else {}


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:_SHOWN]}"
