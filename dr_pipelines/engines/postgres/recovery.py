"""Applying the log: a restored data directory becomes a server that stands at the latest point or at a time."""

import json
import re
import secrets
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from dr_pipelines.engines.postgres.configuration import (
    allow_prepared_transactions,
    configure,
    remove_recovery_settings,
    start_command,
)
from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.staging import Stage
from dr_pipelines.engines.postgres.target import PRIVATE
from dr_pipelines.engines.postgres.wal import Lsn, parse_history
from dr_pipelines.errors import ProcessError, RestoreError
from dr_pipelines.processes.identity import Identity, end_of, give_to, open_folder
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Binaries, controldata, says_ready
from dr_pipelines.timing import Clock

__all__ = ["MAINTENANCE", "RestoredServer", "start_recovered"]

MAINTENANCE = "template1"
"""The database that is there in every cluster: "postgres" may have been dropped."""

_ACCESS, _LOG = "access.json", "server.log"
_NOT_REACHED = "recovery ended before configured recovery target was reached"
_ALLOWED = r'Increase "?max_prepared_transactions"? \(currently (\d+)\)'
_PREPARED = 64
"""How many prepared transactions are allowed where the configuration was found to allow too few."""


@dataclass(frozen=True)
class RestoredServer:
    """A restored server that runs, and where its recovery ended."""

    data: Path
    port: int
    socket: Path
    superuser: str
    system_identifier: str
    timeline: int
    replayed_lsn: str
    last_commit_at: datetime | None
    """When the last transaction that was replayed was committed; None where none was, or where the server was started
    again since and does not know it any more."""
    preloaded: str = ""
    """The source's shared_preload_libraries, which it runs with: a replay may need them."""

    def dsn(self, database: str = "postgres") -> str:
        """A connection as the superuser over the private socket, for this machine only."""
        return psycopg.conninfo.make_conninfo(
            "", host=str(self.socket), port=self.port, user=self.superuser, dbname=database
        )


def start_recovered(
    target: Path,
    binaries: Binaries,
    leases: Leases,
    log: Log,
    names: tuple[str, ...],
    *,
    superuser: str,
    owner: str,
    ttl: timedelta,
    identity: Identity | None,
    workers: int,
    clock: Clock,
    target_time: datetime | None = None,
    target_timeline: str = "latest",
    proven_until: datetime | None = None,
    proven_lsn: Lsn | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    folders: tuple[Path, ...] = (),
) -> RestoredServer:
    """Start the server in `target`, let it replay, and return when it accepts connections.

    A server that an interrupted attempt left in this target is taken over where it has recovered, else ended and
    started again: it goes on from its last restart point. Where nothing was committed after `target_time`, PostgreSQL
    does not get there; up to `proven_until`, when the log is known to hold everything, its end is that time's state,
    provided that the replay gets to `proven_lsn`: a broken record would look the same. `target_timeline` is as
    PostgreSQL has it: a number, `current` for the one that the backup was made on, `latest`.

    Raises RestoreError with the end of the server's own log where the recovery fails, and what made the fetching of WAL
    fail; no server is left running then.
    """
    recovery = _Recovery(
        target,
        binaries,
        leases,
        log,
        names,
        superuser,
        owner,
        ttl,
        identity,
        workers,
        clock,
        progress,
        folders,
        target_timeline,
    )
    access = _running(target, leases, owner)
    if access is None:
        try:
            access = recovery.run(target_time)
        except RestoreError as error:
            proven = target_time is not None and proven_until is not None and target_time <= proven_until
            if not proven or proven_lsn is None or _NOT_REACHED not in error.message:
                raise
            access = recovery.run(None, instead_of_target=True)
    server = _look_at(target, access)
    if access.instead_of_target:
        recovery.require(server, proven_lsn)
    remove_recovery_settings(target)
    return server


class _TooManyPrepared(Exception):
    """The log holds more prepared transactions than the server may have."""

    def __init__(self, allowed: int) -> None:
        super().__init__(allowed)
        self.allowed = allowed


@dataclass(frozen=True)
class _Recovery:
    """What every attempt at one recovery has in common."""

    target: Path
    binaries: Binaries
    leases: Leases
    log: Log
    names: tuple[str, ...]
    superuser: str
    owner: str
    ttl: timedelta
    identity: Identity | None
    workers: int
    clock: Clock
    progress: Callable[[int, int], None]
    folders: tuple[Path, ...]
    target_timeline: str

    def run(self, target_time: datetime | None, *, instead_of_target: bool = False) -> "_Access":
        """Start the server and wait until it accepts connections."""
        target, leases = self.target, self.leases
        for earlier in leases.of(self.owner, "postgres"):
            leases.end(earlier)
        recovering = (target / "backup_label").exists() or (target / "recovery.signal").exists()
        names = _still_wanted(target, self.binaries, self.names)
        stage = Stage(target, self.log, names, self.identity, self.workers)
        stage.open(keep_taken=not recovering)
        earlier_access = _Access.of(target)
        if recovering:
            configure(target, self.binaries, stage, target_time, self.identity, self.target_timeline)
        elif earlier_access is not None:
            instead_of_target = earlier_access.instead_of_target
        socket = _socket_folder(leases.state_dir, self.identity)
        access = _Access(free_port(), str(socket), self.superuser, instead_of_target)
        with stage.fetching():
            log_start = _size(target / PRIVATE / _LOG)
            lease = leases.start(
                start_command(target, self.binaries, self.identity, access.port, access.socket),
                kind="postgres",
                owner=self.owner,
                identity=self.identity,
                env={"LC_ALL": "C.UTF-8"},
                cwd=target,
                log=target / PRIVATE / _LOG,
                ttl=self.ttl,
                folders=(*self.folders, *_scratch(socket, leases)),
                data=target,
                stop_signal=signal.SIGINT,
            )
            try:
                access.save(target)
                self._wait_until_open(access, lease, stage, log_start)
                stage.check()
            except BaseException as error:
                leases.end(lease)
                shutil.rmtree(socket, ignore_errors=True)
                if not isinstance(error, _TooManyPrepared):
                    raise
                more = max(2 * error.allowed, _PREPARED)
            else:
                return access
        # The source was started with more than its files say, or has been allowed more since the backup.
        allow_prepared_transactions(target, more, self.identity)
        return self.run(target_time, instead_of_target=instead_of_target)

    def _wait_until_open(self, access: "_Access", lease: Lease, stage: Stage, log_start: int) -> None:
        """Return when the recovery is over. There is no time limit: what a replay may take, its step's budget says."""
        server_log = self.target / PRIVATE / _LOG
        while True:
            if not self.leases.alive(lease):
                stage.check()
                said = end_of(server_log, lines=8, start=log_start)
                if allowed := re.search(_ALLOWED, said):
                    raise _TooManyPrepared(int(allowed[1]))
                hint = f"see {server_log}"
                if "contains errors" in said:
                    hint = f"make {self.target}/postgresql.conf fit this machine, then resume the restore"
                raise RestoreError(f"the restored server ended during its recovery: {said}", hint=hint)
            self.progress(*stage.progress())
            stage.check()
            # Asked before, it would start a process to refuse each question, and write that into its log.
            if says_ready(self.target) and self._answers(access):
                return
            self.clock.sleep(0.05)

    def _answers(self, access: "_Access") -> bool:
        try:
            with connect(access.dsn, timeout=5) as connection:
                return not scalar(connection, "SELECT pg_is_in_recovery()")
        except ProcessError as error:
            # While it recovers it says "the database system is starting up", "... is not accepting connections".
            if refused := re.search(r" refuses: (?s:.*?)FATAL:  (?!the database system is )(.*)", error.message):
                raise self._refused(refused[1]) from None
        except psycopg.OperationalError:
            pass
        return False

    def _refused(self, words: str) -> RestoreError:
        """The log itself shut the superuser or the database out; nothing but the single-user mode opens that again."""
        options = ["-D", str(self.target), "-c", f"data_directory={self.target}"]
        command = shlex.join([self.binaries["postgres"], "--single", *options, MAINTENANCE])
        return RestoreError(
            f"the restored server has recovered and refuses the restore: {words}",
            hint=f"mend that as the user that owns the folder, such as: echo 'ALTER ROLE {self.superuser} LOGIN' | "
            f"{command}; then resume the restore",
        )

    def require(self, server: "RestoredServer", proven_lsn: Lsn | None) -> None:
        """Raise RestoreError, and end the server, where the replay did not get to where the log is proven to lead."""
        if proven_lsn is None or Lsn.parse(server.replayed_lsn) < proven_lsn:
            for lease in self.leases.of(self.owner, "postgres"):
                self.leases.end(lease)
            led_to = proven_lsn or "a position that is not known"
            raise RestoreError(
                f"the replay ended at {server.replayed_lsn}, the log was proven to lead to {led_to}",
                hint="dr backup verify SERVICE says what is wrong with the log; restore to an earlier time",
            )


@dataclass(frozen=True)
class _Access:
    """How a server that was started here is reached; kept in the target, for a resume."""

    port: int
    socket: str
    superuser: str
    instead_of_target: bool = False
    """It was to replay the whole log since that ends before a commit that is later than the target."""

    @property
    def dsn(self) -> str:
        return psycopg.conninfo.make_conninfo(
            "", host=self.socket, port=self.port, user=self.superuser, dbname=MAINTENANCE
        )

    def save(self, target: Path) -> None:
        draft = target / PRIVATE / f".{_ACCESS}.new"
        draft.write_text(json.dumps(asdict(self)))
        draft.rename(target / PRIVATE / _ACCESS)

    @classmethod
    def of(cls, target: Path) -> "_Access | None":
        try:
            return cls(**json.loads((target / PRIVATE / _ACCESS).read_text()))
        except FileNotFoundError:
            return None


def _running(target: Path, leases: Leases, owner: str) -> _Access | None:
    """A server of an interrupted attempt that has recovered and still runs: nothing is left to do for it."""
    access = _Access.of(target)
    if access is None or not any(leases.alive(lease) for lease in leases.of(owner, "postgres")):
        return None
    try:
        with connect(access.dsn, timeout=5) as connection:
            return None if scalar(connection, "SELECT pg_is_in_recovery()") else access
    except (ProcessError, psycopg.OperationalError):
        return None


def _look_at(target: Path, access: _Access) -> RestoredServer:
    with connect(access.dsn) as connection:
        replayed = scalar(connection, "SELECT pg_last_wal_replay_lsn()::text")
        last_commit = scalar(connection, "SELECT pg_last_xact_replay_timestamp()")
        identifier = str(scalar(connection, "SELECT system_identifier FROM pg_control_system()"))
        folder = str(scalar(connection, "SHOW data_directory"))
        preloaded = str(scalar(connection, "SHOW shared_preload_libraries"))
        timeline = int(
            scalar(connection, "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int")
        )
    if Path(folder).resolve() != target.resolve():
        raise RestoreError(f"the server that answers at {access.socket} has its data in {folder}, not in {target}")
    left_at = _left_at(target, timeline)
    # A server that was killed since has replayed its own log, and names a commit of its own.
    own = replayed is None or Lsn.parse(replayed) != left_at
    return RestoredServer(
        data=target,
        port=access.port,
        socket=Path(access.socket),
        superuser=access.superuser,
        system_identifier=identifier,
        timeline=timeline,
        replayed_lsn=str(left_at),
        last_commit_at=last_commit.astimezone(UTC) if last_commit and not own else None,
        preloaded=preloaded,
    )


def _left_at(target: Path, timeline: int) -> Lsn:
    """Where the recovery ended, whatever happened since: the history of the timeline that it began has it."""
    try:
        switches = parse_history((target / "pg_wal" / f"{timeline:08X}.history").read_text())
    except FileNotFoundError:
        switches = ()
    if not switches:
        raise RestoreError(f"the server in {target} did not recover from the log", hint="start a new restore")
    return switches[-1].at


def _socket_folder(state_dir: Path, identity: Identity | None) -> Path:
    """A new folder that only the server's user can enter, with a path that is short enough for a socket (107 bytes)."""
    name = secrets.token_hex(4)
    if len(str(state_dir)) <= 60:
        folder = open_folder(state_dir / "run") / name
        folder.mkdir(mode=0o700)
    else:
        folder = Path(tempfile.mkdtemp(prefix="dr-", dir="/tmp"))
    give_to(folder, identity)
    return folder


def _scratch(socket: Path, leases: Leases) -> tuple[Path, ...]:
    return (socket,) if leases.state_dir in socket.parents else ()


def _still_wanted(target: Path, binaries: Binaries, names: tuple[str, ...]) -> tuple[str, ...]:
    """All of the log for a fresh backup; after an interruption what follows the last restart point."""
    if (target / "backup_label").exists():
        return names
    redo = controldata(binaries, target)["Latest checkpoint's REDO WAL file"]
    return tuple(name for name in names if "." in name or name[8:] >= redo[8:])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
