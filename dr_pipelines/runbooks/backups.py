"""Backing a service of the plan up, and reading its newest backup back: cron, the command line and Dagster call it."""

from typing import Literal

from dr_pipelines.engines.postgres.backup import BackupResult, take_backup
from dr_pipelines.engines.postgres.connection import connect, read_facts
from dr_pipelines.engines.postgres.coverage import newest_system
from dr_pipelines.engines.postgres.details import look_at_backups
from dr_pipelines.engines.postgres.verify import Verification, verify
from dr_pipelines.errors import ConfigurationError
from dr_pipelines.plan import FULL_EVERY
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.runbooks.database_restore import Surroundings
from dr_pipelines.settings import Settings, variable

__all__ = ["back_up", "require_dsn", "verify_newest"]


def require_dsn(settings: Settings, service: str) -> str:
    """How the service's server is reached. Raises ConfigurationError where nobody said so."""
    dsn = settings.dsn_of(service)
    if dsn is None:
        name = variable("dsn", service)
        raise ConfigurationError(
            f"{name} is not set, so the server of {service} cannot be reached",
            hint=f"{name}='host=... port=5432 user=... password=... dbname=postgres'",
        )
    return dsn


def back_up(around: Surroundings, service: str, kind: Literal["full", "incremental"] = "full") -> BackupResult:
    """A backup of the server that DR_DSN__<SERVICE> names, and the plan beside it.

    That a full one was made where an incremental one was asked for is warned of, with the reason. Raises what
    `require_dsn` and `take_backup` raise.
    """
    dsn = require_dsn(around.settings, service)
    with connect(dsn) as connection:
        facts = read_facts(connection)
    result = take_backup(
        service,
        dsn,
        around.repository,
        find_binaries(around.settings, facts.major),
        around.settings,
        clock=around.clock,
        progress=lambda done, total: around.progress("backing up", done, total),
        kind=kind,
        full_every=_full_every(around, service),
    )
    if result.instead is not None:
        around.notes.warning(f"a full backup was made instead of an incremental one: {result.instead}")
    for leftover in result.removed_incomplete:
        around.notes.warning(f"removed {leftover}, which an interrupted backup had left")
    if around.plan is not None:
        around.repository.remember_plan(around.plan.text)
    return result


def _full_every(around: Surroundings, service: str) -> int:
    """After how many incremental backups the next is a full one."""
    backup = around.plan.service(service).backup if around.plan is not None else None
    return backup.full_every if backup is not None else FULL_EVERY


def verify_newest(around: Surroundings, service: str, *, chain: bool = True) -> Verification:
    """Read a service's newest backup back, with the log that follows it, and unless `chain` is off all it is based on.

    Raises RestoreError where there is none.
    """
    store = newest_system(around.repository.service(service))
    survey = look_at_backups(store)
    manifest = survey.complete[0]
    return verify(
        store,
        manifest,
        workers=around.settings.workers,
        progress=lambda done, total: around.progress(f"reading {manifest.backup_id} back", done, total),
        among=survey,
        chain=chain,
    )
