"""Adherence: for each service of the plan what was promised, and what was measured of it. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Literal, cast

from dr_pipelines.engines.verdict import Verdict, judge, worst_of
from dr_pipelines.plan import Objectives, Plan, Service
from dr_pipelines.reports.text import moment_text
from dr_pipelines.runbooks.record import Record, Verdicts
from dr_pipelines.timing import format_moment

__all__ = ["KINDS", "TREND_FROM", "Adherence", "Figures", "History", "Kind", "ServiceAdherence", "adherence"]

Kind = Literal["drill", "restore", "restore_test"]
KINDS: tuple[Kind, ...] = ("drill", "restore", "restore_test")
TREND_FROM = 5
"""On fewer measurements than these no trend is claimed."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one objective, over the executions of one kind; by nearest rank, None where n is 0."""

    n: int
    median: timedelta | None
    p90: timedelta | None

    @property
    def trend(self) -> bool:
        """Whether there are enough of them to speak of a trend."""
        return self.n >= TREND_FROM


@dataclass(frozen=True)
class History:
    """The executions of one kind, oldest first; of each the latest record."""

    kind: Kind
    records: tuple[Record, ...]

    @property
    def latest(self) -> Record:
        """The record of the execution that began last."""
        return self.records[-1]

    @property
    def rto(self) -> Figures:
        """Over those whose RTO was measured."""
        return _figures(record.rto_seconds for record in self.records)

    @property
    def rpo(self) -> Figures:
        """Over those whose RPO was measured."""
        return _figures(record.rpo_seconds for record in self.records)


@dataclass(frozen=True)
class ServiceAdherence:
    """One service: its promise, and its executions by kind, which are never mixed."""

    name: str
    title: str
    tier: str
    engine: str | None
    unprotected: str | None
    """Why it was decided not to protect it."""
    objectives: Objectives
    histories: tuple[History, ...]
    """Of each kind of which there are executions, drills first."""
    plan_sha256: str

    def history(self, kind: Kind) -> History | None:
        """The executions of one kind; None where there are none."""
        return next((history for history in self.histories if history.kind == kind), None)

    @property
    def latest(self) -> Record | None:
        """The latest drill, which the verdicts are about; None where there was none."""
        drills = self.history("drill")
        return drills.latest if drills is not None else None

    @property
    def verdicts(self) -> Verdicts | None:
        """The latest drill's figures judged by what is promised today; None where there was no drill."""
        return self.judge(self.latest) if self.latest is not None else None

    @property
    def verdict(self) -> Verdict | None:
        """The worst of the verdicts, unverified where there was no drill; None where it is unprotected by decision."""
        if self.unprotected is not None:
            return None
        found = self.verdicts
        return worst_of(found.rto, found.rpo, found.integrity) if found is not None else Verdict.UNVERIFIED

    @property
    def needs_test(self) -> str | None:
        """Why what was measured no longer stands for what is promised; None where it does."""
        if self.unprotected is not None:
            return None
        if self.latest is None:
            return "never drilled"
        if self.latest.plan_sha256 != self.plan_sha256:
            return f"the plan changed since the drill of {moment_text(self.latest.started_at)}"
        return None

    def judge(self, record: Record) -> Verdicts:
        """A record's figures judged by what is promised today, which may not be what was promised then."""
        rto, rpo = (
            timedelta(seconds=value) if value is not None else None
            for value in (record.rto_seconds, record.rpo_seconds)
        )
        return Verdicts(
            rto=judge(rto, self.objectives.rto),
            rpo=judge(rpo, self.objectives.rpo),
            integrity=record.verdicts.integrity,
        )

    def to_document(self) -> dict[str, object]:
        """As JSON values; durations in seconds."""
        verdicts = self.verdicts
        return {
            "name": self.name,
            "title": self.title,
            "tier": self.tier,
            "engine": self.engine,
            "unprotected": self.unprotected,
            "rto_objective_seconds": _seconds(self.objectives.rto),
            "rto_objective_of": self.objectives.rto_source,
            "rpo_objective_seconds": _seconds(self.objectives.rpo),
            "rpo_objective_of": self.objectives.rpo_source,
            "verdicts": verdicts.model_dump(mode="json") if verdicts is not None else None,
            "verdict": self.verdict,
            "needs_test": self.needs_test,
            "latest": {kind: _document(self.history(kind)) for kind in KINDS},
            "history": {history.kind: _history_document(history) for history in self.histories},
        }


@dataclass(frozen=True)
class Adherence:
    """Every service of a plan, at one moment."""

    generated_at: datetime
    plan_version: int
    plan_sha256: str
    services: tuple[ServiceAdherence, ...]
    off: tuple[str, ...]
    """What is switched off, out of date or left out: schedules and sensors that are stopped, records unread."""
    plan_changed: tuple[str, ...]
    """Where what was measured and what is written in the plan no longer belong together."""

    @property
    def verdict(self) -> Verdict:
        """The worst of all services that are to be protected."""
        return worst_of(*(service.verdict for service in self.services if service.verdict is not None))

    def count(self, verdict: Verdict) -> int:
        """How many services have that verdict."""
        return sum(service.verdict is verdict for service in self.services)

    def to_document(self) -> dict[str, object]:
        """As JSON values; durations in seconds, moments ISO 8601 in UTC."""
        document = {
            "generated_at": format_moment(self.generated_at),
            "plan_version": self.plan_version,
            "plan_sha256": self.plan_sha256,
            "verdict": self.verdict,
            "services": [service.to_document() for service in self.services],
            "off": list(self.off),
            "plan_changed": list(self.plan_changed),
        }
        return cast(dict[str, object], json.loads(json.dumps(document)))


def adherence(plan: Plan, records: Iterable[Record], *, now: datetime, off: Sequence[str] = ()) -> Adherence:
    """What the records say of the plan's promises; `off` is shown beside it."""
    executions = _latest_records(records)
    services = tuple(_service(plan, service, executions) for service in plan.services)
    changed = [
        f"{service.title}: {service.needs_test}"
        for service in services
        if service.latest is not None and service.needs_test is not None
    ]
    known = {service.name for service in services}
    gone = sorted({record.service for record in executions} - known)
    changed += [f"{name}: there are records of it, and the plan no longer has it" for name in gone]
    return Adherence(now, plan.plan_version, plan.sha256, services, tuple(off), tuple(changed))


def _latest_records(records: Iterable[Record]) -> list[Record]:
    """Of each execution the record that supersedes the others; in the order in which the executions began."""
    latest: dict[str, Record] = {}
    for record in records:
        other = latest.get(record.execution_id)
        if other is None or _newness(record) > _newness(other):
            latest[record.execution_id] = record
    return sorted(latest.values(), key=lambda record: (record.started_at, record.execution_id))


def _newness(record: Record) -> tuple[int, datetime, str]:
    return record.attempt, record.ended_at, record.record_id


def _service(plan: Plan, service: Service, executions: Sequence[Record]) -> ServiceAdherence:
    by_kind: Mapping[Kind, tuple[Record, ...]] = {
        kind: tuple(record for record in executions if record.service == service.name and record.kind == kind)
        for kind in KINDS
    }
    return ServiceAdherence(
        name=service.name,
        title=service.title,
        tier=plan.tier_of(service).title,
        engine=service.engine,
        unprotected=service.unprotected,
        objectives=plan.objectives(service),
        histories=tuple(History(kind, found) for kind, found in by_kind.items() if found),
        plan_sha256=plan.sha256,
    )


def _figures(values: Iterable[float | None]) -> Figures:
    ordered = sorted(value for value in values if value is not None)
    return Figures(len(ordered), _nearest_rank(ordered, 50), _nearest_rank(ordered, 90))


def _nearest_rank(ordered: Sequence[float], percent: int) -> timedelta | None:
    if not ordered:
        return None
    return timedelta(seconds=ordered[max(1, ceil(percent * len(ordered) / 100)) - 1])


def _seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None


def _document(history: History | None) -> dict[str, object] | None:
    return history.latest.document() if history is not None else None


def _history_document(history: History) -> dict[str, object]:
    return {
        "rto": _figures_document(history.rto),
        "rpo": _figures_document(history.rpo),
        "executions": [
            {
                "execution_id": record.execution_id,
                "record_id": record.record_id,
                "run_id": record.run_id,
                "started_at": format_moment(record.started_at),
                "rto_seconds": record.rto_seconds,
                "rpo_seconds": record.rpo_seconds,
                "verdict": record.verdict,
            }
            for record in history.records
        ],
    }


def _figures_document(figures: Figures) -> dict[str, object]:
    return {
        "n": figures.n,
        "median_seconds": _seconds(figures.median),
        "p90_seconds": _seconds(figures.p90),
        "trend": figures.trend,
    }
