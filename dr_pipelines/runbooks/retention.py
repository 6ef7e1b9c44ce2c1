"""Expiry of a service of the plan: the command line and Dagster, by hand and by schedule, call it."""

from datetime import timedelta

from dr_pipelines.engines.postgres.expiry import expire
from dr_pipelines.engines.postgres.retention import Expiry
from dr_pipelines.errors import ConfigurationError
from dr_pipelines.plan import Plan, Retention
from dr_pipelines.runbooks.database_restore import Surroundings
from dr_pipelines.timing import format_bytes

__all__ = ["SANDBOX_STAYS", "expire_service", "retention_of"]

SANDBOX_STAYS = timedelta(days=7)
"""How long what a drill left in the repository stays after the last that was written there."""


def retention_of(plan: Plan | None, service: str) -> Retention:
    """How long the plan keeps a service's backups. Raises ConfigurationError where it does not say."""
    found = next((entry for entry in plan.services if entry.name == service), None) if plan is not None else None
    if found is None or found.backup is None or found.backup.retention is None:
        raise ConfigurationError(
            f"the plan does not say how long backups of {service} are kept, so none goes",
            hint=f"services.{service}.backup.retention: {{keep: 7, keep_for: 30d}}; or give --keep, --keep-for",
        )
    return found.backup.retention


def _clear_sandboxes(around: Surroundings, *, dry_run: bool) -> None:
    """What drills that were killed, or were to be kept, had left in the repository goes after a while."""
    for name in around.repository.old_sandboxes(around.clock.wall() - SANDBOX_STAYS):
        if not dry_run:
            around.repository.remove_sandbox(name)
        around.notes.info(f"{'would remove' if dry_run else 'removed'} drills/{name}, which a drill had left")


def expire_service(
    around: Surroundings, service: str, retention: Retention | None = None, *, dry_run: bool = False
) -> Expiry:
    """Remove the backups and the log of a service that need not be kept; in a dry run only say which those are.

    `retention` is taken instead of the plan's. Raises what `retention_of` and `expire` raise.
    """
    _clear_sandboxes(around, dry_run=dry_run)
    expiry = expire(
        service,
        around.repository,
        retention or retention_of(around.plan, service),
        clock=around.clock,
        dry_run=dry_run,
        progress=lambda done, total: around.progress("removing", done, total),
    )
    for judged in expiry.backups:
        if judged.backup.problem is not None:
            around.notes.warning(f"{judged.backup.backup_id} is not good: {judged.backup.problem}")
    if not dry_run:
        around.notes.info(
            f"{service}: removed {len(expiry.going)} backups ({format_bytes(expiry.backup_bytes)}) and "
            f"{expiry.log_files} files of the log ({format_bytes(expiry.log_bytes)}), of {len(expiry.backups)} backups"
        )
    return expiry
