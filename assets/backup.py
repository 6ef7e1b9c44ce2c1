"""For each database of the plan: its backups and its log in the repository, their checks, jobs and schedules."""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.work import working
from dr_pipelines.plan import Plan, Retention, Service
from dr_pipelines.runbooks import catalogue

if TYPE_CHECKING:
    from dr_pipelines.engines.postgres.backup import BackupResult

__all__ = ["backup_definitions"]

_RETRY = dg.RetryPolicy(max_retries=3, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
_EXPIRES_AT = "0 6 * * *"
_SHORTEST_WINDOW = timedelta(seconds=60)
"""Dagster judges nothing finer."""


def backup_definitions(plan: Plan) -> dg.Definitions:
    """Assets, checks, jobs and schedules of every database of the plan."""
    return dg.Definitions.merge(*(_of_service(plan, service) for service in catalogue.database_services(plan)))


def _of_service(plan: Plan, service: Service) -> dg.Definitions:
    backup, archive, checks = _full_backup(service), _wal_archive(plan, service), _verification(service)
    tags = catalogue.tags_of([service], "backup")
    name = catalogue.identifier(service.name)
    verified = dg.AssetSelection.checks(checks)
    backup_job = dg.define_asset_job(
        f"{name}_backup",
        selection=dg.AssetSelection.assets(backup).without_checks() | verified,
        description=f"A full backup of {service.title}, read back.",
        tags=tags,
    )
    verify_job = dg.define_asset_job(
        f"{name}_verify",
        selection=verified,
        description=f"Reads the newest backup of {service.title} and its log back; starts nothing.",
        tags=catalogue.tags_of([service], "verify"),
    )
    schedules = [_schedule(backup_job, service.backup.full)] if service.backup is not None else []
    made = dg.Definitions(
        assets=[backup, archive], asset_checks=[checks], jobs=[backup_job, verify_job], schedules=schedules
    )
    if service.backup is not None and service.backup.retention is not None:
        made = dg.Definitions.merge(made, _expiry(service, service.backup.retention))
    if service.backup is None or service.backup.incremental is None:
        return made
    return dg.Definitions.merge(made, _incremental(service, service.backup.incremental))


def _incremental(service: Service, cron: str) -> dg.Definitions:
    """What the plan has beside the full backups. It takes its turn with them."""
    backup, check = _incremental_backup(service), _incremental_verification(service)
    job = dg.define_asset_job(
        f"{catalogue.identifier(service.name)}_incremental",
        selection=dg.AssetSelection.assets(backup).without_checks() | dg.AssetSelection.checks(check),
        description=f"A backup of what changed in {service.title} since the newest backup, read back.",
        tags=catalogue.tags_of([service], "backup"),
    )
    return dg.Definitions(assets=[backup], asset_checks=[check], jobs=[job], schedules=[_schedule(job, cron)])


def _expiry(service: Service, retention: Retention) -> dg.Definitions:
    """What the plan's retention does not keep goes, daily. It takes its turn with the backups: they share a lock."""
    name = catalogue.identifier(service.name)

    @dg.op(name=f"expire_{name}", description=f"Removes what is not kept. Kept: {retention}.", retry_policy=_RETRY)
    def expire(context: dg.OpExecutionContext) -> None:
        from dr_pipelines.runbooks.retention import expire_service

        with working(context, "expire", retries=True) as work:
            expiry = expire_service(work.around, service.name)
        context.add_output_metadata(
            {
                "kept": str(expiry.retention),
                "backups": len(expiry.backups) - len(expiry.going),
                "removed_backups": [backup.backup_id for backup in expiry.going],
                "removed_log_files": expiry.log_files,
                "freed_bytes": expiry.backup_bytes + expiry.log_bytes,
            }
        )

    job = dg.GraphDefinition(name=f"{name}_expire", node_defs=[expire]).to_job(
        description=f"Backups of {service.title} that need not be kept, and the log that only they needed, go.",
        executor_def=dg.in_process_executor,
        tags=catalogue.tags_of([service], "backup"),
    )
    return dg.Definitions(jobs=[job], schedules=[_schedule(job, _EXPIRES_AT)])


def _schedule(job: Any, cron: str) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="As the plan has it.",
    )


def _full_backup(service: Service) -> dg.AssetsDefinition:
    @dg.asset(
        name=catalogue.full_backup(service.name),
        description=f"The newest full backup of {service.title}, complete in the repository.",
        group_name=catalogue.identifier(service.name),
        kinds={"postgres"},
        tags={catalogue.SERVICE_TAG: service.name},
        retry_policy=_RETRY,
    )
    def full_backup(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        from dr_pipelines.runbooks.backups import back_up

        with working(context, "back_up", retries=True) as work:
            taken = back_up(work.around, service.name)
        return dg.MaterializeResult(metadata=_described(taken))

    return full_backup


def _incremental_backup(service: Service) -> dg.AssetsDefinition:
    @dg.asset(
        name=catalogue.incremental_backup(service.name),
        description=f"The newest incremental backup of {service.title}: what changed since its parent.",
        deps=[catalogue.full_backup(service.name)],
        group_name=catalogue.identifier(service.name),
        kinds={"postgres"},
        tags={catalogue.SERVICE_TAG: service.name},
        retry_policy=_RETRY,
        output_required=False,
    )
    def incremental_backup(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        from dr_pipelines.errors import NoIncrementals
        from dr_pipelines.runbooks.backups import back_up

        with working(context, "back_up", retries=True) as work:
            try:
                taken = back_up(work.around, service.name, "incremental")
            except NoIncrementals as error:
                # The plan's full backups and the log go on: nothing has failed that a night's call would mend.
                context.log.warning(f"{error.message}; {error.hint}")
                return
        if taken.manifest.kind == "incremental":
            yield dg.MaterializeResult(metadata=_described(taken))
        else:
            full = catalogue.full_backup(service.name)
            context.log_event(dg.AssetMaterialization(full, metadata=_described(taken), description=taken.instead))

    return incremental_backup


def _described(taken: "BackupResult") -> dict[str, Any]:
    manifest = taken.manifest
    return {
        "backup_id": manifest.backup_id,
        "raw_bytes": manifest.raw_bytes,
        "stored_bytes": manifest.stored_bytes,
        "parts": len(manifest.parts),
        "seconds": taken.duration.total_seconds(),
        "waited_for_log_seconds": taken.waited_for_log.total_seconds(),
        "taken_at": dg.MetadataValue.timestamp(manifest.stopped_at),
        "server_version": manifest.server_version,
        **({"parent": manifest.parent} if manifest.parent is not None else {}),
    }


def _wal_archive(plan: Plan, service: Service) -> dg.AssetSpec:
    """Nothing computes it: a sensor reports it, and where it stops to, Dagster sees that it is no longer fresh."""
    rpo = plan.objectives(service).rpo
    fresh = None
    if rpo is not None and rpo >= _SHORTEST_WINDOW:
        warn = rpo * 2 / 3
        fresh = dg.FreshnessPolicy.time_window(fail_window=rpo, warn_window=warn if warn >= _SHORTEST_WINDOW else None)
    return dg.AssetSpec(
        catalogue.wal_archive(service.name),
        description=f"The write-ahead log of {service.title} in the repository; fresh while the promised RPO is kept.",
        group_name=catalogue.identifier(service.name),
        kinds={"postgres"},
        tags={catalogue.SERVICE_TAG: service.name},
        freshness_policy=fresh,
    )


def _verification(service: Service) -> dg.AssetChecksDefinition:
    backup, archive = catalogue.full_backup(service.name), catalogue.wal_archive(service.name)

    @dg.multi_asset_check(
        name=f"{catalogue.identifier(service.name)}_verification",
        specs=[
            dg.AssetCheckSpec(
                catalogue.VERIFIED,
                asset=backup,
                description="Every part of the newest backup, and every file of the log after it, is what was stored.",
            ),
            dg.AssetCheckSpec(
                catalogue.NO_GAP,
                asset=archive,
                description="No segment is missing from the newest backup to the newest segment.",
            ),
        ],
        can_subset=True,
    )
    def verification(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        from dr_pipelines.runbooks.backups import verify_newest

        with working(context, "verify") as work:
            found = verify_newest(work.around, service.name)
        whole = [check for check in found.checks if check.name == "log_is_whole"]
        stored = [check for check in found.checks if check.name != "log_is_whole"]
        for name, asset, checks in ((catalogue.VERIFIED, backup, stored), (catalogue.NO_GAP, archive, whole)):
            if dg.AssetCheckKey(dg.AssetKey(asset), name) in context.selected_asset_check_keys:
                yield dg.AssetCheckResult(
                    asset_key=asset,
                    check_name=name,
                    passed=all(check.passed for check in checks),
                    metadata={"backup_id": found.backup_id, "bytes_read": found.bytes_read},
                    description="; ".join(check.detail for check in checks),
                )

    return verification


def _incremental_verification(service: Service) -> dg.AssetChecksDefinition:
    backup = catalogue.incremental_backup(service.name)

    @dg.asset_check(
        asset=backup,
        name=catalogue.VERIFIED,
        description="Every part of the newest backup itself, and every file of the log after it, is what was stored.",
    )
    def incremental_verification(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from dr_pipelines.runbooks.backups import verify_newest

        # The backups that it is based on have been read back when they were made, and are again with each full one.
        with working(context, "verify") as work:
            found = verify_newest(work.around, service.name, chain=False)
        return dg.AssetCheckResult(
            passed=all(check.passed for check in found.checks),
            metadata={"backup_id": found.backup_id, "bytes_read": found.bytes_read},
            description="; ".join(check.detail for check in found.checks),
        )

    return incremental_verification
