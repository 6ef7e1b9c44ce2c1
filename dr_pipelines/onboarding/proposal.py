"""From what was seen and asked for to what has to be done, and why. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.errors import ConfigurationError, UsageError
from dr_pipelines.onboarding import files, logs, role
from dr_pipelines.onboarding.items import Mode, Proposal
from dr_pipelines.onboarding.machine import Machine, Place
from dr_pipelines.onboarding.plan_entry import archive_timeout_of, plan_item, planned_service
from dr_pipelines.onboarding.role import Tried
from dr_pipelines.onboarding.server import Server
from dr_pipelines.onboarding.wishes import Wishes
from dr_pipelines.timing import format_bytes

__all__ = ["Seen", "propose"]

_MANAGED = "docs/your-database.md says what managed servers need"


@dataclass(frozen=True)
class Seen:
    """What was looked at before anything is proposed."""

    server: Server
    machine: Machine
    dsn: str
    """The administrator's; holds secrets."""
    tried: Tried | None
    """What came of logging in as the role; None where it is not there, or its password is not known."""
    administrator_refused: str | None = None
    """Why the administrator himself may not connect as for a backup, where that was tried."""


def propose(seen: Seen, wishes: Wishes) -> Proposal:
    """Every item, in the order in which it is to be done.

    Raises ConfigurationError where the server can be backed up in no way, UsageError and PlanError as the plan does.
    """
    server, machine = seen.server, seen.machine
    _refuse(seen, wishes)
    mode, reason = logs.choose_mode(wishes, server, machine)
    if machine.plan_problem is not None:
        raise ConfigurationError(machine.plan_problem, hint="dr plan check says what is wrong")
    _, service = planned_service(machine.plan_text, wishes.service)
    dsn = role.role_dsn(seen.dsn, server, machine, wishes)
    wanted = files.wanted_environment(machine, wishes, mode, dsn)
    new_password = server.role is None or wishes.reset_password
    after = files.environment_after(machine, wishes, wanted, new_password=new_password)
    timeout = archive_timeout_of(service, wishes)
    access = role.access_item(dsn, server, machine, wishes, seen.tried)
    items = [
        # Before the role: its password is in it.
        files.environment_item(machine, wishes, wanted, after),
        files.repository_item(machine, wishes),
        role.role_item(server, wishes, seen.tried),
        access,
        role.login_item(dsn, seen.tried, wishes, access),
        files.spool_item(machine, wishes, mode),
        files.script_item(machine) if mode is Mode.ARCHIVE else None,
        plan_item(machine.plan_text, machine.plan, wishes, server),
        files.unit_item(machine, wishes, server.value("data_directory")),
        logs.slot_item(server, wishes.service) if mode is Mode.STREAMING else None,
        logs.settings_item(mode, server, machine, files.script_path(machine), timeout, incremental=wishes.incremental),
        logs.restart_item(mode, server),
    ]
    found = tuple(_look(seen, wishes))
    kept = tuple(item for item in items if item is not None)
    return Proposal(
        service=wishes.service,
        mode=mode,
        mode_reason=reason,
        findings=found,
        items=kept,
        environment=after,
        agent_user=machine.agent_user,
        command=machine.command,
        new_password=wishes.password if new_password else None,
        next_steps=files.next_steps(machine, wishes),
    )


def _refuse(seen: Seen, wishes: Wishes) -> None:
    """Raise where there is nothing to propose."""
    server = seen.server
    if server.facts.in_recovery:
        raise ConfigurationError("this server is a standby", hint="give the primary's DSN")
    if server.facts.major < 15:
        raise ConfigurationError(
            f"this server is PostgreSQL {server.facts.version}, and 15 to 18 are supported", hint="upgrade it first"
        )
    if wishes.incremental and server.facts.major < 17:
        raise UsageError(f"--incremental takes PostgreSQL 17 or newer, and this is {server.facts.version}")
    if server.facts.tablespaces:
        raise ConfigurationError(
            f"the server has further tablespaces ({', '.join(server.facts.tablespaces)}), of which no backup is made",
            hint="move their tables and indexes to pg_default, then drop them",
        )
    if (why := role.cannot_replicate(server, seen.tried)) is not None:
        raise ConfigurationError(
            f"this server cannot be backed up as it is: {why}, so there is neither a base backup nor its log",
            hint=f"ask whoever runs it for a role with LOGIN and REPLICATION, and name it with --role; {_MANAGED}",
        )
    if server.rules is None and (refused := _refused_replication(seen)) is not None:
        raise ConfigurationError(
            f"this server cannot be backed up as it is: it refuses replication ({refused}), so there is neither a base "
            "backup nor its log",
            hint=f"ask whoever runs it to let {wishes.role} replicate from here (pg_hba.conf); {_MANAGED}",
        )
    if server.role is not None and seen.tried is None and not wishes.reset_password:
        raise ConfigurationError(
            f"the role {wishes.role} is there, and its password is not known here",
            hint="DR_ROLE_PASSWORD gives it; --reset-password gives the role a new one; --role names another",
        )


def _refused_replication(seen: Seen) -> str | None:
    """The server's words to somebody who may replicate, where it is not ours to change its pg_hba.conf."""
    if seen.tried is not None:
        return seen.tried.replication if seen.tried.login is None else None
    return seen.administrator_refused


def _look(seen: Seen, wishes: Wishes) -> Iterator[Finding]:
    """What was seen, and what is worth a warning."""
    server, machine = seen.server, seen.machine
    facts, administrator = server.facts, server.administrator
    size = format_bytes(facts.size)
    yield Finding(
        "the server", "version", Level.OK, f"PostgreSQL {facts.version}, {size}, system {facts.system_identifier}"
    )
    rights = "a superuser" if administrator.superuser else "no superuser"
    yield Finding("the server", "administrator", Level.OK, f"{administrator.name}, {rights}")
    archiver = logs.archiver_of_server(server)
    whose = "ours" if archiver.is_ours else archiver.owner or "nobody's"
    seen_log = f"archive_mode {facts.archive_mode}, archive_command {whose}, wal_level {server.value('wal_level')}"
    yield Finding("the server", "log", Level.OK, seen_log)
    yield from _warn_of_server(server)
    yield from _warn_of_machine(machine, wishes, facts.size)


def _warn_of_server(server: Server) -> Iterator[Finding]:
    free = int(server.value("max_wal_senders")) - server.senders_in_use
    if free < 2:
        seen, mend = (
            f"{max(free, 0)} of {server.value('max_wal_senders')} are free",
            "raise max_wal_senders, then restart",
        )
        yield Finding("the server", "senders", Level.WARNING, seen, mend)
    theirs = logs.archiver_of_server(server).owner is not None and server.facts.archive_mode != "off"
    if theirs and server.archiver_fails:
        seen = f"archive_command fails, and every base backup waits for it: {server.archive_command}"
        yield Finding("the server", "the archiver", Level.PROBLEM, seen, "the server's own log says why; mend it first")
    if not server.facts.data_checksums:
        seen = "off: what a disk damaged is backed up as if it were right"
        yield Finding("the server", "data checksums", Level.WARNING, seen, "pg_checksums --enable, while it is stopped")
    for name in ("fsync", "full_page_writes"):
        if server.value(name) == "off":
            seen = "off: a crash of the machine can ruin the data, and backups of it"
            yield Finding("the server", name, Level.PROBLEM, seen, f"{name} = on, then reload the server")


def _warn_of_machine(machine: Machine, wishes: Wishes, size: int) -> Iterator[Finding]:
    area = "this machine"
    where = "the server is here" if machine.server_is_here else "the server is elsewhere, or cannot be seen from here"
    yield Finding(area, "place", Level.OK, f"{where}; the agent runs as {machine.agent_user}")
    if machine.beside_the_data:
        seen = f"{wishes.repository} lies on the disk that the database lies on: one loss takes both"
        yield Finding(area, "the repository", Level.WARNING, seen, "another disk, another machine, or an S3 bucket")
    if machine.place is Place.REFUSED:
        yield Finding(area, "the repository", Level.PROBLEM, machine.place_problem, "see to it, or give another place")
    if machine.free is not None and machine.free < size:
        seen = f"{format_bytes(machine.free)} free for a server of {format_bytes(size)}"
        yield Finding(
            area, "room in the repository", Level.WARNING, seen, "backups are smaller than that by compression alone"
        )
    if wishes.agent_host is None and machine.spool_free is not None and machine.spool_free < 1 << 30:
        seen = f"{format_bytes(machine.spool_free)} free: a full spool fills pg_wal, and that stops the server"
        yield Finding(area, "room in the spool", Level.WARNING, seen, "make room, or give another --spool")
    if machine.binaries is None:
        seen = "none of the server's version: no backup can be made or restored on this machine"
        yield Finding(area, "PostgreSQL", Level.PROBLEM, seen, "apt install postgresql of that version")
    if wishes.agent_host is None and not machine.agent_can_run:
        seen = f"{machine.agent_user}, whom the agent is to run as, cannot execute {machine.command}"
        mend = (
            "install dr_pipelines where every user can reach it, below /opt say, or name another user with --agent-user"
        )
        yield Finding(area, "the agent", Level.PROBLEM, seen, mend)
    elif wishes.agent_host is None and machine.out_of_reach is not None:
        mend = "let that user in, or name another place (--repository, --spool, DR_PLAN, DR_STATE_DIR) or --agent-user"
        yield Finding(area, "the agent", Level.PROBLEM, machine.out_of_reach, mend)
