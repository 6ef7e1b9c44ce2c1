"""The asset `<service>_recovery`, which drills and restores report to: their figures and their verdicts."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

import dagster as dg

from dr_pipelines.plan import Plan, Service
from dr_pipelines.runbooks import catalogue

if TYPE_CHECKING:
    from dr_pipelines.engines.verdict import Verdict
    from dr_pipelines.runbooks.database_restore import Surroundings
    from dr_pipelines.runbooks.record import Record

__all__ = ["recovery_definitions", "report_record"]

Numbers = Mapping[str, float | int | None]

_CHECKS = {
    catalogue.RTO_MET: "The latest drill or restore took no longer than the promised RTO.",
    catalogue.RPO_MET: "The latest drill or restore lost no more than the promised RPO.",
    catalogue.INTEGRITY: "Every check of the data that came back had passed.",
}


def recovery_definitions(plan: Plan) -> dg.Definitions:
    """For each database of the plan the asset, and the checks that judge its latest record."""
    services = catalogue.database_services(plan)
    return dg.Definitions(
        assets=[
            dg.AssetSpec(
                catalogue.recovery(service.name),
                deps=[catalogue.full_backup(service.name), catalogue.wal_archive(service.name)],
                description=f"{service.title}, brought back: what the latest drill or restore measured.",
                group_name=catalogue.identifier(service.name),
                kinds={"postgres"},
                tags={catalogue.SERVICE_TAG: service.name},
            )
            for service in services
        ],
        asset_checks=[_latest_record(service) for service in services],
    )


def _latest_record(service: Service) -> dg.AssetChecksDefinition:
    asset = catalogue.recovery(service.name)
    specs = [dg.AssetCheckSpec(name, asset=asset, description=text) for name, text in _CHECKS.items()]

    @dg.multi_asset_check(name=f"{asset}_verdicts", specs=specs, can_subset=True)
    def verdicts(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        from assets.work import working
        from dr_pipelines.reports.reading import read_records

        with working(context, "judge") as work:
            records = read_records(work.around.repository, work.around.notes.warning)
        latest = next((record for record in records if record.service == service.name), None)
        found = evaluations(latest) if latest is not None else tuple(_never(asset, spec.name) for spec in specs)
        for evaluation in found:
            if evaluation.asset_check_key in context.selected_asset_check_keys:
                yield dg.AssetCheckResult(
                    asset_key=evaluation.asset_key,
                    check_name=evaluation.check_name,
                    passed=evaluation.passed,
                    severity=evaluation.severity,
                    metadata=evaluation.metadata,
                    description=evaluation.description,
                )

    return verdicts


def _never(asset: str, check: str) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=check,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description="unverified: never drilled or restored; launch database_drill",
    )


def report_record(context: dg.OpExecutionContext, around: "Surroundings", record: "Record") -> None:
    """Put a record's figures and verdicts into the catalogue, and what they mean for the promises."""
    from assets.adherence import report_adherence

    context.log_event(dg.AssetMaterialization(catalogue.recovery(record.service), metadata=figures(record)))
    for evaluation in evaluations(record):
        # Dagster takes it, as it takes a materialization; its annotation leaves it out.
        context.log_event(cast(dg.AssetObservation, evaluation))
    report_adherence(context, around)


def evaluations(record: "Record") -> tuple[dg.AssetCheckEvaluation, ...]:
    """A record's verdicts as evaluations of the asset's checks. What is unverified has not passed, and only warns."""
    failed = [f"{check.name}: {check.detail}" for check in record.checks if check.passed is not True]
    told: dict[str, tuple[Verdict, Numbers, str]] = {
        catalogue.RTO_MET: (
            record.verdicts.rto,
            {"rto_seconds": record.rto_seconds, "rto_objective_seconds": record.rto_objective_seconds},
            f"{_beside(record.rto_seconds, record.rto_objective_seconds)}; {record.rto_method}",
        ),
        catalogue.RPO_MET: (
            record.verdicts.rpo,
            {"rpo_seconds": record.rpo_seconds, "rpo_objective_seconds": record.rpo_objective_seconds},
            f"{_beside(record.rpo_seconds, record.rpo_objective_seconds)}; {record.rpo_method}",
        ),
        catalogue.INTEGRITY: (
            record.verdicts.integrity,
            {"checks": len(record.checks), "checks_not_passed": len(failed)},
            "; ".join(failed) or f"{len(record.checks)} checks passed",
        ),
    }
    return tuple(
        _evaluation(record, name, verdict, numbers, method) for name, (verdict, numbers, method) in told.items()
    )


def _evaluation(
    record: "Record", name: str, verdict: "Verdict", numbers: Numbers, method: str
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(catalogue.recovery(record.service)),
        check_name=name,
        passed=verdict == "met",
        severity=dg.AssetCheckSeverity.ERROR if verdict == "missed" else dg.AssetCheckSeverity.WARN,
        metadata={"verdict": str(verdict), "record_id": record.record_id, **_known(numbers)},
        description=f"{verdict}: {method}",
    )


def figures(record: "Record") -> dict[str, dg.MetadataValue]:
    """What was measured, the numbers as numbers, so that the UI plots them; what was not measured is left out."""
    numbers = {
        "rto_seconds": record.rto_seconds,
        "rto_objective_seconds": record.rto_objective_seconds,
        "rpo_seconds": record.rpo_seconds,
        "rpo_objective_seconds": record.rpo_objective_seconds,
        **{f"{phase}_seconds": seconds for phase, seconds in record.phases.model_dump(by_alias=True).items()},
    }
    rows = record.rows.model_dump() if record.rows is not None else {}
    steps = [
        dg.TableRecord(
            {
                "step": step.name,
                "attempt": step.attempt,
                "seconds": round(step.seconds, 3) if step.seconds is not None else None,
                "budget_seconds": step.budget_seconds,
                "outcome": step.outcome + (", overran" if step.overrun else ""),
                # As the UI abbreviates it: the table is cut off where it is too wide.
                "run": step.run_id[:8] if step.run_id else None,
            }
        )
        for step in record.steps
    ]
    return {
        **_known(numbers),
        **_known({f"rows_{name}": count for name, count in rows.items()}),
        "verdict": dg.MetadataValue.text(str(record.verdict)),
        "record_id": dg.MetadataValue.text(record.record_id),
        "execution_id": dg.MetadataValue.text(record.execution_id),
        **({"steps": dg.MetadataValue.table(steps)} if steps else {}),
        **({"deviations": dg.MetadataValue.text("\n".join(record.deviations))} if record.deviations else {}),
        **({"recovery_point": dg.MetadataValue.timestamp(record.recovery_point)} if record.recovery_point else {}),
    }


def _beside(seconds: float | None, promised: float | None) -> str:
    from dr_pipelines.reports.text import seconds_text

    promise = seconds_text(promised) if promised is not None else "nothing"
    return f"{seconds_text(seconds)}, promised {promise}"


def _known(numbers: Numbers) -> dict[str, dg.MetadataValue]:
    """As metadata of always the same type, which plotting needs."""
    return {
        name: dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(value)
        for name, value in numbers.items()
        if value is not None
    }
