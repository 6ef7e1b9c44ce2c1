"""A machine on which a restored server takes the place of an old one, which is opened again after each test."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.engines.postgres.fence import FENCED_COMMAND
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.database import LabDatabase
from dr_pipelines.processes.identity import run, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import find_binaries, running_pid
from dr_pipelines.repository.approvals import Approval, Request, Standing, approvals_of_all
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until
from tests.cli.conftest import PLAN, ROOT, Dr, Hotel, Ran

LEASE = timedelta(minutes=20)


@pytest.fixture(scope="module")
def old() -> Iterator[Hotel]:
    """The server whose place is taken, backed up, with a guest after the backup; opened again after each test."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    settings = Settings(state_dir=folder / "state", repository=str(folder / "repository"), plan=PLAN)
    leases = Leases(settings.state_dir)
    try:
        lab = lab_database.create(
            settings,
            leases,
            "lab-test",
            ttl=LEASE,
            archive_timeout=timedelta(seconds=30),
            size_bytes=1_000_000,
            progress=lambda done, total: None,
        )
        own = {"DR_DSN__DATABASE": lab.dsn("postgres"), "DR_SPOOL__DATABASE": str(lab.spool)}
        hotel = Hotel(Dr({**settings.as_environment(), **own}, folder), settings, lab, leases)
        environment = {**settings.as_environment(), "PYTHONPATH": str(ROOT)}
        lab_database.start_agent(lab, "database", leases, environment, ttl=LEASE, sandbox=None)
        with connect(lab.dsn("postgres")) as connection:
            connection.execute("CREATE ROLE dr_backup LOGIN REPLICATION PASSWORD 'dr_backup'")
        made = hotel.dr("backup", "full", "database", "--create", "--json")
        assert made.code == 0, made.err
        hotel.backup_id = made.document["backup_id"]
        hotel.write("after")
        hotel.settle()
        # Before it is ever fenced: that is in its log, too.
        hotel.copy_repository(folder / "pristine")
        yield hotel
    finally:
        leases.end_owner("lab-test")
        shutil.rmtree(folder)


def unfence(lab: LabDatabase) -> None:
    """What docs/cutover.md says."""
    with connect(lab.dsn("template1")) as connection:
        for name in ("hotel", "postgres"):
            connection.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true".encode())
        connection.execute("ALTER DATABASE template1 WITH CONNECTION LIMIT -1")
        connection.execute("ALTER ROLE dr_backup REPLICATION")
        command = str(scalar(connection, "SHOW archive_command")).partition(" # it was: ")[2]
        if command:
            connection.execute(psycopg.sql.SQL("ALTER SYSTEM SET archive_command = {}").format(command))
            connection.execute("SELECT pg_reload_conf()")


@dataclass
class Cutover:
    """A machine with a copy of the repository, on which the restored server takes the old one's place."""

    dr: Dr
    old: Hotel
    port: int = field(default_factory=free_port)
    running: "subprocess.Popen[str] | None" = None

    @property
    def target(self) -> Path:
        return self.dr.folder / "restored" / "data"

    @property
    def clients(self) -> Path:
        return self.dr.folder / "clients.conf"

    @property
    def command(self) -> list[str]:
        asked = ["--cutover", "--listen", "127.0.0.1", "--port", str(self.port), "--json"]
        return ["restore", "database", "--target", str(self.target), *asked]

    def start(self, *more: str, **environment: str) -> None:
        self.running = self.dr.start(*self.command, *more, **environment)

    def asks(self, count: int = 1) -> list[Approval]:
        """Wait until so many requests wait for an answer, from whichever execution."""
        store, running = FolderStore(self.dr.folder / "repository"), self.running
        assert running is not None

        def waiting() -> list[Approval]:
            every = approvals_of_all(store, SystemClock().wall())
            return [approval for approval in every if approval.standing is Standing.WAITING]

        def asked() -> bool:
            enough = len(waiting()) == count
            assert enough or running.poll() is None, running.communicate()
            return enough

        assert wait_until(asked, timeout=60)
        return waiting()

    def request(self) -> Request:
        """Wait for the request that is to be answered."""
        (approval,) = self.asks()
        assert approval.request is not None
        return approval.request

    def approve(self, *more: str) -> Ran:
        return self.dr("approve", self.request().execution_id, "--target", self.target, "--json", *more)

    def end(self) -> Ran:
        assert self.running is not None
        out, err = self.running.communicate(timeout=120)
        return Ran(self.running.returncode, out, err)

    def kill_when(self, moment: Callable[[], object], name: str) -> None:
        """SIGKILL the command as soon as that is so; it must not have ended before."""
        running = self.running
        assert running is not None
        reached = wait_until(lambda: moment() or running.poll() is not None, timeout=60, interval=0.002)
        ended = running.poll()
        running.kill()
        _, said = running.communicate()
        assert reached and ended is None, f"{name}: it ended with {ended}, {said}"

    def dsn(self, database: str = "hotel") -> str:
        return make_conninfo(self.old.lab.dsn(database), port=self.port)

    def as_init_sets_it_up(self) -> dict[str, str]:
        """A role for backups that may do nothing else, an administrator for the cutover alone, a client's own way."""
        return {
            "DR_DSN__DATABASE": make_conninfo(self.old.lab.dsn("postgres"), user="dr_backup", password="dr_backup"),
            "DR_ADMIN_DSN": self.old.lab.dsn("postgres"),
            "DR_CLIENT_DSN__DATABASE": self.by_the_file(),
        }

    def by_the_file(self) -> str:
        """As a client connects that follows the file."""
        return f"service=database user=postgres password={self.old.lab.password} dbname=hotel"

    def stop(self) -> None:
        """What the operator's service units would do."""
        stop(self.target)
        lock = self.dr.folder / "spool" / ".agent.lock"
        if lock.exists() and lock.read_text().startswith("process "):
            agent = int(lock.read_text().split()[1])
            if b"dr_pipelines.agent" in Path(f"/proc/{agent}/cmdline").read_bytes():
                os.kill(agent, signal.SIGTERM)
                assert wait_until(lambda: not Path(f"/proc/{agent}").exists(), timeout=30)


@pytest.fixture
def cutover(old: Hotel, world_readable_folder: Path) -> Iterator[Cutover]:
    folder = world_readable_folder
    shutil.copytree(old.dr.folder / "pristine", folder / "repository")
    environment = {
        "DR_STATE_DIR": str(folder / "state"),
        "DR_REPOSITORY": str(folder / "repository"),
        "DR_DSN__DATABASE": old.lab.dsn("postgres"),
        "DR_SPOOL__DATABASE": str(folder / "spool"),
        "DR_CONNECTION_FILE__DATABASE": str(folder / "clients.conf"),
        "PGSERVICEFILE": str(folder / "clients.conf"),
    }
    made = Cutover(Dr(environment, folder), old)
    made.clients.write_text(f"# ours\n[database]\nhost=127.0.0.1\nport={old.lab.port}\nconnect_timeout=5\n")
    yield made
    if made.running is not None and made.running.poll() is None:
        made.running.kill()
        made.running.communicate()
    made.stop()
    leases = Leases(folder / "state")
    for lease in leases.all(ending=True):
        leases.kill(lease)
    unfence(old.lab)


def stop(data: Path) -> None:
    """As a service unit does it."""
    pid = running_pid(data)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
        assert wait_until(lambda: running_pid(data) is None, timeout=30)


def is_fenced(lab: LabDatabase) -> bool:
    with connect(lab.dsn("template1")) as connection:
        closed = scalar(connection, "SELECT NOT bool_or(datallowconn) FROM pg_database WHERE datname <> 'template1'")
        return bool(closed) and str(scalar(connection, "SHOW archive_command")).startswith(FENCED_COMMAND)


def is_untouched(lab: LabDatabase) -> bool:
    with connect(lab.dsn()) as connection:
        return FENCED_COMMAND not in str(scalar(connection, "SHOW archive_command"))


def restart(cutover: Cutover) -> None:
    """With nothing but the data directory, as a service unit does it."""
    control = find_binaries(cutover.old.settings, cutover.old.lab.major)["pg_ctl"]
    identity = server_identity(cutover.old.settings)
    log = cutover.target.with_name("data.log")
    run([control, "-D", str(cutover.target), "-l", str(log), "-w", "restart"], identity=identity, timeout=60)
