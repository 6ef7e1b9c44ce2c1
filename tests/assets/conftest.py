"""A machine of its own with Dagster's home, and a hotel's database on it that archives and can be lost."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.engines.postgres.coverage import newest_system
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.database import LabDatabase
from dr_pipelines.processes.leases import Leases
from dr_pipelines.reports.reading import read_records
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks.dagster_home import prepare_home
from dr_pipelines.runbooks.record import Record
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until

ROOT = Path(__file__).parents[2]
LEASE = timedelta(minutes=30)


@dataclass(frozen=True)
class Machine:
    """A state folder, a repository and Dagster's home, which the environment names."""

    settings: Settings
    instance: dg.DagsterInstance
    environment: Mapping[str, str]
    """For other processes."""

    @property
    def leases(self) -> Leases:
        return Leases(self.settings.state_dir)

    @property
    def repository(self) -> Repository:
        assert self.settings.repository is not None
        return open_repository(self.settings.repository, settings=self.settings)

    def records(self) -> list[Record]:
        """Newest first."""
        return read_records(self.repository)

    def run(
        self, job: str, config: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Carry out a job of the code location here and now."""
        return (
            definitions()
            .resolve_job_def(job)
            .execute_in_process(
                run_config=dict(config or {}), instance=self.instance, raise_on_error=False, tags=dict(tags or {})
            )
        )


def definitions() -> dg.Definitions:
    """The code location as Dagster loads it."""
    from definitions import defs

    return defs


def evaluations(machine: Machine, run_id: str) -> list[dg.AssetCheckEvaluation]:
    """What a run said of asset checks, whether it failed after that or not."""
    entries = machine.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.event_specific_data for entry in entries if entry.dagster_event is not None]
    return [evaluation for evaluation in found if isinstance(evaluation, dg.AssetCheckEvaluation)]


def failure_of(result: dg.ExecuteInProcessResult) -> dg.Failure | None:
    """What the op that failed first said, as an operator reads it."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data.user_failure_data
            return dg.Failure(data.description, dict(data.metadata)) if data is not None else None
    return None


@contextmanager
def new_machine() -> Iterator[Machine]:
    """Nothing of what it made is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    environment = {
        "DR_STATE_DIR": str(folder / "state"),
        "DR_REPOSITORY": str(folder / "repository"),
        "DAGSTER_HOME": str(folder / "state" / "dagster"),
        # Writers and agents are processes of their own, and this checkout need not be installed.
        "PYTHONPATH": str(ROOT),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DR_", "DAGSTER"))]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = Settings()
        with dg.DagsterInstance.from_config(str(prepare_home(settings))) as instance:
            yield Machine(settings, instance, environment)
    leases = Leases(settings.state_dir)
    for lease in leases.all(ending=True):
        leases.kill(lease)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with new_machine() as machine:
        yield machine


@dataclass(frozen=True)
class Hotel:
    """A database host that runs and archives to the machine's repository."""

    machine: Machine
    lab: LabDatabase

    @property
    def dsn(self) -> str:
        return self.lab.dsn("postgres")

    @property
    def store(self) -> Store:
        """The part of the repository with its newest backup."""
        return newest_system(self.machine.repository.service("database"))

    @property
    def log(self) -> Log:
        return Log(self.store)

    def ask(self, query: str) -> Any:
        with connect(self.lab.dsn()) as connection:
            return scalar(connection, query)

    def do(self, statement: str) -> None:
        with connect(self.lab.dsn()) as connection:
            connection.execute(statement)

    def settle(self) -> datetime:
        """Wait until what was written so far is proven to be restorable; returns the moment up to which it is."""
        moment: datetime = self.ask("SELECT clock_timestamp()")

        def proven() -> bool:
            # Again and again: what the server writes by itself after a switch is in no segment yet.
            self.do("SELECT pg_switch_wal()")
            position = self.log.read_position()
            return position is not None and position.recovery_point is not None and position.recovery_point >= moment

        assert wait_until(proven, timeout=60, interval=0.2)
        return moment

    def lose(self) -> datetime:
        moment = lab_database.kill_host(self.lab, self.machine.leases, SystemClock())
        lab_database.delete_host(self.lab)
        return moment


@contextmanager
def new_hotel(machine: Machine) -> Iterator[Hotel]:
    """On a machine that has none; its name in the environment is that of the plan's database."""
    lab = lab_database.create(
        machine.settings,
        machine.leases,
        "lab-tests",
        ttl=LEASE,
        archive_timeout=timedelta(seconds=30),
        size_bytes=1_000_000,
        progress=lambda done, total: None,
    )
    environment = {**machine.settings.as_environment(), "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DR_DSN__DATABASE", lab.dsn("postgres"))
        open_repository(environment["DR_REPOSITORY"], settings=machine.settings, create=True)
        lab_database.start_agent(lab, "database", machine.leases, environment, ttl=LEASE, sandbox=None)
        yield Hotel(machine, lab)


@pytest.fixture(scope="module")
def hotel(machine: Machine) -> Iterator[Hotel]:
    """Not backed up yet."""
    with new_hotel(machine) as hotel:
        yield hotel
