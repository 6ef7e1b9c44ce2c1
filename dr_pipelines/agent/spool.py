"""The folder where the server's archive_command leaves files and the agent takes them from."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.engines.postgres.wal import FileKind, kind_of
from dr_pipelines.errors import ConfigurationError, Locked

__all__ = ["Spool", "Waiting"]

_LOCK = ".agent.lock"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file in the spool, complete from the moment it has its name."""

    name: str
    size: int
    changed_ns: int
    inode: int


class Spool:
    """A spool folder; whoever takes from it holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every other agent out of this spool; the kernel gives it back when this process ends.

        Raises Locked where one is in it, ConfigurationError where the folder is not there or no lock can be made in it.
        """
        path = self.folder / _LOCK
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigurationError(
                f"the spool {self.folder} cannot be used: {error.strerror}",
                hint="make it with: install -d -m 2770 -o <the server's user> -g <the agent's group> "
                f"{self.folder}; or set DR_SPOOL__<SERVICE>",
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "another process"
                raise Locked(
                    f"an agent works on the spool {self.folder} already: {holder}", hint="one agent for one spool"
                ) from None
            # On a disk that became read-only what waits can still be shipped; the lock itself is the kernel's.
            with suppress(OSError):
                path.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
            yield
        finally:
            os.close(descriptor)

    def scan(self) -> tuple[tuple[Waiting, ...], tuple[str, ...]]:
        """What waits, in the order in which it is to be shipped, and names of files that do not belong here.

        A timeline's history comes before the timelines' segments: without it they cannot be followed.
        """
        waiting: list[Waiting] = []
        strangers: list[str] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if kind_of(entry.name) is None or not entry.is_file(follow_symlinks=False):
                    strangers.append(entry.name)
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                waiting.append(Waiting(entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
        waiting.sort(key=lambda file: (kind_of(file.name) is not FileKind.HISTORY, file.name))
        return tuple(waiting), tuple(sorted(strangers))

    def read(self, file: Waiting) -> bytes:
        """Its content."""
        return (self.folder / file.name).read_bytes()

    def head(self, file: Waiting, size: int) -> bytes:
        """Its first bytes."""
        with open(self.folder / file.name, "rb") as stream:
            return stream.read(size)

    def remove(self, file: Waiting) -> None:
        """Take it out; that it is gone already is fine."""
        (self.folder / file.name).unlink(missing_ok=True)
