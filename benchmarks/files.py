"""Backup and restore of one PostgreSQL 15 with poorly compressible rows, repository in a folder, interleaved rounds."""

import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from benchmarks.contenders import Measured, Ours, Peers
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.database import LabDatabase
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock

__all__ = ["Result", "run"]

_TTL = timedelta(hours=3)
COPY, DUMP, BACKUP = "cp -r + sync", "pg_basebackup | zstd -1 -T2", "dr backup"
UNPACK, RESTORE = "zstd -d | tar x + sync", "dr restore (files)"


@dataclass(frozen=True)
class Result:
    """All rounds of every contender."""

    data_bytes: int
    server: str
    rounds: dict[str, list[Measured]]

    def median(self, name: str) -> float:
        """The median of a contender's seconds, from the start of its process to its end."""
        return statistics.median(each.seconds for each in self.rounds[name])

    def spread(self, name: str) -> tuple[float, float]:
        """Its fastest and its slowest round."""
        all_of = [each.seconds for each in self.rounds[name]]
        return min(all_of), max(all_of)

    def inner(self, name: str) -> float | None:
        """The median of our function alone, without starting Python and importing; None for the peers."""
        found = [each.inner_seconds for each in self.rounds[name] if each.inner_seconds is not None]
        return statistics.median(found) if found else None

    def peak(self, name: str) -> int:
        """The largest memory that a process of it had, in bytes."""
        return max(each.peak_bytes for each in self.rounds[name])


def run(folder: Path, size_bytes: int, rounds: int, major: int) -> Result:
    """Make the database below `folder` (readable by all), and measure; everything is removed at the end."""
    settings = Settings(state_dir=folder / "state", repository=str(folder / "repository"))
    leases = Leases(settings.state_dir, SystemClock())
    with _database(settings, leases, size_bytes, major) as lab:
        binaries = find_binaries(settings, major)
        ours = Ours(
            {
                **settings.model_copy(update={"postgres_bin": binaries.folder}).as_environment(),
                "DR_DSN__DATABASE": lab.dsn("postgres"),
                "PATH": "/usr/bin:/bin",
            }
        )
        peers = Peers(binaries.folder, lab.dsn("postgres"))
        found: dict[str, list[Measured]] = defaultdict(list)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            _round(found, lab, ours, peers, folder, number)
        with connect(lab.dsn("postgres")) as connection:
            row = connection.execute("SELECT sum(pg_database_size(oid)) FROM pg_database").fetchone()
    assert row is not None
    return Result(int(row[0]), binaries.version, dict(found))


def _round(
    found: dict[str, list[Measured]], lab: LabDatabase, ours: Ours, peers: Peers, folder: Path, number: int
) -> None:
    copy, dump, unpacked, restored = (folder / name for name in ("copy", "dump.tar.zst", "unpacked", "restored"))

    def copies() -> None:
        found[COPY].append(peers.copy(lab.data, copy))

    def dumps() -> None:
        found[DUMP].append(peers.base_backup(dump))
        found[UNPACK].append(peers.unpack(dump, unpacked))

    def ours_in_turn() -> None:
        found[BACKUP].append(ours.backup())
        found[RESTORE].append(ours.restore(restored))

    steps = [copies, dumps, ours_in_turn]
    # Another one begins each time, so that no contender always runs on what the same other one left behind.
    for step in (*steps[number % 3 :], *steps[: number % 3]):
        step()
        for place in (copy, unpacked, restored):
            shutil.rmtree(place, ignore_errors=True)
        dump.unlink(missing_ok=True)


@contextmanager
def _database(settings: Settings, leases: Leases, size_bytes: int, major: int) -> Iterator[LabDatabase]:
    assert settings.repository is not None
    open_repository(settings.repository, settings=settings, create=True)
    owner = "benchmark"
    try:
        lab = lab_database.create(
            settings,
            leases,
            owner,
            ttl=_TTL,
            archive_timeout=timedelta(minutes=1),
            size_bytes=size_bytes,
            progress=lambda done, total: None,
            major=major,
            compressible=False,
        )
        lab_database.start_agent(lab, "database", leases, settings.as_environment(), ttl=_TTL, sandbox=None)
        yield lab
    finally:
        leases.end_owner(owner)
