"""A repository in a folder: each object is a file.

A file is written under a temporary name, brought to disk, and only then given its name: by `rename` where it may
replace, by `link` where it may not. The folder that holds the name is brought to disk as well.
"""

import builtins
import contextlib
import errno
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, cast

from dr_pipelines.errors import ObjectMissing, RepositoryError, RepositoryUnreachable
from dr_pipelines.repository.store import (
    LARGEST_DOCUMENT,
    TEMPORARY,
    Chunk,
    ObjectInfo,
    check_key,
    check_prefix,
    read_at_most,
)
from dr_pipelines.timing import format_bytes

__all__ = ["FolderStore"]

_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NOT_OURS = {TEMPORARY, "lost+found"}
_ATTEMPTS = 32
_OLD = timedelta(days=1)


class FolderStore:
    """Objects as files below `path`, readable by their owner alone. See `Store`.

    Only `path` itself may be or lie behind a link: one within the repository could lead anywhere, and what would be
    deleted or replaced there is not the repository's. It is passed over in lists, and refused where a key leads to it.
    """

    def __init__(self, path: Path | str) -> None:
        self._top = _Top(Path(path).absolute())
        self._folder = self._top.path

    @property
    def url(self) -> str:
        return str(self._folder)

    def put(self, key: str, chunks: Sequence[Chunk]) -> None:
        path = self._path(key)
        with _refusals("write", path), self._temporary(chunks) as temporary:
            self._give_name(path, lambda: os.rename(temporary, path))

    def put_if_absent(self, key: str, chunks: Sequence[Chunk]) -> bool:
        path = self._path(key)
        with _refusals("write", path):
            if not path.exists():
                with self._temporary(chunks) as temporary, contextlib.suppress(FileExistsError):
                    self._give_name(path, lambda: _link(temporary, path))
                    return True
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            # Who is told that it is there relies on it as if it were his own.
            with contextlib.suppress(FileNotFoundError):
                _sync(path.parent)
            return False

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with _refusals("read", path):
            try:
                raw = _Reading(path)
            except _NOT_THERE:
                self._top.check()
                raise ObjectMissing(f"{path} is not there") from None
        with io.BufferedReader(raw) as stream:
            yield cast(BinaryIO, stream)

    def get(self, key: str, *, at_most: int = LARGEST_DOCUMENT) -> bytes:
        with self.open(key) as stream:
            return read_at_most(stream, at_most)

    def info(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with _refusals("read", path):
            try:
                status = path.stat()
            except _NOT_THERE:
                self._top.check()
                return None
            return _info(key, status) if path.is_file() else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        self._top.check()
        folder, slash, _ = prefix.rpartition("/")
        yield from self._walk(folder + slash, prefix)

    def names(self, prefix: str) -> builtins.list[str]:
        check_prefix(prefix)
        self._top.check()
        folder = f"{prefix.removesuffix('/')}/" if prefix else ""
        return [
            name
            for name in self._entries(folder)
            # In a bucket, a folder is nothing but its objects.
            if not name.endswith("/") or any(self._walk(folder + name, ""))
        ]

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _refusals("delete", path):
            try:
                path.unlink()
            except _NOT_THERE:
                return
            folder = path.parent
            with contextlib.suppress(FileNotFoundError):
                _sync(folder)
            while folder != self._top.path:
                try:
                    folder.rmdir()
                except OSError:
                    return  # not empty, or somebody else was faster: it only had to be tried
                folder = folder.parent

    def child(self, prefix: str) -> "FolderStore":
        child = FolderStore.__new__(FolderStore)
        child._top = self._top
        child._folder = self._path(prefix.removesuffix("/"))
        return child

    def free_bytes(self) -> int | None:
        for folder in (self._folder, *self._folder.parents):
            with _refusals("read", folder), contextlib.suppress(*_NOT_THERE):
                status = os.statvfs(folder)
                return status.f_bavail * status.f_frsize
        return None

    def clean(self, older_than: timedelta = _OLD) -> int:
        """Remove what interrupted writers left behind, by now `older_than`; returns the number of files."""
        folder, removed = self._top.path / TEMPORARY, 0
        _refuse_link(folder)
        with _refusals("clean", folder), contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    if entry.is_file(follow_symlinks=False) and age > older_than.total_seconds():
                        os.unlink(entry.path)
                        removed += 1
        return removed

    def _path(self, key: str) -> Path:
        path = self._folder / check_key(key)
        place = str(self._top.path)
        for name in path.parts[len(self._top.path.parts) :]:
            place = f"{place}/{name}"
            _refuse_link(place)
        return path

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        for name in self._entries(folder):
            key = folder + name
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                path = self._folder / key
                status = None
                with _refusals("read", path), contextlib.suppress(*_NOT_THERE):
                    status = path.stat()
                if status is not None:
                    yield _info(key, status)

    def _entries(self, folder: str) -> builtins.list[str]:
        """Names in the folder, those of folders with '/' at their end: so they sort as keys do."""
        path = self._folder / folder
        with _refusals("list", path):
            try:
                with os.scandir(path) as entries:
                    return sorted(
                        f"{entry.name}/" if entry.is_dir() else entry.name
                        for entry in entries
                        if entry.name not in _NOT_OURS and not entry.is_symlink()
                    )
            except _NOT_THERE:
                return []

    @contextlib.contextmanager
    def _temporary(self, chunks: Sequence[Chunk]) -> Iterator[Path]:
        self._top.check()
        folder = self._top.path / TEMPORARY
        _refuse_link(folder)
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        _make_folder(folder)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                for chunk in chunks:
                    view = memoryview(chunk).cast("B")
                    while view:
                        view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _give_name(self, path: Path, name: Callable[[], None]) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                _make_folder(path.parent)
                name()
                _sync(path.parent)
                break
            except FileNotFoundError:
                # Whoever deleted the folder's last object meanwhile has taken the folder away as well.
                if attempt == _ATTEMPTS - 1:
                    raise
        self._top.remember()


class _Top:
    """The repository's own folder, and whether it is still the same: an unmounted disk leaves an empty folder behind,
    which must neither look like a repository without backups nor be filled.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode: int | None = None
        self.remember()

    def remember(self) -> None:
        if self._inode is None:
            with contextlib.suppress(OSError):
                self._inode = self.path.stat().st_ino

    def check(self) -> None:
        with _refusals("read", self.path):
            try:
                same = self._inode is None or self.path.stat().st_ino == self._inode
            except FileNotFoundError:
                same = False
        if not same:
            raise RepositoryUnreachable(
                f"{self.path} is not the folder that it was", hint="was its disk unmounted? Mount it and try again"
            )


class _Reading(io.FileIO):
    """A file whose errors are those of the repository, not mistaken for those of whoever reads it."""

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        with _refusals("read", Path(str(self.name))):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _refusals("read", Path(str(self.name))):
            return super().readall()


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _refuse_link(path: Path | str) -> None:
    if os.path.islink(path):
        raise RepositoryError(
            f"{path} is a link, and there is none in a repository",
            hint="who put it there? put the file or folder itself there, or remove the link",
        )


def _make_folder(path: Path) -> None:
    """Make the folder and those above it, durably. Raises NotADirectoryError where an object is in the way."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    _sync(path.parent)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV):
            raise
        raise RepositoryError(
            f"the file system of {path} makes no hard links, without which two writers could replace each other's data",
            hint="put the repository on one local file system such as ext4 or XFS, or into an S3 bucket",
        ) from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_PASSING = {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR}


@contextlib.contextmanager
def _refusals(operation: str, path: Path) -> Iterator[None]:
    """What the operating system refuses, as an error of the repository with what to do about it."""
    try:
        yield
    except OSError as error:
        message = f"cannot {operation} {path}: {error.strerror or error}"
        if error.errno in _PASSING:
            raise RepositoryUnreachable(message) from error
        raise RepositoryError(message, hint=_hint(error, path)) from error


def _hint(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((folder for folder in path.parents if folder.exists()), Path("/"))
        status = os.statvfs(folder)
        free = format_bytes(status.f_bavail * status.f_frsize)
        return f"{free} are free for this user; make room there, or remove backups that are not needed any more"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this is user {os.geteuid()}; the repository's folder must belong to the user that runs dr"
    if error.errno == errno.EROFS:
        return "the file system is mounted read-only; after a disk error the kernel does that by itself"
    if error.errno in (errno.ENOTDIR, errno.EISDIR):
        return "a file lies where a folder is needed, or the other way round; was something else put there?"
    if error.errno == errno.EIO:
        return "the disk reports an error; look into the kernel's log"
    return ""
