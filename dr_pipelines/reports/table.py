"""Reports for a terminal."""

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.reports.adherence import Adherence, History, ServiceAdherence
from dr_pipelines.reports.text import (
    KIND_TITLES,
    VERDICT_MARKS,
    age_text,
    beside,
    cutover_of,
    estimate_text,
    moment_text,
    phases_of,
    printable,
    seconds_text,
    share_text,
    words,
)
from dr_pipelines.repository.records import record_key
from dr_pipelines.runbooks.record import Record, StepResult
from dr_pipelines.timing import format_duration

__all__ = ["render_adherence", "render_record"]

_STYLES = {Verdict.MET: "bold green", Verdict.MISSED: "bold red", Verdict.UNVERIFIED: "bold yellow"}


def render_adherence(adherence: Adherence, console: Console) -> None:
    """Every service's promise beside what was measured, then each measured service's latest executions."""
    table = Table(box=box.SIMPLE_HEAD, title="Measured / promised", title_justify="left", pad_edge=False)
    for column in ("service", "RTO", "RPO", "verdict", "last drill"):
        table.add_column(column, overflow="fold")
    for service in adherence.services:
        table.add_row(*_service_row(service, adherence))
    console.print(table)
    for line in adherence.off:
        console.print(_line("off: ", line, "bold yellow"))
    for line in adherence.plan_changed:
        console.print(_line("needs a drill: ", line, "bold yellow"))
    for service in adherence.services:
        for history in service.histories:
            console.rule(f"{printable(service.title)}: {KIND_TITLES[history.kind].lower()}", align="left", style="dim")
            render_record(history.latest, console)
            _render_history(history, console)
    console.print(
        _facts(
            [
                ("as of", moment_text(adherence.generated_at)),
                ("plan", f"version {adherence.plan_version}, SHA-256 {adherence.plan_sha256}"),
            ]
        )
    )


def render_record(record: Record, console: Console) -> None:
    """One record: verdicts with their figures beside the promises, phases, steps, what did not pass, where it lies.

    Promises and verdicts are those of its time.
    """
    console.print(_objectives(record))
    console.print(_line("phases: ", _phases_line(record), "bold"))
    if record.steps:
        console.print(_steps(record.steps))
    console.print(_facts(_record_facts(record)))
    passed = sum(check.passed is True for check in record.checks)
    console.print(_line("checks: ", f"{passed} of {len(record.checks)} passed", "bold"))
    for check in record.checks:
        if check.passed is not True:
            word, style = ("failed", "bold red") if check.passed is False else ("could not be made", "bold yellow")
            console.print(Padding(_line(f"{check.name} {word}: ", check.detail, style), (0, 0, 0, 2)))
    for deviation in record.deviations:
        console.print(_line("deviation: ", deviation, "bold yellow"))


def verdict_text(verdict: Verdict) -> Text:
    """A verdict in its colour, with a mark and the word."""
    return Text(f"{VERDICT_MARKS[verdict]} {verdict}", style=_STYLES[verdict])


def _service_row(service: ServiceAdherence, adherence: Adherence) -> list[Text]:
    name = Text(printable(service.title))
    record, verdict = service.latest, service.verdict
    if verdict is None:
        return [name, Text("–"), Text("–"), Text("– unprotected", style="dim"), Text("by decision", style="dim")]
    last = age_text(record.started_at, adherence.generated_at) if record is not None else "never measured"
    rto, rpo = (record.rto_seconds, record.rpo_seconds) if record is not None else (None, None)
    return [
        name,
        Text(beside(rto, service.objectives.rto)),
        Text(beside(rpo, service.objectives.rpo)),
        verdict_text(verdict),
        Text(last),
    ]


def _objectives(record: Record) -> Table:
    verdicts = record.verdicts
    passed = sum(check.passed is True for check in record.checks)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("objective", "measured", "promised", "verdict"):
        table.add_column(column)
    for name, verdict, measured, promised in (
        ("RTO", verdicts.rto, record.rto_seconds, record.rto_objective_seconds),
        ("RPO", verdicts.rpo, record.rpo_seconds, record.rpo_objective_seconds),
    ):
        promise = seconds_text(promised) if promised is not None else "nothing"
        table.add_row(name, seconds_text(measured), promise, verdict_text(verdict))
    table.add_row(
        "integrity", f"{passed} of {len(record.checks)} checks passed", "all", verdict_text(verdicts.integrity)
    )
    return table


def _steps(steps: tuple[StepResult, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step")
    table.add_column("took", justify="right")
    table.add_column("budget", justify="right")
    table.add_column("used", justify="right")
    table.add_column("outcome")
    for step in steps:
        attempt = f" (attempt {step.attempt})" if step.attempt > 1 else ""
        used = "–"
        if step.seconds is not None and step.budget_seconds:
            used = share_text(step.seconds, step.budget_seconds)
        outcome = Text(step.outcome, style="" if step.outcome == "done" else "bold yellow")
        if step.overrun:
            outcome.append(", over its budget", style="bold red")
        table.add_row(
            words(step.name) + attempt,
            format_seconds(step.seconds),
            format_seconds(step.budget_seconds),
            used,
            outcome,
        )
    return table


def format_seconds(seconds: float | None) -> str:
    """A duration for a column, a dash where there is none."""
    return seconds_text(seconds) if seconds is not None else "–"


def _phases_line(record: Record) -> str:
    told = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in phases_of(record))
    return f"{told}; from the outage's start {seconds_text(record.rto_seconds)}"


def _record_facts(record: Record) -> list[tuple[str, str]]:
    facts = [("outage start", moment_text(record.outage_started_at))]
    facts.append(("service restored", moment_text(record.service_restored_at)))
    proven = ", as proven before the loss" if record.recovery_point is not None else ""
    facts.append(("recovery point", moment_text(record.recovery_point) + proven))
    facts.append(("recovered to", moment_text(record.recovered_to)))
    if record.rows is not None:
        rows = record.rows
        facts.append(("rows", f"{rows.acknowledged} acknowledged, {rows.recovered} recovered, {rows.lost} lost"))
    if record.backup is not None:
        facts.append(("backup", f"{record.backup.backup_id}, taken {moment_text(record.backup.taken_at)}"))
    facts += cutover_of(record)
    if record.estimate is not None:
        facts.append(("estimated", estimate_text(record.estimate)))
    runs = ", ".join(record.run_ids) or "none: without Dagster"
    facts += [("execution", record.execution_id), ("runs" if len(record.run_ids) > 1 else "run", runs)]
    facts.append(("record", f"{record_key(record.record_id)} in {record.environment.repository}"))
    return facts


def _render_history(history: History, console: Console) -> None:
    if len(history.records) < 2:
        return
    for name, figures in (("RTO", history.rto), ("RPO", history.rpo)):
        if figures.n:
            median, p90 = (figures.median, figures.p90)
            assert median is not None
            assert p90 is not None
            told = f"n {figures.n}, median {format_duration(median)}, 90th percentile {format_duration(p90)}"
            console.print(
                _line(f"{name} over time: ", told + ("" if figures.trend else "; too few for a trend"), "bold")
            )


def _facts(facts: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(printable(value)))
    return table


def _line(label: str, text: str, style: str) -> Text:
    return Text.assemble((printable(label), style), printable(text))
