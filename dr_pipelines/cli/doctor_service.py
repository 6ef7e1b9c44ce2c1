"""What `dr doctor` looks at for one database: server, spool, agent, exposure, backups."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

from dr_pipelines.agent.receiver import slot_of
from dr_pipelines.agent.spool import Spool
from dr_pipelines.cli.doctor_machine import look, look_at_room
from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.engines.postgres.coverage import systems
from dr_pipelines.engines.postgres.details import look_at_backups
from dr_pipelines.engines.postgres.exposure import HEARTBEAT_LIMIT, read_exposure
from dr_pipelines.engines.postgres.incremental import judge_incrementals
from dr_pipelines.engines.postgres.inspect import judge_missing, judge_setup, read_setup
from dr_pipelines.engines.postgres.inspect_streaming import judge_streaming, read_streaming
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import LogMode, Position, ServerState
from dr_pipelines.engines.postgres.privileges import missing_privileges
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.errors import RepositoryError
from dr_pipelines.plan import Plan, Service
from dr_pipelines.plan.schedule import last_due
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings, variable
from dr_pipelines.timing import Clock, format_ago, format_bytes, format_duration, format_moment

__all__ = ["look_at_service"]

_GRACE = timedelta(hours=1)
"""How long after it was due a backup may take."""
_WAITS = 60.0
"""Seconds that a file may wait in the spool; the agent needs two."""


def look_at_service(
    settings: Settings, plan: Plan | None, name: str, store: Store | None, clock: Clock
) -> Iterator[Finding]:
    """Everything about one service; `store` is its place in the repository, None where that does not answer."""
    service = next((entry for entry in plan.services if entry.name == name), None) if plan is not None else None
    rpo = plan.objectives(service).rpo if plan is not None and service is not None else None
    dsn = settings.dsn_of(name)
    yield from look(name, "the server", lambda: _server(settings, service, name, dsn, rpo, store))
    yield from look(name, "the spool", lambda: _spool(name, settings.spool_of(name), dsn))
    if store is not None:
        yield from look(name, "the agent", lambda: _agent(name, store, clock.wall(), expected=dsn is not None))
        yield from look(name, "exposure", lambda: _exposure(name, store, clock.wall(), rpo, expected=dsn is not None))
        yield from look(name, "backups", lambda: _backups(name, service, store, clock.wall()))


def _server(
    settings: Settings,
    service: Service | None,
    name: str,
    dsn: str | None,
    rpo: timedelta | None,
    store: Store | None,
) -> Iterator[Finding]:
    if dsn is None:
        unset = variable("dsn", name)
        mend = f"{unset}='host=... port=5432 user=... password=... dbname=postgres'"
        yield Finding(name, "the server", Level.OFF, f"{unset} is not set, so it was not looked at", mend)
        return
    with connect(dsn) as connection:
        try:
            setup = read_setup(connection, dsn)
            streaming = read_streaming(connection, slot_of(name))
            if service is not None and service.backup is not None and service.backup.incremental is not None:
                yield judge_incrementals(connection, setup.facts, name)
        except psycopg.errors.InsufficientPrivilege as error:
            seen = f"the role of the DSN may not look: {error.diag.message_primary}"
            mend = "what it lacks is named below; dr init makes a role with what is needed"
            yield Finding(name, "the server", Level.PROBLEM, seen, mend)
            yield from judge_missing(missing_privileges(connection), name)
            return
    limit = service.backup.archive_timeout if service is not None and service.backup is not None else None
    position = None
    with suppress(RepositoryError):  # said with the agent
        position = _newest_position(store) if store is not None else None
    streams = settings.streams(name) or (position is not None and position.mode is LogMode.STREAM)
    spool = settings.spool_of(name)
    yield from judge_setup(setup, name, spool=spool, archive_timeout=limit, rpo=rpo, streams=streams)
    here = position is not None and position.agent_host == socket.gethostname() and _is_here(dsn)
    yield from judge_streaming(streaming, name, streams=streams, rpo=rpo, agent_is_here=here)

    def binaries() -> Iterator[Finding]:
        found = find_binaries(settings, setup.facts.major)
        yield Finding(name, "binaries of its version", Level.OK, f"{found.version} in {found.folder}")

    yield from look(name, "binaries of its version", binaries)
    if service is not None and service.validation is not None:
        yield _asked_database(name, service.validation.database, dsn)


def _asked_database(name: str, database: str, dsn: str) -> Finding:
    """Whether what a restore is asked by the plan can be answered at all: found out now, not on the bad day."""
    looked_at = "what the plan asks of a restore"
    with connect(dsn) as connection:
        there = connection.execute("SELECT count(*) FROM pg_database WHERE datname = %s", [database]).fetchone()
    if there is None or not there[0]:
        seen = f'the server has no database "{database}", so no restore of it would pass its validation'
        return Finding(
            name, looked_at, Level.PROBLEM, seen, f"your own database and queries in services.{name}.validation"
        )
    return Finding(name, looked_at, Level.OK, f'of the database "{database}", which is there')


def _spool(area: str, folder: Path, dsn: str | None) -> Iterator[Finding]:
    if not folder.is_dir():
        if dsn is None or not _is_here(dsn):
            seen = f"{folder} is not on this machine; the database's host has it, and `dr doctor` there sees it"
            yield Finding(area, f"the spool {folder}", Level.OFF, seen)
        else:
            mend = f"install -d -m 2770 -o postgres {folder}"
            yield Finding(area, f"the spool {folder}", Level.PROBLEM, "not there: archive_command fails", mend)
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        mend = "run the agent as a user of the spool's group: install -d -m 2770 -o postgres -g GROUP"
        yield Finding(
            area, f"the spool {folder}", Level.PROBLEM, "this user may not read and remove what is in it", mend
        )
        return
    yield look_at_room(area, "the spool", folder, "make room: a full spool fills pg_wal, and that stops the server")
    waiting, strangers = Spool(folder).scan()
    if waiting:
        oldest = time.time() - min(file.changed_ns for file in waiting) / 1e9
        late = oldest > _WAITS
        seen = (
            f"{len(waiting)} files, {format_bytes(sum(file.size for file in waiting))}, the oldest for "
            f"{format_duration(timedelta(seconds=round(max(oldest, 0))))}"
        )
        mend = "is the agent running? its log says what holds it up: dr agent" if late else ""
        yield Finding(area, "waiting in the spool", Level.PROBLEM if late else Level.OK, seen, mend)
    else:
        yield Finding(area, "waiting in the spool", Level.OK, "nothing")
    if strangers:
        seen = f"not of PostgreSQL's log: {', '.join(strangers[:3])}"
        yield Finding(area, "strangers in the spool", Level.WARNING, seen, "look at them, and remove them")


def _is_here(dsn: str) -> bool:
    host = str(psycopg.conninfo.conninfo_to_dict(dsn).get("host") or "")
    return host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1", socket.gethostname())


def _agent(name: str, store: Store, now: datetime, *, expected: bool) -> Iterator[Finding]:
    newest = _newest_position(store)
    start = f"dr agent --service {name}, kept up by a supervisor, on the database's host"
    if newest is None:
        yield Finding(name, "the agent", Level.PROBLEM if expected else Level.OFF, "never heard of", start)
        return
    age = now - newest.heartbeat_at
    seen = f"{newest.agent_version} on {newest.agent_host}, last heard of {format_ago(age)}"
    if age > HEARTBEAT_LIMIT:
        yield Finding(name, "the agent", Level.PROBLEM if expected else Level.OFF, seen, start)
    elif newest.server is ServerState.AWAY:
        mend = f"is the server up, and the agent's {variable('dsn', name)} right?"
        yield Finding(name, "the agent", Level.PROBLEM, f"{seen}; the server does not answer it", mend)
    elif newest.problem:
        yield Finding(name, "the agent", Level.WARNING, f"{seen}; {newest.problem}", "its log says more")
    else:
        yield Finding(name, "the agent", Level.OK, seen)


def _newest_position(store: Store) -> Position | None:
    told = [Log(store.child(system)).read_position() for system in systems(store)]
    return max((each for each in told if each), key=lambda each: each.heartbeat_at, default=None)


def _exposure(name: str, store: Store, now: datetime, rpo: timedelta | None, *, expected: bool) -> Iterator[Finding]:
    found = read_exposure(store, name, now=now, rpo=rpo)
    if found.newest_backup_id is None:
        seen, mend = "there is no complete backup, so all would be lost", f"dr backup full {name}"
        yield Finding(name, "exposure", Level.PROBLEM if expected else Level.OFF, seen, mend)
        return
    at_least = "at least " if found.unknown_since is not None else ""
    seen = f"{at_least}{format_duration(found.exposure)}" if found.exposure is not None else "unknown"
    seen += f", RPO {format_duration(rpo)}" if rpo is not None else ", and no RPO is promised"
    seen += f"; {found.problem}" if found.problem else ""
    level = {Verdict.MET: Level.OK, Verdict.MISSED: Level.PROBLEM, Verdict.UNVERIFIED: Level.WARNING}[found.verdict]
    mend = "" if level is Level.OK else "a full backup starts a new chain of log; the agent has to be at work"
    yield Finding(name, "exposure", level, seen, mend)


def _backups(name: str, service: Service | None, store: Store, now: datetime) -> Iterator[Finding]:
    surveys = [look_at_backups(store.child(system)) for system in systems(store)]
    complete = [manifest for survey in surveys for manifest in survey.complete]
    for backup_id, error in [entry for survey in surveys for entry in survey.damaged]:
        yield Finding(name, backup_id, Level.PROBLEM, f"damaged: {error.message}", f"dr backup full {name}")
    leftovers = [backup_id for survey in surveys for backup_id in survey.incomplete]
    if leftovers:
        seen = f"interrupted, or being made now: {', '.join(leftovers)}"
        yield Finding(name, "incomplete backups", Level.WARNING, seen, "the next backup removes what was interrupted")
    if not complete:
        return  # said with the exposure
    newest = max(complete, key=lambda manifest: manifest.stopped_at)
    seen = f"{newest.backup_id}, {format_duration(now - newest.stopped_at)} old, of {len(complete)}"
    due = last_due(service.backup.full, now - _GRACE) if service is not None and service.backup is not None else None
    if due is not None and newest.stopped_at < due:
        seen = f"the backup that was due at {format_moment(due)} was not made; the newest is {seen}"
        mend = f"dr backup full {name}; then see to the schedule"
        yield Finding(name, "newest backup", Level.PROBLEM, seen, mend)
    else:
        yield Finding(name, "newest backup", Level.OK, seen)
