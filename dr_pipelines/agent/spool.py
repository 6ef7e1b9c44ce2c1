"""The folder where the server's archive_command leaves files and the agent takes them from."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.engines.postgres.wal import FileKind, kind_of
from dr_pipelines.errors import ConfigurationError, Locked

__all__ = ["Spool", "Waiting"]

_LOCK = ".agent.lock"
_SYSTEM = re.compile(r"\d+")
"""The folder that one cluster's receiver writes into, by its system identifier."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file in the spool, complete from the moment it has its name."""

    name: str
    size: int
    changed_ns: int
    inode: int
    folder: Path


class Spool:
    """A spool folder; whoever takes from it holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.receiving: Path | None = None
        """The folder within that a receiver writes into; what is in it and not full yet is no file of the spool."""

    def open_receiving(self, system_identifier: str) -> Path:
        """Make the folder for the receiver of that cluster, and look into it from now on. Raises OSError."""
        folder = self.folder / system_identifier
        folder.mkdir(mode=0o700, exist_ok=True)
        self.receiving = folder
        return folder

    def received(self) -> dict[str, Path]:
        """What receivers have left, by system identifier: a file of each."""
        found: dict[str, Path] = {}
        with os.scandir(self.folder) as entries:
            folders = [entry for entry in entries if _is_receiving(entry)]
        for folder in folders:
            names = sorted(name for name in os.listdir(folder.path) if not name.startswith("."))
            if names:
                found[folder.name] = Path(folder.path) / names[-1]
        return found

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
        for folder in (self.folder, self.receiving):
            if folder is not None:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._sort(entry, folder, waiting, strangers)
        # A receiver's history comes when its next segments are still to be written: what is there comes first.
        histories_last = self.receiving is not None
        waiting.sort(key=lambda file: ((kind_of(file.name) is FileKind.HISTORY) is histories_last, file.name))
        return tuple(waiting), tuple(sorted(strangers))

    def _sort(self, entry: "os.DirEntry[str]", folder: Path, waiting: list[Waiting], strangers: list[str]) -> None:
        kind = kind_of(entry.name)
        in_the_works = folder == self.receiving and kind is FileKind.PARTIAL
        if entry.name.startswith(".") or in_the_works or _is_receiving(entry):
            return
        if kind is None or not entry.is_file(follow_symlinks=False):
            strangers.append(entry.name)
            return
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            waiting.append(Waiting(entry.name, status.st_size, status.st_mtime_ns, status.st_ino, folder))

    def read(self, file: Waiting) -> bytes:
        """Its content."""
        return (file.folder / file.name).read_bytes()

    def head(self, file: Waiting, size: int) -> bytes:
        """Its first bytes."""
        with open(file.folder / file.name, "rb") as stream:
            return stream.read(size)

    def remove(self, file: Waiting) -> None:
        """Take it out; that it is gone already is fine."""
        (file.folder / file.name).unlink(missing_ok=True)


def _is_receiving(entry: "os.DirEntry[str]") -> bool:
    return bool(_SYSTEM.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)
