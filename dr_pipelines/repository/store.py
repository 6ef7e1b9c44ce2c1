"""A flat space of objects: what a folder and a bucket have in common.

Every method may raise RepositoryUnreachable (trying again can help) or RepositoryError (permission, disk full, missing
bucket; the hint says what to do), and RepositoryError where a key is not a key (`check_key`).
"""

import builtins
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from dr_pipelines.errors import ObjectCorrupt, RepositoryError

__all__ = ["LARGEST_DOCUMENT", "Chunk", "ObjectInfo", "Store", "check_key", "check_prefix", "read_at_most"]

Chunk = bytes | bytearray | memoryview

LARGEST_DOCUMENT = 64 << 20
"""Bytes of any object that is read whole, but for a manifest: none comes near, and more would only fill the memory."""

TEMPORARY = ".tmp"
"""A name that no part of a key may have: a folder keeps there what is not yet an object."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it; `modified` is by the store's clock, in UTC."""

    key: str
    size: int
    modified: datetime


class Store(Protocol):
    """Objects by key. A key is a relative path with '/' between its parts; no key is a folder of another.

    Whoever reads sees an object whole, old or new, never a half, and sees at once what was put before (a bucket
    must be strongly consistent, as S3 is).
    """

    @property
    def url(self) -> str:
        """Where it is, for people; without secrets."""
        ...

    def put(self, key: str, chunks: Sequence[Chunk]) -> None:
        """Store the chunks, one after another, as the object; what was there is replaced.

        Atomic, durable on return, idempotent. Where it raises, the object is as it was, or new and whole.
        """
        ...

    def put_if_absent(self, key: str, chunks: Sequence[Chunk]) -> bool:
        """As `put`, unless an object is there: then False, and nothing has changed.

        Of several writers at once exactly one stores its object. A bucket's answer that was lost on the way makes a
        retry say False to the writer whose object it is: compare the content where that matters.
        """
        ...

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """The object as a stream with `read(n)`, `readinto(buffer)` and `readline(limit)`, not seekable.

        Raises ObjectMissing; reading raises RepositoryUnreachable where the object breaks off.
        """
        ...

    def get(self, key: str, *, at_most: int = LARGEST_DOCUMENT) -> bytes:
        """The whole object. Raises ObjectMissing, and ObjectCorrupt where it has more than `at_most` bytes."""
        ...

    def info(self, key: str) -> ObjectInfo | None:
        """What is known of the object, None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with `prefix`, at any depth, sorted by key; none where there is nothing.

        End the prefix with '/' to mean a folder. Objects that come or go meanwhile may be missing or not.
        """
        ...

    def names(self, prefix: str) -> builtins.list[str]:
        """What lies directly below the folder `prefix`, sorted: 'x' for an object, 'x/' for what has objects below it.

        A '/' at the end of the prefix makes no difference; '' is the whole store.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object, durably; nothing happens where there is none."""
        ...

    def child(self, prefix: str) -> "Store":
        """The same store seen from below the folder `prefix`."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left, in bytes; None where there is no limit that could be asked for."""
        ...


_MAX_KEY = 512
_MAX_NAME = 255


def read_at_most(stream: BinaryIO, at_most: int) -> bytes:
    """What is left of the stream. Raises ObjectCorrupt where that is more than `at_most` bytes; no more are read."""
    data = bytearray()
    while piece := stream.read(min(1 << 20, at_most + 1 - len(data))):
        data += piece
        if len(data) > at_most:
            name = getattr(stream, "name", "the object")
            raise ObjectCorrupt(f"{name} is larger than {at_most} bytes, which is absurd")
    return bytes(data)


def check_key(key: str) -> str:
    """Return the key; raises RepositoryError where it could lead out of the repository or not be stored everywhere."""
    problem = _problem(key)
    if problem:
        raise RepositoryError(f"{key[:_MAX_KEY]!r} cannot be the key of an object: {problem}")
    return key


def check_prefix(prefix: str) -> str:
    """Return the prefix, which is empty, a folder with or without '/' at its end, or the beginning of a key."""
    if prefix.rstrip("/"):
        check_key(prefix.removesuffix("/"))
    elif prefix:
        raise RepositoryError(f"{prefix!r} cannot be the prefix of a key: it is absolute")
    return prefix


def _problem(key: str) -> str | None:
    if not key:
        return "it is empty"
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        return "it is not text"
    if len(encoded) > _MAX_KEY:
        return f"it is longer than {_MAX_KEY} bytes"
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in key) or "\\" in key:
        return "it has control characters or backslashes"
    for name in key.split("/"):
        if name in ("", ".", "..", TEMPORARY):
            return f"{name!r} cannot be a part of it"
        if len(name.encode()) > _MAX_NAME:
            return f"a part of it is longer than {_MAX_NAME} bytes"
    return None
