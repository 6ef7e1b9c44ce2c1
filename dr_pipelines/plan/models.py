"""The recovery plan's models: what is written in the file, and what was accepted.

Each field's description is what an editor shows beside it and what a refusal says is expected.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dr_pipelines.errors import UsageError
from dr_pipelines.plan.values import Cron, Duration, Expected, Identifier, Name, PositiveDuration, Text
from dr_pipelines.timing import format_duration

__all__ = [
    "CUTOVER_STEPS",
    "FULL_EVERY",
    "PLAN_VERSION",
    "RESTORE_STEPS",
    "Engine",
    "Objectives",
    "Plan",
    "PlanDocument",
    "PostgresBackup",
    "Retention",
    "Runbook",
    "Service",
    "SmokeQuery",
    "Step",
    "Tier",
    "Validation",
    "did_you_mean",
]

PLAN_VERSION = 1
FULL_EVERY = 6
"""Incremental backups between two full ones, unless the plan says otherwise: one a day, and a full one a week."""
RESTORE_STEPS = ("assess", "prepare", "restore_latest_backup", "apply_wal", "validate")
"""The steps that a restore of a PostgreSQL service carries out, by the names that its runbook gives them budgets by."""
CUTOVER_STEPS = ("approve_cutover", "fence", "take_over", "switch_clients", "back_up")
"""Those that follow where the restored server takes the lost one's place; a runbook may leave them out."""

Engine = Literal["postgres", "redis", "mariadb", "application", "secrets"]
_NAME = "a name of small letters, digits, - and _ that begins with a letter"
_IDENTIFIER = "a name of small letters, digits and _ that begins with a letter"
_DURATION = 'a duration with its unit, such as "15m", "1h30m" or "1w"'


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Tier(_Entry):
    """A class of services that share their objectives."""

    name: Annotated[Name, Field(description=_NAME)]
    title: Annotated[Text, Field(description="text: how people call the tier")]
    rto: Annotated[PositiveDuration, Field(description=f"the recovery time objective, {_DURATION}")]
    rpo: Annotated[Duration, Field(description=f"the recovery point objective, {_DURATION}")]


class Retention(_Entry):
    """How long backups are kept: one goes where neither its number nor its age keeps it."""

    keep: Annotated[int | None, Field(ge=1, description="1 or more: so many of the newest full backups are kept")] = (
        None
    )
    keep_for: Annotated[
        PositiveDuration | None,
        Field(description=f'{_DURATION}, also "30d": how far back any moment can be restored to'),
    ] = None

    def __str__(self) -> str:
        """In words, such as "the newest 7 full backups and 30d"."""
        newest = f"the newest {self.keep} full backups" if self.keep != 1 else "the newest full backup"
        span = format_duration(self.keep_for) if self.keep_for is not None else ""
        return " and ".join(part for part in (newest if self.keep is not None else "", span) if part)


class PostgresBackup(_Entry):
    """How often a PostgreSQL server is backed up, and how long that is kept."""

    full: Annotated[Cron, Field(description='when a full backup starts: five cron fields in UTC, such as "0 3 * * *"')]
    log: Annotated[Literal["continuous"], Field(description="continuous: log segments are shipped as they are written")]
    archive_timeout: Annotated[
        PositiveDuration, Field(description=f"the longest that a log segment stays open, {_DURATION}")
    ]
    incremental: Annotated[
        Cron | None,
        Field(description="when a backup of what changed starts, from PostgreSQL 17 on: five cron fields in UTC"),
    ] = None
    full_every: Annotated[
        int,
        Field(ge=1, le=100, description=f"1 to 100: after so many incremental backups the next is full; {FULL_EVERY}"),
    ] = FULL_EVERY
    retention: Annotated[
        Retention | None,
        Field(description="a mapping with keep, keep_for or both; where it is left out, no backup ever goes"),
    ] = None


class SmokeQuery(_Entry):
    """A query whose single value shows whether the restored data makes sense."""

    name: Annotated[Identifier, Field(description=_IDENTIFIER)]
    sql: Annotated[Text, Field(description="text: a query that returns one value")]
    expect: Annotated[Expected, Field(description='how the value must be, in quotes: "> 0", "= 0", "true" ...')]


class Validation(_Entry):
    """What a restored server is asked before it counts as recovered."""

    smoke_queries: Annotated[tuple[SmokeQuery, ...], Field(min_length=1, description="a list of at least one query")]
    database: Annotated[
        Text, Field(description="text: the database that the queries are asked in; postgres where it is left out")
    ] = "postgres"
    application_query: Annotated[Text, Field(description="text: the application's first query, which has to succeed")]


class Service(_Entry):
    """Something the plan protects, or leaves unprotected by decision."""

    name: Annotated[Name, Field(description=_NAME)]
    title: Annotated[Text, Field(description="text: how people call the service")]
    tier: Annotated[Name, Field(description="the name of one of the tiers")]
    engine: Annotated[Engine | None, Field(description="one of postgres, redis, mariadb, application, secrets")] = None
    unprotected: Annotated[
        Text | None, Field(description="text: why it was decided that this service is not protected")
    ] = None
    rto: Annotated[
        PositiveDuration | None, Field(description=f"the service's own recovery time objective, {_DURATION}")
    ] = None
    rpo: Annotated[Duration | None, Field(description=f"the service's own recovery point objective, {_DURATION}")] = (
        None
    )
    backup: Annotated[
        PostgresBackup | None, Field(description="a mapping with full, log, archive_timeout and perhaps retention")
    ] = None
    validation: Annotated[
        Validation | None, Field(description="a mapping with smoke_queries and application_query")
    ] = None


class Step(_Entry):
    """A step of a runbook, with the time that it may take."""

    name: Annotated[Identifier, Field(description=_IDENTIFIER)]
    title: Annotated[Text, Field(description="text: how people call the step")]
    budget: Annotated[PositiveDuration, Field(description=_DURATION)]


class Runbook(_Entry):
    """A named list of steps that bring a service back."""

    name: Annotated[Identifier, Field(description=_IDENTIFIER)]
    title: Annotated[Text, Field(description="text: how people call the runbook")]
    service: Annotated[Name, Field(description="the name of one of the services")]
    rto: Annotated[PositiveDuration, Field(description=f"how long the runbook may take, {_DURATION}")]
    rpo: Annotated[Duration, Field(description=f"how much data it may lose, {_DURATION}")]
    steps: Annotated[tuple[Step, ...], Field(min_length=1, description="a list of at least one step")]


class PlanDocument(_Entry):
    """The recovery plan as it is written down: services, what was promised for each, and how it is kept."""

    plan_version: Annotated[
        int, Field(ge=1, le=PLAN_VERSION, description=f"{PLAN_VERSION}, the version of the plan's format")
    ]
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1, description="a list of at least one tier")]
    services: Annotated[tuple[Service, ...], Field(min_length=1, description="a list of at least one service")]
    runbooks: Annotated[tuple[Runbook, ...], Field(description="a list of runbooks")] = ()


@dataclass(frozen=True)
class Objectives:
    """What is promised for a service, and whether the service or its tier says so; None: unprotected by decision."""

    rto: timedelta | None
    rpo: timedelta | None
    rto_source: Literal["service", "tier"]
    rpo_source: Literal["service", "tier"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Entity = TypeVar("_Entity", bound=_Named)


@dataclass(frozen=True)
class Plan:
    """A recovery plan that was accepted: every name in it is unique and every reference leads somewhere.

    `text` is what was read, `lines` says on which line of it (from 1) a field path such as
    "services.database.rto" stands.
    """

    plan_version: int
    tiers: tuple[Tier, ...]
    services: tuple[Service, ...]
    runbooks: tuple[Runbook, ...]
    text: str
    lines: Mapping[str, int]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text in UTF-8, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def service(self, name: str) -> Service:
        """The service of that name. Raises UsageError with the known names where there is none."""
        return _find("service", name, self.services)

    def runbook(self, name: str) -> Runbook:
        """The runbook of that name. Raises UsageError with the known names where there is none."""
        return _find("runbook", name, self.runbooks)

    def runbook_for(self, service: str) -> Runbook | None:
        """The runbook that brings a service back; None where the plan has none for it."""
        return next((runbook for runbook in self.runbooks if runbook.service == service), None)

    def budgets(self, service: str) -> dict[str, timedelta]:
        """By step: how long it may take when the service is brought back; nothing where the plan has no runbook."""
        runbook = self.runbook_for(service)
        return {step.name: step.budget for step in runbook.steps} if runbook is not None else {}

    def require_database(self, name: str) -> Service:
        """The PostgreSQL service of that name. Raises UsageError with those that there are."""
        service = self.service(name)
        if service.engine != "postgres":
            having = ", ".join(entry.name for entry in self.services if entry.engine == "postgres") or "none"
            raise UsageError(f'"{name}" is no PostgreSQL service of the plan', hint=f"those are: {having}")
        return service

    def tier_of(self, service: Service | str) -> Tier:
        """The tier of a service. Raises UsageError where there is no such service."""
        return _find("tier", (self.service(service) if isinstance(service, str) else service).tier, self.tiers)

    def objectives(self, service: Service | str) -> Objectives:
        """What is promised for a service: its own objectives, else its tier's; None where it is unprotected."""
        entry = self.service(service) if isinstance(service, str) else service
        if entry.unprotected is not None:
            return Objectives(rto=None, rpo=None, rto_source="tier", rpo_source="tier")
        tier = self.tier_of(entry)
        return Objectives(
            rto=tier.rto if entry.rto is None else entry.rto,
            rpo=tier.rpo if entry.rpo is None else entry.rpo,
            rto_source="tier" if entry.rto is None else "service",
            rpo_source="tier" if entry.rpo is None else "service",
        )


def _find(kind: str, name: str, entities: Iterable[_Entity]) -> _Entity:
    known = {entity.name: entity for entity in entities}
    if name not in known:
        raise UsageError(f'there is no {kind} "{name}" in the plan', hint=did_you_mean(name, known))
    return known[name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest, and all there are."""
    names = list(dict.fromkeys(known))
    nearest = get_close_matches(name, names, n=1)
    suggestion = f'did you mean "{nearest[0]}"? ' if nearest else ""
    return f"{suggestion}known: {', '.join(names) or 'none'}"
