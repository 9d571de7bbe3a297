"""The table of failures: which error each becomes, whether it may be tried again, and what it advises."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import botocore.exceptions as sdk
import pytest
import urllib3.exceptions
from botocore.parsers import ResponseParserError

from s3dlio.engine.backends import s3_errors
from s3dlio.engine.errors import (
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

WHAT = "put of s3://bucket/key"


def refusal(code: str | None, status: int, message: str | None = "said") -> sdk.ClientError:
    """As botocore makes it; a reply without a body has its status as code and no message."""
    told: dict[str, Any] = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return sdk.ClientError(told, "PutObject")


REFUSALS = [
    *[(code, 400, ThrottledError, True, "fewer requests") for code in sorted(s3_errors.THROTTLED)],
    ("503", 503, ThrottledError, True, "fewer requests"),
    ("Unheard", 503, ThrottledError, True, "fewer requests"),
    ("429", 429, ThrottledError, True, "fewer requests"),
    *[(code, 400, StorageError, True, "damaged on its way") for code in sorted(s3_errors.DAMAGED)],
    ("InternalError", 500, StorageError, True, "the store failed"),
    ("InternalError", 200, StorageError, True, "the store failed"),
    ("RequestTimeout", 400, StorageError, True, "the store failed"),
    ("OperationAborted", 409, StorageError, True, "the store failed"),
    ("ConditionalRequestConflict", 409, StorageError, True, "the store failed"),
    ("500", 500, StorageError, True, "the store failed"),
    ("502", 502, StorageError, True, "the store failed"),
    ("504", 504, StorageError, True, "the store failed"),
    ("NoSuchBucket", 404, NotFoundError, False, "bucket does not exist"),
    ("NoSuchKey", 404, NotFoundError, False, "does not exist"),
    ("NoSuchUpload", 404, NotFoundError, False, "upload"),
    ("NoSuchVersion", 404, NotFoundError, False, "does not exist"),
    ("404", 404, NotFoundError, False, "does not exist"),
    ("ExpiredToken", 400, AccessDeniedError, False, "get new credentials"),
    ("ExpiredTokenException", 400, AccessDeniedError, False, "get new credentials"),
    ("TokenRefreshRequired", 400, AccessDeniedError, False, "get new credentials"),
    ("InvalidToken", 400, AccessDeniedError, False, "AWS_SESSION_TOKEN"),
    ("InvalidAccessKeyId", 403, AccessDeniedError, False, "check access_key_id"),
    ("SignatureDoesNotMatch", 403, AccessDeniedError, False, "secret access key"),
    ("RequestTimeTooSkewed", 403, AccessDeniedError, False, "clock"),
    ("RequestExpired", 400, AccessDeniedError, False, "clock"),
    ("InvalidPayer", 403, AccessDeniedError, False, "requester_pays"),
    ("KMS.DisabledException", 400, AccessDeniedError, False, "encryption key"),
    ("KMS.NotFoundException", 400, AccessDeniedError, False, "kms_key_id"),
    ("AccessDenied", 403, AccessDeniedError, False, "do not allow it"),
    ("403", 403, AccessDeniedError, False, "do not allow it"),
    ("401", 401, AccessDeniedError, False, "do not allow it"),
    ("PermanentRedirect", 301, ConfigError, None, "set region or endpoint_url"),
    ("TemporaryRedirect", 307, ConfigError, None, "set region or endpoint_url"),
    ("301", 301, ConfigError, None, "set region or endpoint_url"),
    ("AuthorizationHeaderMalformed", 400, ConfigError, None, "set region"),
    ("IllegalLocationConstraintException", 400, ConfigError, None, "set region"),
    ("InvalidBucketName", 400, ConfigError, None, "bucket name"),
    ("KeyTooLongError", 400, ConfigError, None, "1024"),
    ("InvalidStorageClass", 400, ConfigError, None, "storage_class"),
    ("InvalidTag", 400, ConfigError, None, "tags"),
    ("MetadataTooLarge", 400, ConfigError, None, "metadata"),
    ("InvalidEncryptionAlgorithmError", 400, ConfigError, None, "sse"),
    ("QuotaExceeded", 403, StorageFullError, False, "quota"),
    ("XMinioStorageFull", 507, StorageFullError, False, "full"),
    ("507", 507, StorageFullError, False, "full"),
    ("EntityTooLarge", 400, StorageFullError, False, "size"),
    ("PreconditionFailed", 412, PreconditionError, False, "somebody else"),
    ("412", 412, PreconditionError, False, "somebody else"),
    ("NotImplemented", 501, StorageError, False, "cannot do this"),
    ("MethodNotAllowed", 405, StorageError, False, "cannot do this"),
    ("InvalidArgument", 400, StorageError, False, "refused it"),
    ("InvalidPart", 400, StorageError, False, "refused it"),
]


@pytest.mark.parametrize(("code", "status", "error", "transient", "advice"), REFUSALS)
@pytest.mark.parametrize("message", ["said", None, ""])
def test_refusals(
    code: str, status: int, error: type[S3dlioError], transient: bool | None, advice: str, message: str | None
) -> None:
    told = s3_errors.translate(refusal(code, status, message), WHAT)
    assert type(told) is error
    assert getattr(told, "transient", None) is transient
    assert str(told).startswith(f"{WHAT}: ")
    assert advice in str(told)
    assert code in str(told)
    assert "None" not in str(told)
    assert ("said" in str(told)) == (message == "said")


def test_a_long_message_is_cut() -> None:
    assert len(str(s3_errors.translate(refusal("InvalidArgument", 400, "x" * 10_000), WHAT))) < 500


def test_a_refusal_may_lack_everything() -> None:
    response: Any
    for response in ({}, {"Error": None}, {"Error": {}, "ResponseMetadata": {}}):
        error = sdk.ClientError({"Error": {}}, "PutObject")
        error.response = response
        assert (s3_errors.code_of(error), s3_errors.status_of(error)) == ("", 0)
        assert type(s3_errors.translate(error, WHAT)) is StorageError
    assert (s3_errors.code_of(OSError()), s3_errors.status_of(OSError())) == ("", 0)


def test_what_is_absent() -> None:
    assert s3_errors.is_absent(refusal("404", 404))
    assert s3_errors.is_absent(refusal("NoSuchUpload", 404))
    assert not s3_errors.is_absent(refusal("NoSuchBucket", 404))
    assert not s3_errors.is_absent(refusal("AccessDenied", 403))
    assert not s3_errors.is_absent(OSError())


URL = {"endpoint_url": "http://host"}


@pytest.mark.parametrize(
    ("raised", "error", "transient", "advice"),
    [
        (sdk.EndpointConnectionError(**URL), StorageError, True, "http://host"),
        (sdk.ConnectTimeoutError(**URL), StorageError, True, "timeout"),
        (sdk.ReadTimeoutError(**URL), StorageError, True, "timeout"),
        (sdk.ConnectionClosedError(**URL), StorageError, True, "closed"),
        (sdk.ProxyConnectionError(proxy_url="http://proxy"), StorageError, True, "proxy"),
        (sdk.HTTPClientError(error="broken"), StorageError, True, "broken"),
        (sdk.ResponseStreamingError(error="broken"), StorageError, True, "broken"),
        (sdk.IncompleteReadError(actual_bytes=1, expected_bytes=2), StorageError, True, "1"),
        (sdk.SSLError(**URL, error="EOF occurred"), StorageError, True, "EOF"),
        (sdk.SSLError(**URL, error="CERTIFICATE_VERIFY_FAILED"), ConfigError, None, "verify"),
        (sdk.FlexibleChecksumError(error_msg="differs"), StorageError, True, "damaged on its way"),
        (ResponseParserError("no XML"), StorageError, True, "no XML"),
        (urllib3.exceptions.ProtocolError("broken"), StorageError, True, "broken"),
        (http.client.IncompleteRead(b""), StorageError, True, "IncompleteRead"),
        (socket.gaierror("no such host"), StorageError, True, "no such host"),
        (ConnectionResetError("reset"), StorageError, True, "reset"),
        (sdk.NoCredentialsError(), AccessDeniedError, False, "no credentials found: set access_key_id"),
        (sdk.PartialCredentialsError(provider="env", cred_var="x"), AccessDeniedError, False, "cannot be used"),
        (sdk.UnauthorizedSSOTokenError(), AccessDeniedError, False, "cannot be used"),
        (sdk.SSOTokenLoadError(error_msg="gone"), AccessDeniedError, False, "cannot be used"),
        (sdk.CredentialRetrievalError(provider="role", error_msg="x"), AccessDeniedError, True, "their source"),
        (sdk.MetadataRetrievalError(error_msg="x"), AccessDeniedError, True, "their source"),
        (sdk.ProfileNotFound(profile="p"), ConfigError, None, "profile"),
        (sdk.ConfigParseError(path="p"), ConfigError, None, "parse"),
        (sdk.InvalidRegionError(region_name="x y"), ConfigError, None, "x y"),
        (sdk.NoRegionError(), ConfigError, None, "region"),
        (sdk.ParamValidationError(report="bad"), ConfigError, None, "bad"),
        (sdk.MissingDependencyException(msg="crt"), DependencyError, None, "crt"),
        (sdk.UnseekableStreamError(stream_object="x"), StorageError, False, "rewind"),
    ],
)
def test_failures_of_the_sdk(raised: Exception, error: type[S3dlioError], transient: bool | None, advice: str) -> None:
    assert isinstance(raised, s3_errors.FAILURES)
    told = s3_errors.translate(raised, WHAT)
    assert type(told) is error
    assert getattr(told, "transient", None) is transient
    assert str(told).startswith(f"{WHAT}: ")
    assert advice in str(told)
