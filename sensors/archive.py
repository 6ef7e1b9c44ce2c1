"""The sensor that watches the repository: how far each log reaches, and what would be lost at this moment."""

import json
from typing import TYPE_CHECKING

import dagster as dg

from dr_pipelines.plan import Plan, Service
from dr_pipelines.runbooks import catalogue
from dr_pipelines.settings import load_settings

if TYPE_CHECKING:
    from dr_pipelines.engines.postgres.exposure import Exposure

__all__ = ["archive_definitions"]

Event = dg.AssetMaterialization | dg.AssetObservation
Seen = dict[str, dict[str, str | None]]
"""By service what was last reported: the newest segment, the recovery point, the newest backup."""


def archive_definitions(plan: Plan) -> dg.Definitions:
    """The sensor, where the plan has a database."""
    services = catalogue.database_services(plan)

    @dg.sensor(
        name="wal_archive_sensor",
        asset_selection=[catalogue.wal_archive(service.name) for service in services],
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports what reached the repository, and the exposure; judges freshness by nothing else.",
    )
    def wal_archive_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from dr_pipelines.engines.postgres.exposure import read_exposure
        from dr_pipelines.errors import ConfigurationError, RepositoryError
        from dr_pipelines.repository.repository import open_repository
        from dr_pipelines.timing import SystemClock

        settings = load_settings()
        if settings.repository is None:
            raise ConfigurationError("DR_REPOSITORY is not set", hint="a folder's path or s3://bucket/prefix")
        repository = open_repository(settings.repository, settings=settings)
        seen: Seen = json.loads(context.cursor) if context.cursor else {}
        events: list[Event] = []
        for service in services:
            try:
                exposure = read_exposure(
                    repository.service(service.name),
                    service.name,
                    now=SystemClock().wall(),
                    rpo=plan.objectives(service).rpo,
                )
            except RepositoryError as error:
                if error.retryable:
                    raise
                # What is damaged of one service hides no other's.
                events.append(_unreadable(service, error))
                continue
            now = _seen(exposure)
            before = seen.get(service.name, {})
            events += _events(context.instance, service, exposure, now, before)
            # What cannot be seen at the moment is not gone: it is not to be reported again.
            seen[service.name] = before | {key: value for key, value in now.items() if value is not None}
        # Without words a tick that only reports is shown as one that found nothing.
        told = f"reported {len(events)} events of {len(services)} databases"
        return dg.SensorResult(asset_events=events, cursor=json.dumps(seen), skip_reason=told)

    return dg.Definitions(sensors=[wal_archive_sensor] if services else [])


def _unreadable(service: Service, error: Exception) -> dg.AssetObservation:
    return dg.AssetObservation(
        catalogue.wal_archive(service.name), metadata={"verdict": "unverified", "problem": str(error)}
    )


def _seen(exposure: "Exposure") -> dict[str, str | None]:
    from dr_pipelines.timing import format_moment

    point = exposure.recovery_point
    return {
        "segment": exposure.newest_segment,
        "recovery_point": format_moment(point) if point is not None else None,
        "backup": exposure.newest_backup_id,
    }


def _events(
    instance: dg.DagsterInstance,
    service: Service,
    exposure: "Exposure",
    now: dict[str, str | None],
    before: dict[str, str | None],
) -> list[Event]:
    """An observation always; a materialization, which is what counts as fresh, only where there is something new."""
    archive = catalogue.wal_archive(service.name)
    told = _exposure(exposure)
    events: list[Event] = [dg.AssetObservation(archive, metadata=told)]
    if any(now[key] is not None and now[key] != before.get(key) for key in ("segment", "recovery_point")):
        # With the exposure too: an asset's page shows its latest materialization alone.
        segment = dg.MetadataValue.text(now["segment"] or "none")
        events.append(dg.AssetMaterialization(archive, metadata={"newest_segment": segment, **told}))
    if now["backup"] is not None and now["backup"] != before.get("backup"):
        events += _backup(instance, service, exposure, now["backup"])
    return events


def _exposure(exposure: "Exposure") -> dict[str, dg.MetadataValue]:
    metadata: dict[str, dg.MetadataValue] = {
        "verdict": dg.MetadataValue.text(str(exposure.verdict)),
        # Always there: beside a materialization Dagster shows under each name what was last observed, however old.
        "unknown_since": dg.MetadataValue.text("known" if exposure.exposure is not None else "ever"),
        "problem": dg.MetadataValue.text(exposure.problem or "none"),
    }
    if exposure.exposure is not None:
        metadata["exposure_seconds"] = dg.MetadataValue.float(exposure.exposure.total_seconds())
    if exposure.rpo is not None:
        metadata["rpo_objective_seconds"] = dg.MetadataValue.float(exposure.rpo.total_seconds())
    if exposure.recovery_point is not None:
        metadata["recovery_point"] = dg.MetadataValue.timestamp(exposure.recovery_point)
    if exposure.unknown_since is not None:
        metadata["unknown_since"] = dg.MetadataValue.timestamp(exposure.unknown_since)
    return metadata


def _backup(
    instance: dg.DagsterInstance, service: Service, exposure: "Exposure", backup_id: str
) -> list[dg.AssetMaterialization]:
    """A backup that cron or the command line made; one that a run made has been reported by it."""
    incremental = "-incremental-" in backup_id
    key = dg.AssetKey((catalogue.incremental_backup if incremental else catalogue.full_backup)(service.name))
    latest = instance.get_latest_materialization_event(key)
    reported = latest.asset_materialization if latest is not None else None
    if reported is not None and (known := reported.metadata.get("backup_id")) and known.value == backup_id:
        return []
    metadata: dict[str, dg.MetadataValue] = {"backup_id": dg.MetadataValue.text(backup_id)}
    if exposure.newest_backup_at is not None:
        metadata["taken_at"] = dg.MetadataValue.timestamp(exposure.newest_backup_at)
    return [dg.AssetMaterialization(key, metadata=metadata, description="made outside of Dagster")]
