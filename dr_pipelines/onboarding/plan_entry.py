"""The plan's entry for a service: written where the plan has none, else held against what was asked for. Pure."""

import difflib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from psycopg import sql

from dr_pipelines.errors import PlanError, UsageError
from dr_pipelines.onboarding.items import Item, State, WriteFile
from dr_pipelines.onboarding.server import Server, Table
from dr_pipelines.onboarding.wishes import Wishes
from dr_pipelines.plan import RESTORE_STEPS, Plan, Service, parse_plan
from dr_pipelines.plan.insertion import as_yaml, insert_service
from dr_pipelines.timing import format_duration

__all__ = ["archive_timeout_of", "plan_item", "planned_service"]

_ARCHIVE_TIMEOUT = timedelta(seconds=60)
_FULL, _INCREMENTAL = "0 3 * * *", "30 9,15,21 * * *"
_RETENTION = {"keep": 7, "keep_for": "30d"}
_TIER = {"name": "standard", "title": "Standard", "rto": "4h", "rpo": "15m"}
_TITLES = {
    "assess": "Assess the damage",
    "prepare": "Prepare the environment",
    "restore_latest_backup": "Restore the latest backup",
    "apply_wal": "Apply the WAL",
    "validate": "Validate",
}
_SHARES = {"assess": 1, "prepare": 1, "restore_latest_backup": 4, "apply_wal": 2, "validate": 1}
"""How the runbook's time is shared out, in tenths: one is left as headroom."""
_WHY = "what was promised for the service, and when it is backed up; dr doctor and the schedules go by it"


def planned_service(text: str | None, name: str) -> tuple[Plan | None, Service | None]:
    """The plan and the service that it has of that name. Raises UsageError where it is one of another engine."""
    if text is None:
        return None, None
    plan = parse_plan(text)
    service = next((entry for entry in plan.services if entry.name == name), None)
    if service is not None and service.engine != "postgres":
        having = service.engine or "none"
        raise UsageError(
            f'"{name}" stands in the plan with the engine {having}, not postgres',
            hint="give the database a name of its own, or edit the plan",
        )
    return plan, service


def archive_timeout_of(service: Service | None, wishes: Wishes) -> timedelta:
    """How long a segment may stay open: as asked for, else as planned."""
    planned = service.backup.archive_timeout if service is not None and service.backup is not None else None
    return wishes.archive_timeout or planned or _ARCHIVE_TIMEOUT


def plan_item(text: str | None, path: Path, wishes: Wishes, server: Server) -> Item:
    """What the plan needs. Raises PlanError where it cannot be accepted, UsageError for a tier that it has not."""
    plan, service = planned_service(text, wishes.service)
    if service is not None:
        return _compare(service, path, wishes, server)
    if plan is not None and wishes.tier is not None and wishes.tier not in (tier.name for tier in plan.tiers):
        names = ", ".join(tier.name for tier in plan.tiers)
        raise UsageError(f'the plan has no tier "{wishes.tier}"', hint=f"its tiers: {names}")
    tier = wishes.tier or (plan.tiers[0].name if plan is not None else str(_TIER["name"]))
    entry = _entry(wishes, server, tier)
    rto, rpo = _promised(plan, tier, wishes)
    runbook = _runbook(wishes.service, rto, rpo)
    title = f"the service {wishes.service} in {path}"
    shown = f"services:\n{as_yaml([entry], 2)}\nrunbooks:\n{as_yaml([runbook], 2)}"
    if text is None:
        whole = f"plan_version: 1\n\ntiers:\n{as_yaml([{**_TIER, 'name': tier}], 2)}\n{shown}"
        parse_plan(whole, name=str(path))
        act = WriteFile(path, whole, None, mode=0o644)
        return Item("plan", title, _WHY, State.TO_DO, whole, f"rm {path}", (act,))
    undo = f"take the service {wishes.service} and the runbook {runbook['name']} out of {path}"
    try:
        added = insert_service(text, entry, runbook, name=str(path))
    except PlanError as error:
        return Item("plan", title, f"{_WHY}; {error}", State.BY_HAND, shown, undo)
    return Item("plan", title, _WHY, State.TO_DO, shown, undo, (WriteFile(path, added, text),))


def _promised(plan: Plan | None, tier: str, wishes: Wishes) -> tuple[timedelta, timedelta]:
    found = next((entry for entry in plan.tiers if entry.name == tier), None) if plan is not None else None
    rto, rpo = (found.rto, found.rpo) if found is not None else (timedelta(hours=4), timedelta(minutes=15))
    return wishes.rto or rto, rpo if wishes.rpo is None else wishes.rpo


def _entry(wishes: Wishes, server: Server, tier: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": wishes.service,
        "title": _title(wishes.service),
        "tier": tier,
        "engine": "postgres",
    }
    entry |= {key: format_duration(value) for key in ("rto", "rpo") if (value := getattr(wishes, key)) is not None}
    return {**entry, "backup": _backup(wishes, None), "validation": _validation(wishes, server)}


def _backup(wishes: Wishes, service: Service | None) -> dict[str, Any]:
    planned = service.backup if service is not None else None
    there: dict[str, Any] = {"full": _FULL, "log": "continuous", "archive_timeout": "", "retention": _RETENTION}
    if planned is not None:
        there = planned.model_dump(mode="json", exclude_none=True)
    there |= {"full": wishes.full} if wishes.full is not None else {}
    if wishes.incremental:
        there.setdefault("incremental", _INCREMENTAL)
    return {**there, "archive_timeout": format_duration(archive_timeout_of(service, wishes))}


def _validation(wishes: Wishes, server: Server) -> dict[str, Any]:
    """Something that is true of the data there are now; whoever knows them better writes better questions."""
    tables = server.tables
    queries = [{"name": f"{_word(table.name)}_has_rows", "sql": _exists(table), "expect": "true"} for table in tables]
    names = [query["name"] for query in queries]
    queries = [query for query, name in zip(queries, names, strict=True) if names.count(name) == 1]
    return {
        "database": asked_database(wishes, server),
        "smoke_queries": queries or [{"name": "it_answers", "sql": "SELECT true", "expect": "true"}],
        "application_query": _exists(tables[0]) if tables else "SELECT 1",
    }


def asked_database(wishes: Wishes, server: Server) -> str:
    """The database that a restored server is asked in: as asked for, else the largest."""
    return wishes.database or next(iter(server.databases), "postgres")


def _exists(table: Table) -> str:
    name = sql.Identifier(table.schema, table.name).as_string(None)
    return f"SELECT EXISTS (SELECT FROM {name})"


def _word(name: str) -> str:
    word = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name.lower())[:50]
    return word if word[:1].isalpha() else f"t_{word}"


def _title(name: str) -> str:
    return name.replace("-", " ").replace("_", " ").capitalize()


def _runbook(service: str, rto: timedelta, rpo: timedelta) -> dict[str, Any]:
    unit = timedelta(minutes=1) if rto >= timedelta(minutes=10) else timedelta(seconds=1)
    tenth = max(rto / 10 // unit, 1) * unit
    steps = [
        {"name": step, "title": _TITLES[step], "budget": format_duration(tenth * _SHARES[step])}
        for step in RESTORE_STEPS
    ]
    name = f"{service.replace('-', '_')[:55]}_restore"
    objectives = {"rto": format_duration(rto), "rpo": format_duration(rpo)}
    return {"name": name, "title": f"{_title(service)} loss", "service": service, **objectives, "steps": steps}


def _compare(service: Service, path: Path, wishes: Wishes, server: Server) -> Item:
    """Where a service of that name is planned already, it stays as it is: a difference is shown."""
    title, why = f"the service {service.name} in {path}", "it stands in the plan already"
    there = service.model_dump(mode="json", exclude_none=True)
    asked = _asked(service, wishes, server)
    wanted = {**there, **asked}
    if wanted == there:
        return Item("plan", title, why, State.DONE)
    before, after = (as_yaml([entry], 2).splitlines() for entry in (there, wanted))
    shown = "\n".join(difflib.unified_diff(before, after, str(path), "as asked for", lineterm=""))
    return Item("plan", title, f"{why}, and not as asked for", State.BY_HAND, shown)


def _asked(service: Service, wishes: Wishes, server: Server) -> Mapping[str, Any]:
    asked: dict[str, Any] = {"tier": wishes.tier} if wishes.tier is not None else {}
    asked |= {key: format_duration(value) for key in ("rto", "rpo") if (value := getattr(wishes, key)) is not None}
    asked["backup"] = _backup(wishes, service)
    planned = service.validation
    if planned is None or planned.database not in server.databases or wishes.database not in (None, planned.database):
        asked["validation"] = _validation(wishes, server)
    return asked
