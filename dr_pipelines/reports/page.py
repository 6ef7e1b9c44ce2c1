"""Adherence as one HTML page that needs nothing else: to be read, printed, and handed to an auditor."""

from datetime import timedelta
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dr_pipelines import __version__
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.reports import charts
from dr_pipelines.reports.adherence import Adherence, ServiceAdherence
from dr_pipelines.reports.text import (
    KIND_TITLES,
    VERDICT_MARKS,
    age_text,
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
from dr_pipelines.runbooks.record import Record
from dr_pipelines.timing import format_bytes, format_duration

__all__ = ["adherence_page"]


def adherence_page(adherence: Adherence) -> str:
    """The page as UTF-8 text: no script, nothing fetched from anywhere, every word of a record escaped."""
    return _environment().get_template("page.html.j2").render(report=adherence, version=__version__)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dr_pipelines.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": moment_text,
        "estimate": estimate_text,
        "duration": _duration,
        "seconds": seconds_text,
        "bytes": format_bytes,
        "number": lambda number: f"{number:,}",
        "words": words,
        "mark": lambda verdict: VERDICT_MARKS[verdict],
        "cutover": cutover_of,
        "phases": phases_of,
        "share": share_text,
    }
    environment.globals |= {
        "age": age_text,
        "budgets": charts.budgets,
        "history_plot": charts.history_plot,
        "kind_titles": KIND_TITLES,
        "record_key": record_key,
        "summary": _summary,
        "timeline": charts.timeline,
        "told": _told,
    }
    return environment


def _finalize(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _duration(duration: timedelta | None) -> str:
    return format_duration(duration) if duration is not None else "nothing"


def _summary(report: Adherence) -> str:
    """The whole report in one sentence."""
    protected = [service for service in report.services if service.verdict is not None]
    unmeasured = sum(service.latest is None for service in protected)
    unverified = report.count(Verdict.UNVERIFIED) - unmeasured
    parts = [f"{report.count(Verdict.MET)} met every objective"]
    if missed := report.count(Verdict.MISSED):
        parts.append(f"{missed} missed one or more")
    if unverified:
        parts.append(f"{unverified} could not be verified")
    if unmeasured:
        parts.append(f"{unmeasured} {'was' if unmeasured == 1 else 'were'} never drilled")
    count = len(protected)
    told = f"Of {count} protected service{'' if count == 1 else 's'}, {', '.join(parts)}."
    if unprotected := len(report.services) - count:
        told += f" {unprotected} {'is' if unprotected == 1 else 'are'} unprotected by decision."
    return told


def _told(service: ServiceAdherence, record: Record) -> str:
    """An execution in a few sentences, for somebody who reads nothing else."""
    what = {"drill": "In a drill", "restore": "In a real restore", "restore_test": "In a restore test"}[record.kind]
    when = moment_text(record.outage_started_at or record.started_at)
    if record.rto_seconds is None:
        back = f"{what} of {when} the time to recover was {record.rto_method}."
    else:
        back = f"{what} of {when} the service was back after {seconds_text(record.rto_seconds)}"
        back += f"; {_duration(service.objectives.rto)} is promised."
    if record.rpo_seconds is None:
        return f"{back} The loss of data was {record.rpo_method}."
    lost = "Nothing that was acknowledged was lost"
    if record.rpo_seconds > 0:
        lost = f"Data of the last {seconds_text(record.rpo_seconds)} before it were lost"
    return f"{back} {lost}; {_duration(service.objectives.rpo)} is allowed."
