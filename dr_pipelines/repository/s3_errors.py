"""What S3 and the way to it refuse, as errors of the repository with what to do about it."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
    TokenRetrievalError,
)

from dr_pipelines.errors import RepositoryError, RepositoryUnreachable

__all__ = ["code_of", "refusals", "status_of"]

_KEYS = "set DR_S3_ACCESS_KEY_ID and DR_S3_SECRET_ACCESS_KEY, or what boto3 reads: AWS_PROFILE, a role of the instance"
_HINTS = {
    "AccessDenied": "the keys lack a permission: on the bucket s3:ListBucket, on its objects Get, Put and Delete",
    "403": "the keys are wrong or expired, or lack s3:ListBucket, s3:GetObject, s3:PutObject or s3:DeleteObject",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": f"the secret key is not that of the access key; {_KEYS}",
    "ExpiredToken": "the temporary keys have expired; get new ones",
    "InvalidToken": "the session token is wrong; get new keys",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "NoSuchBucket": "the bucket does not exist; is DR_REPOSITORY right?",
    "404": "the bucket does not exist; is DR_REPOSITORY right?",
    "PermanentRedirect": "the bucket is in another region; set DR_S3_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set DR_S3_REGION",
    "301": "the bucket is in another region; set DR_S3_REGION",
    "400": "are the keys expired, or is DR_S3_REGION wrong?",
    "NotImplemented": "the service lacks what a repository needs: PUT with If-None-Match and SHA-256 checksums",
    "InvalidBucketName": "a bucket's name has 3 to 63 small letters, digits and '-'",
    "BucketAlreadyExists": "somebody else has a bucket of that name; choose another",
    "QuotaExceeded": "make room, or raise the bucket's quota",
}
_SKEWED = timedelta(minutes=10)
"""S3 allows fifteen."""
_PASSING = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "ConditionalRequestConflict",
    "OperationAborted",
    # The bytes that arrived were not those that were sent.
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
}


def code_of(error: ClientError) -> str:
    """S3's own name for the error; for a HEAD, which has none, the status as text."""
    return error.response.get("Error", {}).get("Code", "")


def status_of(error: ClientError) -> int:
    """The HTTP status."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _clocks_apart(error: ClientError) -> timedelta:
    """How far our clock and the service's are apart; a HEAD has no room for its reason, but every answer has a date."""
    said = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return abs(datetime.now(UTC) - parsedate_to_datetime(said))
    except (TypeError, ValueError):
        return timedelta(0)


@contextlib.contextmanager
def refusals(operation: str, subject: str) -> Iterator[None]:
    """Raise what boto3 raises as RepositoryUnreachable where it can pass, else as RepositoryError."""
    try:
        yield
    except ClientError as error:
        code = code_of(error)
        said = error.response.get("Error", {}).get("Message") or code
        message = f"cannot {operation} {subject}: {said}"
        if code in _PASSING or status_of(error) in (429, 500, 502, 503, 504):
            raise RepositoryUnreachable(message, hint="the S3 service is busy or in trouble; try again") from error
        skewed = code in ("403", "400") and _clocks_apart(error) > _SKEWED
        hint = _HINTS["RequestTimeTooSkewed"] if skewed else _HINTS.get(code, f"S3 says {code}")
        raise RepositoryError(message, hint=hint) from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError) as error:
        raise RepositoryError(f"cannot {operation} {subject}: {error}", hint=_KEYS) from error
    except SSLError as error:
        hint = "is the endpoint's certificate known here? AWS_CA_BUNDLE names a file with those that are trusted"
        raise RepositoryError(f"cannot {operation} {subject}: {error}", hint=hint) from error
    except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
        hint = "is the S3 service running, and DR_S3_ENDPOINT right?"
        raise RepositoryUnreachable(f"cannot {operation} {subject}: {error}", hint=hint) from error
    except (BotoCoreError, ValueError) as error:
        hint = "are DR_REPOSITORY, DR_S3_ENDPOINT and DR_S3_REGION right?"
        raise RepositoryError(f"cannot {operation} {subject}: {error}", hint=hint) from error
