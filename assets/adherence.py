"""The asset `rto_rpo_adherence`: what was promised beside what was measured, and what is switched off."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from dr_pipelines.plan import Plan
from dr_pipelines.runbooks import catalogue

if TYPE_CHECKING:
    from dr_pipelines.reports.adherence import Adherence, ServiceAdherence
    from dr_pipelines.runbooks.database_restore import Surroundings

__all__ = ["adherence_definitions", "report_adherence"]


def adherence_definitions(plan: Plan) -> dg.Definitions:
    """The asset, which can be materialized by itself; drills and restores do it at their end."""
    recoveries = [catalogue.recovery(service.name) for service in catalogue.database_services(plan)]

    @dg.asset(
        name=catalogue.ADHERENCE,
        deps=recoveries,
        description="Per service the promised RTO and RPO beside what the latest drill measured; what is switched off.",
        group_name="adherence",
    )
    def rto_rpo_adherence(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        from assets.work import working

        with working(context, "adherence") as work:
            return dg.MaterializeResult(metadata=_metadata(_adherence(context.instance, work.around)))

    job = dg.define_asset_job(
        "adherence",
        selection=dg.AssetSelection.assets(rto_rpo_adherence) | dg.AssetSelection.checks_for_assets(*recoveries),
        description="Reads the records again: promises beside figures, and the verdicts of each latest record.",
    )
    return dg.Definitions(assets=[rto_rpo_adherence], jobs=[job])


def report_adherence(context: dg.OpExecutionContext, around: "Surroundings") -> None:
    """Materialize the asset from within a runbook's run."""
    found = _adherence(context.instance, around)
    context.log_event(dg.AssetMaterialization(catalogue.ADHERENCE, metadata=_metadata(found)))


def _adherence(instance: dg.DagsterInstance, around: "Surroundings") -> "Adherence":
    from assets.status import stopped
    from dr_pipelines.errors import ConfigurationError
    from dr_pipelines.reports.adherence import adherence
    from dr_pipelines.reports.reading import read_records

    if around.plan is None:
        raise ConfigurationError("there is no recovery plan, so nothing was promised", hint="DR_PLAN names its file")
    off = list(stopped(instance, around.clock.wall()))
    records = read_records(around.repository, off.append)
    return adherence(around.plan, records, now=around.clock.wall(), off=off)


def _metadata(found: "Adherence") -> dict[str, dg.MetadataValue]:
    """A table for people, and every figure as a number under a name that stays the same, which the UI plots."""
    metadata: dict[str, dg.MetadataValue] = {
        "adherence": dg.MetadataValue.table([_row(service) for service in found.services], dg.TableSchema(_COLUMNS)),
        "verdict": dg.MetadataValue.text(str(found.verdict)),
        "off": dg.MetadataValue.text("\n".join(found.off) or "nothing"),
        "plan_changed": dg.MetadataValue.text("\n".join(found.plan_changed) or "no"),
    }
    for service in found.services:
        record = service.latest
        if record is None:
            continue
        name = catalogue.identifier(service.name)
        numbers = {
            f"{name}_rto_seconds": record.rto_seconds,
            f"{name}_rto_objective_seconds": _seconds(service.objectives.rto),
            f"{name}_rpo_seconds": record.rpo_seconds,
            f"{name}_rpo_objective_seconds": _seconds(service.objectives.rpo),
        }
        metadata |= {key: dg.MetadataValue.float(value) for key, value in numbers.items() if value is not None}
        metadata[f"{name}_record"] = dg.MetadataValue.text(record.record_id)
        if record.run_id is not None:
            metadata[f"{name}_run"] = dg.MetadataValue.dagster_run(record.run_id)
    return metadata


# Few and narrow: the catalogue cuts off what is wider.
_COLUMNS = [
    dg.TableColumn("service", description="By its name in the plan."),
    dg.TableColumn("rto", description="Measured by the latest drill / promised."),
    dg.TableColumn("rpo", description="The same."),
    dg.TableColumn("verdict", description="The worst of RTO, RPO and integrity."),
    dg.TableColumn("to_do", description="Why what was measured does not stand for what is promised."),
]


def _row(service: "ServiceAdherence") -> dg.TableRecord:
    from dr_pipelines.reports.text import beside

    record = service.latest
    return dg.TableRecord(
        {
            "service": service.name,
            "rto": beside(record.rto_seconds if record else None, service.objectives.rto),
            "rpo": beside(record.rpo_seconds if record else None, service.objectives.rpo),
            "verdict": str(service.verdict) if service.verdict is not None else "unprotected by decision",
            "to_do": service.needs_test or "",
        }
    )


def _seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None
