"""A repository in an S3 bucket: AWS's, or any service that keeps `If-None-Match` and is strongly consistent."""

import base64
import builtins
import contextlib
import copy
import hashlib
import io
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.response import StreamingBody
from pydantic import SecretStr

from dr_pipelines.errors import ObjectMissing, RepositoryMissing, RepositoryUnreachable
from dr_pipelines.repository.s3_errors import code_of, refusals, status_of
from dr_pipelines.repository.store import (
    LARGEST_DOCUMENT,
    Chunk,
    ObjectInfo,
    check_key,
    check_prefix,
    read_at_most,
)

__all__ = ["S3Store"]

_CONFLICT_ATTEMPTS = 8
_READ_ATTEMPTS = 4
_CONFIG = Config(
    signature_version="s3v4",
    connect_timeout=5,
    read_timeout=30,
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=32,
    # The SHA-256 that goes with each object is ours; boto's CRC beside it would be work for nothing.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


class S3Store:
    """The objects of a bucket whose key begins with `prefix`; without keys boto3 looks for them where it always does.

    See `Store`. One store may be used by several threads.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str = "us-east-1",
        access_key_id: SecretStr | None = None,
        secret_access_key: SecretStr | None = None,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._region = region
        self._is_aws = endpoint is None
        config = _CONFIG
        if endpoint:
            # Services other than AWS's seldom have a DNS name for each bucket.
            config = config.merge(Config(s3={"addressing_style": "path"}))
        if endpoint and urlsplit(endpoint).hostname in ("127.0.0.1", "::1", "localhost"):
            # What runs on this machine is not behind its proxy.
            config = config.merge(Config(proxies={}))
        with refusals("use", self.url):
            self._client = boto3.session.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                aws_access_key_id=access_key_id.get_secret_value() if access_key_id else None,
                aws_secret_access_key=secret_access_key.get_secret_value() if secret_access_key else None,
                config=config,
            )

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".removesuffix("/")

    def find_bucket(self, *, create: bool) -> None:
        """Raise RepositoryError unless the bucket is there and may be used; with `create` make it where it is not.

        Without it a bucket that is not there is a RepositoryMissing.
        """
        with refusals("use", self.url):
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if status_of(error) != 404:
                    raise
                if not create:
                    hint = "the bucket does not exist; is DR_REPOSITORY right?"
                    raise RepositoryMissing(f"there is no repository in {self.url}", hint=hint) from None
                self._create_bucket()

    def put(self, key: str, chunks: Sequence[Chunk]) -> None:
        with refusals("write", self._name(key)):
            self._put(key, chunks)

    def put_if_absent(self, key: str, chunks: Sequence[Chunk]) -> bool:
        with refusals("write", self._name(key)):
            for attempt in range(_CONFLICT_ATTEMPTS):
                try:
                    self._put(key, chunks, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    if status_of(error) == 412:
                        return False
                    # Another writer is at it: who has won will be known in a moment.
                    if status_of(error) != 409 or attempt == _CONFLICT_ATTEMPTS - 1:
                        raise
                    time.sleep(random.uniform(0.02, 0.1) * 2**attempt)
        raise AssertionError("every attempt returns or raises")

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        name = self._name(key)
        with refusals("read", name):
            try:
                response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as error:
                if code_of(error) == "NoSuchKey":
                    raise ObjectMissing(f"{name} is not there") from None
                raise
        with io.BufferedReader(_Body(response["Body"], name), 64 << 10) as stream:
            yield cast(BinaryIO, stream)

    def get(self, key: str, *, at_most: int = LARGEST_DOCUMENT) -> bytes:
        for _ in range(_READ_ATTEMPTS - 1):
            with self.open(key) as stream, contextlib.suppress(RepositoryUnreachable):
                # The client asks again for an answer that does not come, not for one that breaks off.
                return read_at_most(stream, at_most)
        with self.open(key) as stream:
            return read_at_most(stream, at_most)

    def info(self, key: str) -> ObjectInfo | None:
        with refusals("read", self._name(key)):
            try:
                response = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
        return ObjectInfo(key, response["ContentLength"], response["LastModified"].astimezone(UTC))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        full, found = self._prefix + check_prefix(prefix), []
        with refusals("list", f"s3://{self._bucket}/{full}"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=full):
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._prefix)
                    if not key.endswith("/"):
                        found.append(ObjectInfo(key, item["Size"], item["LastModified"].astimezone(UTC)))
        # S3 sorts by key; services that keep their objects in folders sort by folder.
        return iter(sorted(found, key=lambda info: info.key))

    def names(self, prefix: str) -> builtins.list[str]:
        folder = check_prefix(prefix).removesuffix("/")
        full = f"{self._prefix}{folder}/" if folder else self._prefix
        names: set[str] = set()
        with refusals("list", f"s3://{self._bucket}/{full}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=full, Delimiter="/"
            )
            for page in pages:
                names.update(
                    item["Prefix"].removeprefix(full)
                    for item in page.get("CommonPrefixes", ())
                    if self._is_aws or self._has_objects(item["Prefix"])
                )
                names.update(item["Key"].removeprefix(full) for item in page.get("Contents", ()))
        return sorted(names - {""})

    def delete(self, key: str) -> None:
        with refusals("delete", self._name(key)):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def child(self, prefix: str) -> "S3Store":
        child = copy.copy(self)
        child._prefix = f"{self._prefix}{check_key(prefix.removesuffix('/'))}/"
        return child

    def free_bytes(self) -> int | None:
        return None

    def _has_objects(self, full_prefix: str) -> bool:
        # Services that keep objects in folders go on listing a folder that has become empty.
        answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=full_prefix, MaxKeys=1)
        return bool(answer.get("Contents"))

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{check_key(key)}"

    def _put(self, key: str, chunks: Sequence[Chunk], **conditions: str) -> None:
        # One piece: boto3 would send a stream of chunks in thousands of small writes.
        body = b"".join(chunks)
        self._client.put_object(
            Bucket=self._bucket,
            Key=self._prefix + key,
            Body=body,
            ChecksumSHA256=base64.b64encode(hashlib.sha256(body).digest()).decode(),
            **conditions,
        )

    def _create_bucket(self) -> None:
        try:
            if self._region == "us-east-1":
                self._client.create_bucket(Bucket=self._bucket)
            else:
                place = {"LocationConstraint": self._region}
                self._client.create_bucket(Bucket=self._bucket, CreateBucketConfiguration=place)
        except ClientError as error:
            if code_of(error) != "BucketAlreadyOwnedByYou":
                raise


class _Body(io.RawIOBase):
    """The body of an answer; one that breaks off raises RepositoryUnreachable."""

    def __init__(self, body: StreamingBody, name: str) -> None:
        self.name = name
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with refusals("read", self.name):
            return self._body.readinto(buffer)  # type: ignore[arg-type]

    def close(self) -> None:
        self._body.close()
        super().close()
