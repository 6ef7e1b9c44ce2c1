"""`dr restore --cutover` and `dr approve`: the restored server takes the lost one's place, once somebody allows it."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests.cli.conftest import PLAN, ROOT, Dr, Hotel, Ran

pytestmark = pytest.mark.slow

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
        made = hotel.dr("backup", "full", "database", "--create", "--json")
        assert made.code == 0, made.err
        hotel.backup_id = made.document["backup_id"]
        hotel.write("after")
        hotel.settle()
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

    def asks(self) -> dict[str, Any]:
        """Wait for the request."""
        running, found = self.running, list[dict[str, Any]]()
        assert running is not None

        def asked() -> bool:
            assert running.poll() is None, running.communicate()
            found[:] = self.dr("approvals", "--json").document["approvals"]
            return bool(found)

        assert wait_until(asked, timeout=60, interval=0.3)
        return found[0]

    def approve(self, *more: str) -> Ran:
        return self.dr("approve", self.asks()["execution_id"], "--target", self.target, "--json", *more)

    def end(self) -> Ran:
        assert self.running is not None
        out, err = self.running.communicate(timeout=120)
        return Ran(self.running.returncode, out, err)

    def dsn(self, database: str = "hotel") -> str:
        return make_conninfo(self.old.lab.dsn(database), port=self.port)

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
def cutover(old: Hotel, dr: Dr) -> Iterator[Cutover]:
    old.copy_repository(dr.folder / "repository")
    environment = {
        **dr.environment,
        "DR_REPOSITORY": str(dr.folder / "repository"),
        "DR_DSN__DATABASE": old.lab.dsn("postgres"),
        "DR_SPOOL__DATABASE": str(dr.folder / "spool"),
        "DR_CONNECTION_FILE__DATABASE": str(dr.folder / "clients.conf"),
        "PGSERVICEFILE": str(dr.folder / "clients.conf"),
    }
    made = Cutover(Dr(environment, dr.folder), old)
    made.clients.write_text(f"# ours\n[database]\nhost=127.0.0.1\nport={old.lab.port}\nconnect_timeout=5\n")
    yield made
    if made.running is not None and made.running.poll() is None:
        made.running.kill()
        made.running.communicate()
    made.stop()
    for lease in Leases(dr.folder / "state").all(ending=True):
        Leases(dr.folder / "state").kill(lease)
    unfence(old.lab)


def is_fenced(lab: LabDatabase) -> bool:
    with connect(lab.dsn("template1")) as connection:
        closed = scalar(connection, "SELECT NOT bool_or(datallowconn) FROM pg_database WHERE datname <> 'template1'")
        return bool(closed) and str(scalar(connection, "SHOW archive_command")).startswith(FENCED_COMMAND)


def is_untouched(lab: LabDatabase) -> bool:
    with connect(lab.dsn()) as connection:
        return FENCED_COMMAND not in str(scalar(connection, "SHOW archive_command"))


def test_it_takes_the_old_ones_place_and_goes_on_without_us(cutover: Cutover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(cutover.clients))
    session = psycopg.connect(cutover.by_the_file(), autocommit=True)
    cutover.start("--outage-start", datetime.now(UTC).isoformat())
    request = cutover.asks()["request"]
    assert request["target"] == str(cutover.target)
    assert request["facts"]["old server"].startswith(f"127.0.0.1:{cutover.old.lab.port}, answers, its log is")
    assert is_untouched(cutover.old.lab)

    assert cutover.approve("--reason", "the disk is gone").code == 0
    done = cutover.end()

    assert done.code == 0, done.err
    record = done.document["record"]
    assert record["verdicts"] == {"rto": "met", "rpo": "met", "integrity": "met"}, record["deviations"]
    assert record["cutover"]["fenced_by"] == "SQL"
    assert record["cutover"]["approval"]["reason"] == "the disk is gone"
    assert [step["name"] for step in record["steps"]][-5:] == [
        "approve_cutover", "fence", "take_over", "switch_clients", "back_up",
    ]  # fmt: skip
    phases = record["phases"]
    assert phases["approval"] > 0
    assert sum(seconds or 0 for seconds in phases.values()) == pytest.approx(record["rto_seconds"], abs=0.001)

    # The old one answers nobody, those who were in it neither, and keeps its log.
    assert is_fenced(cutover.old.lab)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    # Whoever follows the file is in the new one, and finds what was written after the backup.
    assert cutover.clients.read_text().splitlines() == [
        "# ours", "[database]", "host=127.0.0.1", f"port={cutover.port}", "connect_timeout=5",
    ]  # fmt: skip
    with psycopg.connect(cutover.by_the_file(), autocommit=True) as connection:
        names = connection.execute("SELECT full_name FROM guests WHERE full_name = 'after'").fetchall()
        assert names == [("after",)]
        connection.execute("INSERT INTO guests (full_name, email, phone) VALUES ('new', 'new@example.org', '')")
    # Nothing of the restore is left, and no lease ends it.
    assert not list(cutover.target.glob("dr_restore*"))
    assert not Leases(cutover.dr.folder / "state").all()

    # Started by somebody else it is the same server; what it is told from now on is restorable, on its own timeline.
    restart(cutover)
    with connect(cutover.dsn()) as connection:
        connection.execute("INSERT INTO guests (full_name, email, phone) VALUES ('newer', 'newer@example.org', '')")
        connection.execute("SELECT pg_switch_wal()")
    (database,) = (cutover.dr.folder / "repository" / "services" / "database").glob("7*")
    log = database / "log" / "00000002"
    assert (database / "backups" / record["cutover"]["backup_id"] / "manifest.json").exists()
    before = len(list(log.iterdir()))
    assert wait_until(lambda: len(list(log.iterdir())) > before, timeout=30)
    assert (log / "00000002.history").exists()
    # From the old one's backup, too: the log leads on without a hole.
    more = ["--start", "--json", "--backup", cutover.old.backup_id]
    again = cutover.dr("restore", "database", "--target", cutover.dr.folder / "again" / "data", *more)
    try:
        assert again.code == 3, again.err
        dsn = make_conninfo(again.document["server"]["psql"].removeprefix("psql ").strip("'"), dbname="hotel")
        with connect(dsn) as connection:
            assert scalar(connection, "SELECT count(*) FROM guests WHERE full_name IN ('after', 'new', 'newer')") == 3
    finally:
        stop(cutover.dr.folder / "again" / "data")


def stop(data: Path) -> None:
    """As a service unit does it."""
    pid = running_pid(data)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
        assert wait_until(lambda: running_pid(data) is None, timeout=30)


def restart(cutover: Cutover) -> None:
    """With nothing but the data directory, as a service unit does it."""
    control = find_binaries(cutover.old.settings, cutover.old.lab.major)["pg_ctl"]
    identity = server_identity(cutover.old.settings)
    log = cutover.target.with_name("data.log")
    run([control, "-D", str(cutover.target), "-l", str(log), "-w", "restart"], identity=identity, timeout=60)


def test_what_is_denied_is_not_done_and_asked_for_anew_it_may_be(cutover: Cutover) -> None:
    cutover.start()
    execution = cutover.asks()["execution_id"]
    assert cutover.dr("approve", execution, "--deny", "--reason", "not now").code == 0

    denied = cutover.end()

    assert denied.code == 1
    assert "denied by" in denied.document["error"]["message"]
    assert is_untouched(cutover.old.lab)
    assert str(cutover.old.lab.port) in cutover.clients.read_text()
    assert running_pid(cutover.target) is None
    (record,) = (cutover.dr.folder / "repository" / "records").rglob("*.json")
    assert '"verdict":"unverified"' in record.read_text() and "not now" in record.read_text()

    cutover.start()
    assert cutover.asks()["number"] == 2
    assert cutover.approve().code == 0
    done = cutover.end()

    assert done.code == 3, done.err
    assert done.document["record"]["execution_id"] == execution
    assert done.document["record"]["cutover"]["approval"]["number"] == 2
    assert "restoring the backup" not in done.err
    assert is_fenced(cutover.old.lab)
