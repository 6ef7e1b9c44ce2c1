"""The tar that pg_basebackup writes, read as it comes."""

import io
import tarfile
from typing import BinaryIO

import pytest

from dr_pipelines.engines.postgres.tar_stream import Member, members
from dr_pipelines.errors import BackupError


def archive(*entries: tuple[str, bytes | None], kind: bytes | None = None) -> bytes:
    """A tar of files, and of folders where there is no content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o600 if data is not None else 0o700
            info.type = kind or (tarfile.REGTYPE if data is not None else tarfile.DIRTYPE)
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return stream.getvalue()


class InPieces(io.BytesIO):
    """A pipe: hands out less than it is asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 7) if size and size > 0 else size)


def read_all(stream: BinaryIO) -> list[tuple[Member, bytes]]:
    found = []
    for member in members(stream):
        data = b""
        while piece := stream.read(member.size - len(data)):
            data += piece
        found.append((member, data))
    return found


@pytest.mark.parametrize("kind", [io.BytesIO, InPieces])
def test_files_and_folders_come_one_after_another(kind: type[io.BytesIO]) -> None:
    raw = archive(("./", None), ("base", None), ("base/1", b"x" * 1000), ("./PG_VERSION", b"18\n"), ("empty", b""))
    assert read_all(kind(raw)) == [
        (Member("base", "folder", 0o700, 0), b""),
        (Member("base/1", "file", 0o600, 1000), b"x" * 1000),
        (Member("PG_VERSION", "file", 0o600, 3), b"18\n"),
        (Member("empty", "file", 0o600, 0), b""),
    ]


def test_a_name_that_is_not_utf_8_is_kept() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")
    assert read_all(io.BytesIO(archive((name, b"x"))))[0][0].path == name


def test_what_follows_the_end_mark_is_read_too_so_that_the_writer_can_end() -> None:
    stream = io.BytesIO(archive(("a", b"x")) + bytes(100_000))
    read_all(stream)
    assert stream.read() == b""


@pytest.mark.parametrize("size", [0, 100, 512, 700, 1024], ids=lambda size: f"after {size} bytes")
def test_a_stream_that_ends_before_its_end_mark_is_an_error(size: int) -> None:
    stream = io.BytesIO(archive(("a", b"x" * 600))[:size])
    with pytest.raises(BackupError, match="ended before its end mark"):
        read_all(stream)


def test_what_is_no_tar_is_an_error() -> None:
    with pytest.raises(BackupError, match="not a tar"):
        list(members(io.BytesIO(b"pg_basebackup: error: " * 100)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_is_refused(kind: bytes) -> None:
    with pytest.raises(BackupError, match="pg_tblspc/1 is neither a file nor a folder"):
        list(members(io.BytesIO(archive(("pg_tblspc/1", b""), kind=kind))))
