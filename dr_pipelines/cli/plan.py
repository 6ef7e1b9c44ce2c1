"""`dr plan`: what was promised, and whether the file that says so can be accepted."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dr_pipelines.cli.frame import Exit, Json, Terminal, table
from dr_pipelines.plan import Level, describe, inspect_plan, load_plan, read_plan_text
from dr_pipelines.settings import load_settings
from dr_pipelines.timing import format_duration

app = typer.Typer(help="What was promised.", no_args_is_help=True)

PlanFile = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="The plan's file; DR_PLAN, else recovery-plan.yaml.")
]


@app.command(short_help="What is wrong or too tight in it.", epilog="Example: dr plan check recovery-plan.yaml")
def check(file: PlanFile = None, as_json: Json = False) -> int:
    """Say everything that is wrong or too tight in the plan, with file, line and field.

    Exit code 0 where it is accepted, warnings or not, and 2 where it is refused.
    """
    path = file or load_settings().plan
    plan, findings = inspect_plan(read_plan_text(path))
    accepted = plan is not None

    def show(console: Console) -> None:
        for finding in findings:
            console.print(f"{finding.level}: {finding.located(str(path))}")
        warnings = sum(finding.level is Level.WARNING for finding in findings)
        errors = len(findings) - warnings
        console.print(
            f"{path}: {'accepted' if accepted else 'refused'}, "
            f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
        )

    document = {"file": str(path), "accepted": accepted, "findings": [asdict(finding) for finding in findings]}
    Terminal(as_json=as_json).result(document, show)
    return Exit.DONE if accepted else Exit.USAGE


@app.command(short_help="What applies to each service.", epilog="Example: dr plan show --json")
def show(file: PlanFile = None, as_json: Json = False) -> int:
    """Show what applies to each service: tier, objectives, backups, runbook."""
    plan = load_plan(file or load_settings().plan)
    rows = describe(plan)

    def print_rows(console: Console) -> None:
        cells = [
            (
                row.name,
                row.tier,
                "unprotected" if row.unprotected else row.engine or "none",
                _objective(row.rto, row.rto_source),
                _objective(row.rpo, row.rpo_source),
                row.backup or "–",
                row.runbook or "–",
            )
            for row in rows
        ]
        columns = ("service", "tier", "engine", "RTO", "RPO", "backup", "runbook")
        console.print(table(*columns, rows=cells), soft_wrap=False)
        for row in rows:
            if row.unprotected:
                console.print(f"\n{row.name} is unprotected: {row.unprotected}")
        for runbook in plan.runbooks:
            console.print(f"\n{runbook.title} ({runbook.name}), RTO {format_duration(runbook.rto)}:")
            for number, step in enumerate(runbook.steps, 1):
                console.print(f"  {number}. {step.title}: {format_duration(step.budget)}")

    document = {
        "plan_version": plan.plan_version,
        "sha256": plan.sha256,
        "services": [asdict(row) for row in rows],
        "runbooks": [runbook.model_dump(mode="json") for runbook in plan.runbooks],
    }
    Terminal(as_json=as_json).result(document, print_rows)
    return Exit.DONE


def _objective(value: str | None, source: str | None) -> str:
    return f"{value} ({source})" if value is not None else "–"
