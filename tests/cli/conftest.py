"""The command `dr` as a process of its own, and a hotel's database that is backed up, for commands to work on."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.database import LabDatabase
from dr_pipelines.processes.leases import Leases
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until

ROOT = Path(__file__).parents[2]
PLAN = ROOT / "recovery-plan.yaml"
_LEASE = timedelta(minutes=20)


@dataclass(frozen=True)
class Ran:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it has to be."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Dr:
    """The command, with an environment of its own: nothing of this machine's configuration reaches it."""

    environment: Mapping[str, str]
    folder: Path

    def __call__(self, *arguments: str | Path, prefix: Sequence[str] = (), **more: str | Path) -> Ran:
        command = [*prefix, *self.command(*arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **self._how(more))
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path, **more: str | Path) -> subprocess.Popen[str]:
        """The command, running."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*arguments), stdout=pipe, stderr=pipe, text=True, **self._how(more))

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "dr_pipelines.cli", *map(str, arguments)]

    def _how(self, more: Mapping[str, str | Path]) -> dict[str, Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DR_", "PG", "DAGSTER"))}
        own = {**self.environment, **{name: str(value) for name, value in more.items()}}
        return {"cwd": self.folder, "env": {**kept, "PYTHONPATH": str(ROOT), **own}}


@pytest.fixture
def dr(world_readable_folder: Path) -> Dr:
    """`dr` on a machine where nothing is set up but the place of the state folder."""
    return Dr({"DR_STATE_DIR": str(world_readable_folder / "state")}, world_readable_folder)


@pytest.fixture(scope="session")
def bare_package() -> Iterator[Path]:
    """For PYTHONPATH: the package as the wheel has it, without the checkout, so that nobody asks Dagster anything."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copytree(ROOT / "dr_pipelines", folder / "dr_pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    yield folder
    shutil.rmtree(folder)


@dataclass
class Hotel:
    """A database host that runs, with its agent, and the repository it is backed up to."""

    dr: Dr
    """Configured for this host."""
    settings: Settings
    lab: LabDatabase
    leases: Leases
    backup_id: str = field(default="", init=False)

    @property
    def repository(self) -> Path:
        assert self.settings.repository is not None
        return Path(self.settings.repository)

    def copy_repository(self, place: Path) -> None:
        """As it is now; its agent goes on writing, and what is half written is no part of it."""
        shutil.copytree(self.repository, place, ignore=shutil.ignore_patterns(".tmp", "log"))
        # Last, so that what the copied position says is stored is in the copy.
        for log in self.repository.glob("services/*/*/log"):
            shutil.copytree(log, place / log.relative_to(self.repository))

    def write(self, name: str) -> None:
        """Commit a guest of this name."""
        with connect(self.lab.dsn()) as connection:
            connection.execute(
                "INSERT INTO guests (full_name, email, phone) VALUES (%s, %s, '')", [name, f"{name}@example.org"]
            )

    def settle(self) -> str:
        """Wait until what has been written is proven to be restorable; returns the moment up to which it is."""
        with connect(self.lab.dsn("postgres")) as connection:
            (now,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
        assert now is not None

        def proven() -> bool:
            # Again and again: what the server writes by itself after a switch is in no segment yet.
            with connect(self.lab.dsn("postgres")) as connection:
                connection.execute("SELECT pg_switch_wal()")
            (entry,) = self.dr("exposure", "database", "--json").document["exposures"]
            return bool(entry["recovery_point"] and entry["recovery_point"] > now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

        assert wait_until(proven, timeout=60)
        return str(now.isoformat())


@pytest.fixture(scope="session")
def hotel() -> Iterator[Hotel]:
    """Shared: backed up once, with the guests "before" and, after the backup, "after"; both are restorable."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    settings = Settings(state_dir=folder / "state", repository=str(folder / "repository"), plan=PLAN)
    leases = Leases(settings.state_dir)
    try:
        lab = lab_database.create(
            settings,
            leases,
            "lab-test",
            ttl=_LEASE,
            archive_timeout=timedelta(seconds=30),
            size_bytes=1_000_000,
            progress=lambda done, total: None,
        )
        own = {"DR_DSN__DATABASE": lab.dsn("postgres"), "DR_SPOOL__DATABASE": str(lab.spool)}
        hotel = Hotel(Dr({**settings.as_environment(), **own}, folder), settings, lab, leases)
        environment = {**settings.as_environment(), "PYTHONPATH": str(ROOT)}
        lab_database.start_agent(lab, "database", leases, environment, ttl=_LEASE, sandbox=None)
        hotel.write("before")
        made = hotel.dr("backup", "full", "database", "--create", "--json")
        assert made.code == 0, made.err
        hotel.backup_id = made.document["backup_id"]
        hotel.write("after")
        hotel.settle()
        yield hotel
    finally:
        leases.end_owner("lab-test")
        shutil.rmtree(folder)
