"""A real PostgreSQL whose log is archived: what tests back up, break and bring back."""

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import psycopg

from dr_pipelines.agent import AgentOptions, run_agent
from dr_pipelines.engines.postgres import coverage
from dr_pipelines.engines.postgres import target as targets
from dr_pipelines.engines.postgres.backup import BackupResult, take_backup
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import Position
from dr_pipelines.engines.postgres.production import Production, archive_command, prepare_production
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.plan import Plan
from dr_pipelines.processes.identity import give_to, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Binaries, Server, find_binaries, initdb
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks import database_restore as runbook
from dr_pipelines.runbooks.execution import Execution, Journal
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until

SERVICE = "database"
OWNER = "tests"
SCRIPT = Path(__file__).parents[1] / "scripts" / "backup.sh"


@contextlib.contextmanager
def open_to_all() -> Iterator[Path]:
    """A new folder that servers, which run as another user, can reach; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def state() -> Iterator[Settings]:
    """Settings with a state folder of their own; whatever was started under its leases is ended afterwards."""
    with open_to_all() as folder:
        settings = Settings(state_dir=folder, part_size=1 << 20)
        try:
            yield settings
        finally:
            leases = Leases(folder)
            for lease in leases.all(ending=True):
                leases.kill(lease)


@dataclass
class Cluster:
    """A server of its own: its cluster in a folder that is gone afterwards."""

    server: Server
    leases: Leases
    folder: Path
    options: dict[str, str]
    database: str = field(default="postgres", kw_only=True)
    """The one that is asked where none is named."""
    environment: dict[str, str] = field(default_factory=dict, kw_only=True)
    """What is in the server's beside the usual."""

    def start(self, **more: str) -> None:
        """Start it; `more` settings are for this start."""
        options = self.options | more
        self.server.start(self.leases, owner=OWNER, ttl=timedelta(hours=1), options=options, env=self.environment)

    def connect(self, database: str | None = None) -> psycopg.Connection:
        """A connection that commits each statement."""
        return psycopg.connect(self.server.dsn(database or self.database), autocommit=True)

    def ask(self, query: str, database: str | None = None) -> object:
        """The one value of the answer."""
        with self.connect(database) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def do(self, *statements: str, database: str | None = None) -> None:
        with self.connect(database) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def now(self) -> datetime:
        """By the server's clock."""
        moment = self.ask("SELECT clock_timestamp()")
        assert isinstance(moment, datetime)
        return moment.astimezone(UTC)

    @property
    def system(self) -> str:
        return str(self.ask("SELECT system_identifier::text FROM pg_control_system()"))


@contextlib.contextmanager
def cluster(settings: Settings, binaries: Binaries, options: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A new cluster that does not run yet, its segments of 1 MiB."""
    identity = server_identity(settings)
    with open_to_all() as folder:
        home = folder / "cluster"
        home.mkdir()
        give_to(home, identity)
        password = secrets.token_hex(8)
        initdb(binaries, home / "data", identity=identity, password=password, options=["--wal-segsize=1", "--no-sync"])
        server = Server(binaries, home / "data", free_port(), identity, password)
        made = Cluster(server, Leases(settings.state_dir), folder, {"fsync": "off", **(options or {})})
        try:
            yield made
        finally:
            server.kill()


@dataclass
class Source(Cluster):
    """A cluster whose log goes through a spool and an agent, in a thread of this process, into a repository."""

    settings: Settings
    repository: Repository
    spool: Path
    _agent: tuple[threading.Thread, threading.Event] | None = field(default=None)

    def start_agent(self, dsn: str | None = None) -> None:
        """Over the spool; it asks this server unless another connection string is given."""
        options = AgentOptions(
            service=SERVICE,
            spool=self.spool,
            store=self.repository.service(SERVICE),
            dsn=dsn or self.server.dsn(self.database),
            poll=0.02,
            sample_every=0.1,
            heartbeat=0.5,
            confirm=self.repository.confirm,
        )
        stop = threading.Event()
        thread = threading.Thread(target=run_agent, args=[options], kwargs={"clock": SystemClock(), "stop": stop})
        thread.start()
        self._agent = (thread, stop)

    def stop_agent(self) -> None:
        """Tell the agent to stop and wait until it has; nothing happens where there is none."""
        if self._agent is not None:
            thread, stop = self._agent
            stop.set()
            thread.join(timeout=60)
            assert not thread.is_alive()
            self._agent = None

    @contextlib.contextmanager
    def without_agent(self) -> Iterator[None]:
        self.stop_agent()
        try:
            yield
        finally:
            self.start_agent()

    @property
    def store(self) -> Store:
        """Where this cluster's backups and log lie."""
        return self.repository.service(SERVICE).child(self.system)

    def position(self) -> Position:
        position = Log(self.store).read_position()
        assert position is not None
        return position

    def back_up(
        self,
        *,
        dsn: str | None = None,
        archive_patience: float = 60,
        progress: Callable[[int, int], None] | None = None,
    ) -> Manifest:
        return self.take_backup(dsn=dsn, archive_patience=archive_patience, progress=progress).manifest

    def take_backup(
        self,
        *,
        kind: Literal["full", "incremental"] = "full",
        full_every: int = 10,
        dsn: str | None = None,
        archive_patience: float = 60,
        progress: Callable[[int, int], None] | None = None,
    ) -> BackupResult:
        return take_backup(
            SERVICE,
            dsn or self.server.dsn(self.database),
            self.repository,
            self.server.binaries,
            self.settings,
            clock=SystemClock(),
            progress=progress or (lambda done, total: None),
            archive_patience=archive_patience,
            kind=kind,
            full_every=full_every,
        )

    def ship(self) -> datetime:
        """Everything written until now is in the repository; returns the recovery point, which is after the call."""
        called_at = self.now()
        store = self.store

        def shipped() -> bool:
            # Again and again: what the server writes by itself after a switch is in no segment yet.
            self.do("SELECT pg_switch_wal()")
            return _point(store) > called_at

        assert wait_until(shipped, timeout=30, interval=0.2), Log(store).read_position()
        return _point(store)


def _point(store: Store) -> datetime:
    position = Log(store).read_position()
    return (position and position.recovery_point) or datetime.min.replace(tzinfo=UTC)


@contextlib.contextmanager
def source(
    settings: Settings, repository: Repository, *, major: int | None = None, options: Mapping[str, str] | None = None
) -> Iterator[Source]:
    """A server that runs and is archived."""
    identity = server_identity(settings)
    archiving = {"archive_mode": "on", "max_wal_size": "64MB", "min_wal_size": "2MB"}
    with cluster(settings, find_binaries(settings, major), archiving | dict(options or {})) as made:
        spool = made.folder / "spool"
        spool.mkdir()
        give_to(spool, identity)
        script = Path(shutil.copy(SCRIPT, made.folder / "backup.sh"))
        made.options.setdefault("archive_command", f"DR_SPOOL={spool} {script} wal %p %f")
        running = Source(made.server, made.leases, made.folder, made.options, settings, repository, spool)
        running.start()
        try:
            running.start_agent()
            yield running
        finally:
            running.stop_agent()


@dataclass
class Restore:
    """One execution of the restore runbook, step by step or in one go."""

    around: runbook.Surroundings
    execution: Execution
    target: Path | None = None
    assessment: runbook.Assessment | None = None
    files: runbook.RestoredFiles | None = None
    server: RestoredServer | None = None

    def prepare(self) -> runbook.Assessment:
        assessed = runbook.assess(self.around, self.execution, self.target, None)
        self.assessment = runbook.prepare(self.around, assessed, None)
        return self.assessment

    def fetch(self) -> runbook.RestoredFiles:
        assert self.assessment is not None
        self.files = runbook.restore_latest_backup(self.around, self.assessment, None)
        return self.files

    def apply(self) -> RestoredServer:
        assert self.assessment is not None and self.files is not None
        self.server = runbook.apply_wal(self.around, self.assessment, self.files, None)
        return self.server

    def validate(self) -> runbook.Validated:
        assert self.assessment is not None and self.files is not None and self.server is not None
        return runbook.validate(self.around, self.assessment, self.files, self.server, None)

    def run(self) -> RestoredServer:
        """Up to the server that runs."""
        self.prepare()
        self.fetch()
        return self.apply()

    def do(self, *statements: str, database: str = "postgres") -> None:
        assert self.server is not None
        with psycopg.connect(self.server.dsn(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def ask(self, query: str, database: str = "postgres") -> object:
        assert self.server is not None
        with psycopg.connect(self.server.dsn(database)) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def surroundings(settings: Settings, repository: Repository, plan: Plan | None = None) -> runbook.Surroundings:
    """What the runbook's steps work with, without a plan unless one is given."""
    quiet = logging.getLogger("tests")
    return runbook.Surroundings(settings, plan, repository, SystemClock(), quiet, lambda what, done, total: None)


@contextlib.contextmanager
def restore(
    settings: Settings,
    repository: Repository,
    *,
    to: datetime | None = None,
    timeline: int | None = None,
    target: Path | None = None,
) -> Iterator[Restore]:
    """A restore that has not begun; its server and what it wrote are gone afterwards."""
    around = surroundings(settings, repository)
    begun = begin(around, to=to, timeline=timeline)
    try:
        yield Restore(around, begun, target)
    finally:
        runbook.discard(around, begun.id, None)
        if target is not None:
            shutil.rmtree(target, ignore_errors=True)


@contextlib.contextmanager
def in_production(restore: Restore, lost: Source) -> Iterator[Source]:
    """The restored server in the place of the lost one: it archives, with a spool and an agent of its own."""
    around, server = restore.around, restore.server
    assert server is not None
    for lease in around.leases.of(restore.execution.id):
        around.leases.end(lease)
    targets.hand_over(server.data, around.identity)
    with open_to_all() as folder:
        spool = folder / "spool"
        spool.mkdir()
        give_to(spool, around.identity)
        script = Path(shutil.copy(SCRIPT, folder / "backup.sh"))
        wanted = Production("127.0.0.1", free_port(), archive_command(script, spool), None)
        prepare_production(server.data, lost.server.binaries, around.identity, wanted, timeline=server.timeline)
        new = Server(lost.server.binaries, server.data, wanted.port, around.identity, lost.server.password)
        running = Source(new, around.leases, folder, {"fsync": "off"}, around.settings, around.repository, spool)
        running.start()
        try:
            running.start_agent()
            yield running
        finally:
            running.stop_agent()
            new.kill()


def begin(around: runbook.Surroundings, *, to: datetime | None = None, timeline: int | None = None) -> Execution:
    """A new execution, written into its journal."""
    now = around.clock.wall()
    execution = Execution(
        id=timed_id("restore", now),
        kind="restore",
        runbook=runbook.RUNBOOK,
        service=SERVICE,
        outage_started_at=now,
        started_at=now,
        target_time=to,
        timeline=timeline,
        reason="test",
        requested_by="tests",
        plan_sha256=None,
    )
    return Journal(around.repository.store, execution.id).begin(execution)


def newest(repository: Repository) -> coverage.Coverage:
    """What a restore to the latest point would take."""
    return coverage.choose(coverage.newest_system(repository.service(SERVICE)), None)


def failed(validated: runbook.Validated) -> list[str]:
    """What was found wrong or could not be checked; without a plan there is no application query to ask."""
    missing = "the plan names no application query"
    return [
        f"{check.name}: {check.detail}" for check in validated.checks if not check.passed and check.detail != missing
    ]


def new_repository(folder: Path) -> Repository:
    """A repository in an empty folder."""
    return open_repository(str(folder), settings=Settings(), create=True)


def give_to_server(path: Path, settings: Settings) -> None:
    """Make it the property of whom servers run as."""
    give_to(path, server_identity(settings))


def files_below(folder: Path) -> dict[str, int]:
    """Every file, link and folder below, with its time of change: to show that nothing was touched."""
    return {
        os.path.relpath(os.path.join(top, name), folder): os.lstat(os.path.join(top, name)).st_mtime_ns
        for top, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def copy_of(repository: Repository, folder: Path) -> Repository:
    """The same repository once more, in a new folder, to be damaged."""
    shutil.copytree(repository.url, folder)
    return open_repository(str(folder), settings=Settings())


def flip(store: Store, key: str, position: int = -100) -> None:
    """Change one bit of an object."""
    data = bytearray(store.get(key))
    data[position] ^= 0x10
    store.put(key, [data])


@contextlib.contextmanager
def stuck_archive(source: Source) -> Iterator[None]:
    """PostgreSQL cannot hand over its log meanwhile."""
    source.server.stop()
    source.start(archive_command="false")
    try:
        yield
    finally:
        source.server.stop("immediate")
        source.start()
