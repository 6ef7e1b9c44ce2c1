"""`dr doctor`: what is there, reachable, archiving, writable and scheduled; and the mend of what is not."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from dr_pipelines.cli.doctor_machine import (
    look,
    look_at_leases,
    look_at_plan,
    look_at_repository,
    look_at_schedules,
    look_at_software,
)
from dr_pipelines.cli.doctor_service import look_at_service
from dr_pipelines.cli.frame import Exit, Json, Terminal
from dr_pipelines.cli.opening import settled
from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.errors import DrError, UsageError
from dr_pipelines.plan import Plan
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings, load_settings, service_key
from dr_pipelines.timing import SystemClock

__all__ = ["doctor"]

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red", Level.OFF: "cyan"}


def doctor(
    service: Annotated[
        str | None, typer.Argument(metavar="SERVICE", help="Only this service, with repository and plan.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Look at everything that backups, restores and drills need, and say what to do about what is not as it should be.

    Nothing is changed; the repository is asked to store an object, which is removed again.

    Exit code 0 where all is well, 3 where there are warnings or something is off, 1 where there are problems.
    """
    terminal = Terminal(as_json=as_json)
    found = list(_look(terminal, service))
    counts = Counter(finding.level for finding in found)
    document = {
        "findings": [asdict(finding) for finding in found],
        "counts": {level.value: counts[level] for level in Level},
    }
    terminal.result(document, lambda console: _show(console, found, counts))
    if counts[Level.PROBLEM]:
        return Exit.FAILED
    return Exit.SHORT if counts[Level.WARNING] or counts[Level.OFF] else Exit.DONE


def _look(terminal: Terminal, service: str | None) -> Iterator[Finding]:
    settings, clock = load_settings(), SystemClock()
    if service is None:
        yield from look("software", "software", lambda: look_at_software(settings))
        yield from look("this machine", "the state folder", lambda: look_at_leases(settings, clock))
    plan: Plan | None = None
    try:
        plan, found = look_at_plan(settings)
        yield from found
    except DrError as error:
        yield Finding("the plan", str(settings.plan), Level.PROBLEM, error.message, error.hint)
    try:
        with settled(terminal) as placed:
            repository = _open(placed, configured=settings.repository is not None)
            yield from look_at_repository(repository, configured=settings.repository is not None)
            for name in _services(settings, plan, repository, service):
                yield from look_at_service(settings, plan, name, repository.service(name), clock)
    except UsageError:
        raise
    except DrError as error:
        yield Finding("the repository", "DR_REPOSITORY", Level.PROBLEM, error.message, error.hint)
        for name in _services(settings, plan, None, service):
            yield from look_at_service(settings, plan, name, None, clock)
    if service is None:
        yield from look("schedules", "Dagster", lambda: look_at_schedules(settings))


def _open(settings: Settings, *, configured: bool) -> Repository:
    assert settings.repository is not None
    return open_repository(settings.repository, settings=settings, create=not configured)


def _services(
    settings: Settings, plan: Plan | None, repository: Repository | None, only: str | None
) -> tuple[str, ...]:
    """The databases of the plan, those whose server was named, and those of which there are backups; or `only` one.

    Raises UsageError where that one is none of them.
    """
    planned = [entry.name for entry in plan.services if entry.engine == "postgres"] if plan is not None else []
    stored = repository.services() if repository is not None else []
    keys = {service_key(name) for name in (*planned, *stored)}
    known = dict.fromkeys([*planned, *stored, *(name for name in settings.dsn if name not in keys)])
    if only is not None and repository is not None and only not in known:
        raise UsageError(f'nothing is known of a service "{only}"', hint=f"known: {', '.join(known) or 'none'}")
    return tuple(known) if only is None else (only,)


def _show(console: Console, found: list[Finding], counts: Counter[Level]) -> None:
    for area, findings in groupby(found, key=lambda finding: finding.area):
        console.print(Text(area, style="bold"))
        for finding in findings:
            mark = Text(f"  {finding.level.value:<8}", style=_STYLES[finding.level])
            console.print(Text.assemble(mark, f"{finding.looked_at}: {finding.seen}"))
            if finding.mend:
                console.print(f"          mend: {finding.mend}")
    console.print(", ".join(f"{counts[level]} {level.value}" for level in Level))
