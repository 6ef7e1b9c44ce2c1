"""Point-in-time replay of some GB of log from S3: ours, PostgreSQL's best case, and a plain `restore_command`.

The log is that of rows copied into a table with a primary key, which PostgreSQL replays as fast as any. All three start
from the same files with the same settings; the time runs from the server's start until it accepts writes.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

from benchmarks.database import SERVICE, Database, database, rows
from benchmarks.measuring import verdict, warm
from benchmarks.storage import on_s3
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.engines.postgres.configuration import configure, start_command
from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.engines.postgres.coverage import Coverage, choose
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.recovery import MAINTENANCE, start_recovered
from dr_pipelines.engines.postgres.restore import restore_files
from dr_pipelines.engines.postgres.staging import Stage
from dr_pipelines.engines.postgres.target import Note, claim
from dr_pipelines.errors import ProcessError
from dr_pipelines.processes.identity import give_to
from dr_pipelines.processes.leases import Lease
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import says_ready
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, format_bytes, wait_until

__all__ = ["run"]

BEST, OURS, PLAIN = "all segments in pg_wal", "dr", "one after the other"
_LIMITS = {BEST: 1.6, PLAIN: 0.5}
_OWNER, _TTL = "benchmark-replay", timedelta(hours=1)
_BLOCK = 16 << 20
_FETCH = """\
#!/bin/bash
set -o pipefail
curl -sSf --aws-sigv4 "aws:amz:{region}:s3" --user "{key}:{secret}" "{url}/log/${{1:0:8}}/$1" |
    tail -n +2 | zstd -dqf -o "$2"
"""


def run(folder: Path, log_bytes: int, rounds: int, major: int, *, until: float = float("inf")) -> str:
    """Measure and return the section; no round begins after `until`, by the monotonic clock."""
    found: dict[str, list[_Replay]] = defaultdict(list)
    with on_s3(folder) as settings, _prepared(folder, settings, log_bytes, major) as source:
        for number in range(rounds):
            if time.monotonic() > until:
                break
            contenders: list[tuple[str, Callable[[], _Replay]]] = [
                (BEST, source.from_pg_wal),
                (OURS, source.ours),
                (PLAIN, source.one_after_the_other),
            ]
            shift = number % len(contenders)
            for name, replay in (*contenders[shift:], *contenders[:shift]):
                found[name].append(replay())
                print(f"round {number + 1} of {rounds}: {name} {found[name][-1]}", file=sys.stderr, flush=True)
        segments = len(source.covered.chain.files)
        size = segments * source.covered.segment_size
    return _section(found, segments, size)


@dataclass(frozen=True)
class _Replay:
    """One replay: seconds until the server accepts writes; CPU seconds of server and commands, of fetching, of S3."""

    seconds: float
    server: float
    fetching: float
    s3: float


@dataclass(frozen=True)
class _Source:
    """A backup and the log after it in S3, the backup's files, and the time to restore to."""

    made: Database
    store: Store
    covered: Coverage
    files: Path
    moment: datetime

    def from_pg_wal(self) -> _Replay:
        """Nothing to fetch: every segment lies in pg_wal, whole, on disk and in the page cache."""

        def put(target: Path) -> str:
            log = Log(self.store)
            for name in self.covered.chain.files:
                path = target / "pg_wal" / name
                path.write_bytes(log.fetch(name))
                path.chmod(0o600)
                give_to(path, self.made.identity)
            return "false"

        return self._by_postgres(put)

    def one_after_the_other(self) -> _Replay:
        """A script of curl and zstd, which PostgreSQL calls for each segment when it needs it."""

        def put(target: Path) -> str:
            settings, script = self.made.settings, target / "fetch.sh"
            assert settings.s3_access_key_id is not None and settings.s3_secret_access_key is not None
            script.write_text(
                _FETCH.format(
                    region=settings.s3_region,
                    key=settings.s3_access_key_id.get_secret_value(),
                    secret=settings.s3_secret_access_key.get_secret_value(),
                    url=f"{settings.s3_endpoint}/{self.store.url.removeprefix('s3://')}",
                )
            )
            script.chmod(0o700)
            give_to(script, self.made.identity)
            return "./fetch.sh %f %p"

        return self._by_postgres(put)

    def ours(self) -> _Replay:
        """Fetched ahead of the replay by this project's own step."""
        made = self.made
        with self._target() as target, self._watched() as watch:
            start_recovered(
                target,
                made.binaries,
                made.leases,
                Log(self.store),
                self.covered.chain.files,
                superuser=made.server.user,
                owner=_OWNER,
                ttl=_TTL,
                identity=made.identity,
                workers=made.settings.workers,
                clock=SystemClock(),
                target_time=self.moment,
                proven_until=self.covered.recovery_point,
                proven_lsn=self.covered.proven_lsn,
            )
            return watch()

    def _by_postgres(self, put: Callable[[Path], str]) -> _Replay:
        """With the restore_command that `put` returns, and nothing of ours running; all else as ours has it."""
        made = self.made
        with self._target() as target:
            stage = _Plain(target, Log(self.store), (), made.identity, 1)
            stage.open()
            stage.command = put(target)
            configure(target, made.binaries, stage, self.moment, made.identity)
            subprocess.run(["sync", "-f", str(target)], check=True)
            port = free_port()
            with self._watched() as watch:
                lease = made.leases.start(
                    start_command(target, made.binaries, made.identity, port, str(made.folder)),
                    kind="postgres",
                    owner=_OWNER,
                    identity=made.identity,
                    cwd=target,
                    log=target.parent / f"{target.name}.log",
                    ttl=_TTL,
                    data=target,
                )
                dsn = psycopg.conninfo.make_conninfo(
                    host=str(made.folder), port=port, user=made.server.user, dbname=MAINTENANCE
                )
                self._await(target, dsn, lease)
                return watch()

    def _await(self, target: Path, dsn: str, lease: Lease) -> None:
        def is_open() -> bool:
            if not self.made.leases.alive(lease):
                raise ProcessError("the server ended during its recovery")
            if not says_ready(target):
                return False
            try:
                with connect(dsn, timeout=5) as connection:
                    return not scalar(connection, "SELECT pg_is_in_recovery()")
            except ProcessError:
                return False

        if not wait_until(is_open, timeout=1800):
            raise ProcessError("the replay did not end")

    @contextmanager
    def _target(self) -> Iterator[Path]:
        """The backup's files in a new folder, on disk, with all that will be read in the page cache."""
        target = self.made.folder / "target"
        subprocess.run(["cp", "-a", self.files, target], check=True)
        subprocess.run(["sync"], check=True)
        warm(self.made.folder.parent / "s3")
        try:
            yield target
        finally:
            self.made.leases.end_owner(_OWNER)
            shutil.rmtree(target)

    @contextmanager
    def _watched(self) -> Iterator[Callable[[], _Replay]]:
        """Gives a function that says what was taken since the block began."""
        here, s3, began = _computed(os.getpid()), self._s3(), time.monotonic()

        def watch() -> _Replay:
            seconds = time.monotonic() - began
            servers = [lease.pid for lease in self.made.leases.of(_OWNER, "postgres")]
            fetching = _computed(os.getpid()) - here
            return _Replay(seconds, sum(_computed_by_all(pid) for pid in servers), fetching, self._s3() - s3)

        yield watch

    def _s3(self) -> float:
        return sum(_computed(lease.pid) for lease in self.made.leases.of("benchmark-s3"))


class _Plain(Stage):
    """Nothing is fetched ahead: PostgreSQL is given another command."""

    command = "false"

    @property
    def restore_command(self) -> str:
        return self.command


def _computed(pid: int, *, with_children: bool = False) -> float:
    """CPU seconds of a process, and of the children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(int(field) for field in fields[11 : 15 if with_children else 13]) / os.sysconf("SC_CLK_TCK")


def _computed_by_all(pid: int) -> float:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return _computed(pid, with_children=True) + sum(_computed(int(child), with_children=True) for child in children)


@contextmanager
def _prepared(folder: Path, settings: Settings, log_bytes: int, major: int) -> Iterator[_Source]:
    """A backup, then that much log, then a time, then a little more; all of it in S3, the server stopped."""
    with database(folder / "database", 0, major, settings) as made:
        settings = made.settings
        assert settings.repository is not None
        repository = open_repository(settings.repository, settings=settings)
        clock = SystemClock()
        manifest = take_backup(
            SERVICE, made.dsn, repository, made.binaries, settings, clock=clock, progress=lambda done, total: None
        ).manifest
        store = repository.service(SERVICE).child(manifest.system_identifier)
        moment = _write(made.dsn, log_bytes)
        files = made.folder / "files"
        claim(files, Note("benchmark", manifest.backup_id, manifest.system_identifier), made.identity)
        restore_files(
            store,
            [manifest],
            files,
            made.binaries,
            identity=made.identity,
            workers=settings.workers,
            progress=lambda done, total: None,
        )
        wait_until(lambda: _reaches(store, moment), timeout=600)
        covered = choose(store, moment)
        made.end()
        yield _Source(made, store, covered, files, moment)


def _reaches(store: Store, moment: datetime) -> bool:
    position = Log(store).read_position()
    return position is not None and position.recovery_point is not None and position.recovery_point > moment


def _write(dsn: str, size_bytes: int) -> datetime:
    """Copy rows in, a transaction each 16 MiB, until that much log has been written; returns the moment after."""
    block = psycopg.sql.SQL("COPY replayed (body) FROM STDIN")
    text = rows(_BLOCK)
    with connect(dsn) as connection:
        connection.execute("CREATE TABLE replayed (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
        start = scalar(connection, "SELECT pg_current_wal_lsn()")
        written = 0
        while written < size_bytes:
            with connection.cursor().copy(block) as copy:
                copy.write(text)
            row = connection.execute("SELECT pg_current_wal_lsn() - %s::pg_lsn", (start,)).fetchone()
            assert row is not None
            written = int(row[0])
        moment: datetime = scalar(connection, "SELECT clock_timestamp()")
        connection.execute("CREATE TABLE later AS SELECT 1 AS one")
        connection.execute("SELECT pg_switch_wal()")
    return moment


def _section(found: dict[str, list[_Replay]], segments: int, size: int) -> str:
    if not found:
        return "Not measured."
    ours = statistics.median(replay.seconds for replay in found[OURS])
    lines = [
        f"{segments} segments, {format_bytes(size)}, of rows that were copied into a table with a primary key, to a",
        "time just before the end, from SeaweedFS on this machine with two workers; all that is read is in the page",
        f"cache. Median of {len(found[OURS])} rounds, from the server's start until it accepts writes. *One after the",
        "other* is a `restore_command` of `curl | tail | zstd -d`, which compares no hashes. CPU seconds are of both",
        "cores together.",
        "",
        "| | seconds, median | fastest to slowest | dr against it | | CPU: server, its commands | fetching | S3 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (BEST, OURS, PLAIN):
        runs = found[name]
        seconds = [replay.seconds for replay in runs]
        ratio = ours / statistics.median(seconds)
        limit = _LIMITS.get(name)
        cells = [name, f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f} to {max(seconds):.1f}"]
        cells += ["", ""] if limit is None else [f"{ratio:.2f}", verdict(ratio, limit)]
        for of in ("server", "fetching", "s3"):
            cells.append(f"{statistics.median(getattr(replay, of) for replay in runs):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
