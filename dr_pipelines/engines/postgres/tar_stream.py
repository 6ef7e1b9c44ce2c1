"""The tar that `pg_basebackup -Ft -D -` writes, read as it comes: headers by the standard library, data by the caller.

`tarfile`'s own streaming mode copies the data of every member several times over; here it goes from the pipe straight
into the buffer that it is compressed from.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from dr_pipelines.errors import BackupError

_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """One entry of the tar; `size` bytes of data follow it in the stream."""

    path: str
    kind: Literal["file", "folder"]
    mode: int
    size: int


def members(stream: BinaryIO) -> Iterator[Member]:
    """The entries one after another; before it asks for the next, the caller reads all of a member's `size` bytes.

    Raises BackupError where the stream is not a tar, ends early, or holds a kind of entry that a cluster without
    further tablespaces does not have.
    """
    while True:
        header = _exactly(stream, _BLOCK)
        if header == bytes(_BLOCK):
            _drain(stream)
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise BackupError(f"pg_basebackup wrote something that is not a tar: {error}") from None
        path = info.name.removeprefix("./").rstrip("/")
        if info.isdir():
            if path not in ("", "."):
                yield Member(path, "folder", info.mode, 0)
        elif info.isreg():
            yield Member(path, "file", info.mode, info.size)
            _exactly(stream, -info.size % _BLOCK)
        else:
            raise BackupError(
                f"{path} is neither a file nor a folder",
                hint="links in a data directory, such as tablespaces, are not supported",
            )


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.read(size - len(data))
        if not piece:
            raise BackupError("pg_basebackup's output ended before its end mark")
        data += piece
    return data


def _drain(stream: BinaryIO) -> None:
    while stream.read(1 << 16):
        pass
