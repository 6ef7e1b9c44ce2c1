"""Full backup and restore of one database, against pgBackRest with two processes, in interleaved rounds.

Both store zstd at level 1 in a folder on the same disk, both check every page's checksum while they back up, and both
wait until the log that the backup needs is archived. A restore is what each does by default: pgBackRest compares each
file's SHA-1 as it writes it; ours compares the SHA-256 of each part as it is stored, and then has pg_verifybackup read
the files back and compare them with PostgreSQL's own manifest.
"""

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.database import SERVICE, Database, database
from benchmarks.measuring import Measured, cool, empty, measure, median, spread, verdict, warm
from dr_pipelines.processes.identity import give_to
from dr_pipelines.timing import format_bytes

__all__ = ["Size", "run"]

BACKUP, RESTORE = "backup", "restore"
OURS, THEIRS = "dr", "pgBackRest"
LIMITS = {BACKUP: 1.0, RESTORE: 1.05}
_MEMORY = 300 << 20
_SETTINGS = {
    "process-max": "2",
    "compress-type": "zst",
    "compress-level": "1",
    "start-fast": "y",
    "log-level-file": "off",
}
_STANZA = "main"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Size:
    """A database of so many bytes, measured in so many rounds."""

    bytes: int
    rounds: int
    is_warm: bool
    """Whether what is read is in the page cache before each run; else nothing of it is."""

    @classmethod
    def of(cls, size_bytes: int, rounds: int) -> "Size":
        """Warm where the memory holds what a run reads and what it writes, else once and cold."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        is_warm = size_bytes * 2 < memory
        return cls(size_bytes, rounds if is_warm else 1, is_warm)


def run(folder: Path, sizes: list[Size], major: int, *, until: float = float("inf")) -> str:
    """Measure and return the section; no round begins after `until`, by the monotonic clock."""
    lines = [
        "| rows | | seconds, median | fastest to slowest | ratio | | CPU seconds | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    version = subprocess.run(["pgbackrest", "version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    for size in sizes:
        place = folder / f"pgbackrest-{size.bytes}"
        place.mkdir()
        place.chmod(0o755)
        try:
            found, actual = _measure(place, size, major, until)
        finally:
            shutil.rmtree(place)
        lines += _table(found, actual, size)
    return "\n".join([*_INTRODUCTION.format(version=version).splitlines(), "", *lines])


_INTRODUCTION = """\
pgBackRest {version} with `process-max=2`, `compress-type=zst`, `compress-level=1` and `start-fast=y`, everything else
as it comes; ours with two workers. Contenders take turns. Each run is timed until its data is on disk: both bring every
file there themselves, and a `sync` at the end is counted for both. The page cache before each run: *warm*, everything
that is read is in it; *cold*, nothing. Memory is that of all processes that the command starts, their peaks added up.

*Backup* takes in the page checksums (both), hashes (SHA-1; SHA-256) and the wait for the log in the archive. *Restore*
goes to a new folder and is what the tool does by default: pgBackRest compares the SHA-1 of each file as it writes it;
ours compares the SHA-256 of each part as it reads it, then has `pg_verifybackup` read all files back."""


def _measure(place: Path, size: Size, major: int, until: float) -> tuple[dict[tuple[str, str], list[Measured]], int]:
    found: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    with database(place, size.bytes, major) as made:
        contenders: list[_Contender] = [_Ours(made), _Theirs(made)]
        for number in range(size.rounds):
            if time.monotonic() > until:
                break
            # Who begins alternates, so that none always runs on what the same other one left behind.
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                for what, measured in _turn(contender, made, size):
                    found[what, contender.name].append(measured)
                    print(
                        f"{format_bytes(size.bytes)}, round {number + 1} of {size.rounds}: {contender.name} {what} "
                        f"{measured.seconds:.2f} s, CPU {measured.cpu_seconds:.2f} s, "
                        f"{format_bytes(measured.peak_bytes)}",
                        file=sys.stderr,
                        flush=True,
                    )
        return dict(found), made.size()


def _turn(contender: "_Contender", made: Database, size: Size) -> list[tuple[str, Measured]]:
    ready: Callable[[Path], None] = warm if size.is_warm else cool
    contender.prepare()
    _settle()
    ready(made.data)
    backup = contender.backup()
    _settle()
    ready(contender.repository)
    restore = contender.restore()
    contender.clear()
    return [(BACKUP, backup), (RESTORE, restore)]


def _settle() -> None:
    subprocess.run(["sync"], check=True)


class _Contender:
    name: str

    def __init__(self, made: Database) -> None:
        self.made = made
        self.target = made.folder / f"restored-{self.name}"

    @property
    def repository(self) -> Path:
        """Where its backups lie."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Let the server archive for it."""
        raise NotImplementedError

    def backup(self) -> Measured:
        """A full backup."""
        raise NotImplementedError

    def restore(self) -> Measured:
        """That backup's files in a new folder."""
        raise NotImplementedError

    def clear(self) -> None:
        """Take the room of backup and restored files back."""
        self.discard(self.target)

    def discard(self, place: Path) -> None:
        """Empty everything below a folder and put it out of the way.

        Nothing is removed before the end: ext4 passes over the inodes that were freed within the last minutes one by
        one, and whoever makes new files would pay for what was removed before.
        """
        discarded = place.rename(self.made.folder / f"discarded-{next(_numbers)}")
        empty(discarded)


class _Ours(_Contender):
    name = OURS

    @property
    def repository(self) -> Path:
        return self.made.folder / "repository"

    def prepare(self) -> None:
        self.made.archive_with(self.made.archive_command)

    def backup(self) -> Measured:
        return self._do("backup")

    def restore(self) -> Measured:
        return self._do("restore", str(self.target))

    def _do(self, *arguments: str) -> Measured:
        return measure(
            [sys.executable, "-m", "benchmarks.ours", *arguments], self.made.environment, synced=self.made.folder
        )

    def clear(self) -> None:
        super().clear()
        for backups in (self.repository / "services" / SERVICE).glob("*/backups"):
            self.discard(backups)


class _Theirs(_Contender):
    name = THEIRS

    def __init__(self, made: Database) -> None:
        super().__init__(made)
        self._home = made.folder / "pgbackrest"
        self._environment = {"PATH": "/usr/bin:/bin", "PGPASSWORD": made.password}

    @property
    def repository(self) -> Path:
        return self._home / "repository"

    def prepare(self) -> None:
        self._home.mkdir()
        made = self.made
        settings = {
            "repo1-path": str(self.repository),
            "lock-path": str(self._home / "lock"),
            "spool-path": str(self._home / "spool"),
            **_SETTINGS,
        }
        server = {
            "pg1-path": str(made.data),
            "pg1-port": str(made.server.port),
            "pg1-socket-path": str(made.folder),
            "pg1-user": made.server.user,
        }
        lines = ["[global]", *(f"{name}={value}" for name, value in settings.items())]
        lines += [f"[{_STANZA}]", *(f"{name}={value}" for name, value in server.items())]
        self._configuration.write_text("\n".join(lines) + "\n")
        give_to(self._home, made.identity, recursive=True)
        self._do("stanza-create")
        made.archive_with(f"pgbackrest --config={self._configuration} --stanza={_STANZA} archive-push %p")

    @property
    def _configuration(self) -> Path:
        return self._home / "pgbackrest.conf"

    def backup(self) -> Measured:
        return self._do("--type=full", "backup")

    def restore(self) -> Measured:
        self.target.mkdir(mode=0o700)
        give_to(self.target, self.made.identity)
        return self._do(f"--pg1-path={self.target}", "restore")

    def _do(self, *arguments: str) -> Measured:
        argv = ["pgbackrest", f"--config={self._configuration}", f"--stanza={_STANZA}", *arguments]
        return measure(argv, self._environment, identity=self.made.identity, synced=self.made.folder)

    def clear(self) -> None:
        super().clear()
        # Its archiver, too, needs what is removed here.
        self.made.archive_with(self.made.archive_command)
        self.discard(self._home)


def _table(found: dict[tuple[str, str], list[Measured]], actual: int, size: Size) -> list[str]:
    lines: list[str] = []
    label = f"{format_bytes(actual)}, {'warm' if size.is_warm else 'cold'}"
    for what in (BACKUP, RESTORE):
        ours, theirs = found.get((what, OURS), []), found.get((what, THEIRS), [])
        if not ours or not theirs:
            return [*lines, f"| {label} | not measured | | | | | | |"]
        ratio = median(ours) / median(theirs)
        for name, runs in ((THEIRS, theirs), (OURS, ours)):
            peak = max(run.peak_bytes for run in runs)
            computed = f"{statistics.median(run.cpu_seconds for run in runs):.1f}"
            cells = [label, f"{what}, {name}", f"{median(runs):.1f}", f"{spread(runs)}, {len(runs)} rounds"]
            if name == OURS:
                cells += [f"{ratio:.2f}", verdict(ratio, LIMITS[what]), computed]
                cells += [f"{format_bytes(peak)} {'PASS' if peak < _MEMORY else 'FAIL'} (under 300 MiB)"]
            else:
                cells += ["1", "", computed, format_bytes(peak)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
