"""Is a running server set up so that its log can be streamed, and does a commit wait for whom it should?

What is read and what it means are kept apart: `read_streaming` asks, `judge_streaming` is pure.
"""

import re
from dataclasses import dataclass
from datetime import timedelta

from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.postgres.connection import Connection, scalar
from dr_pipelines.timing import format_bytes

__all__ = ["Receiving", "SlotState", "StreamingSetup", "judge_streaming", "read_streaming"]


@dataclass(frozen=True)
class SlotState:
    """The slot that the agent's receiver takes the log through."""

    active: bool
    wal_status: str | None
    held_bytes: int


@dataclass(frozen=True)
class Receiving:
    """A receiver or standby whose confirmation commits wait for."""

    name: str
    flushes: bool
    """It says what it has on disk; one that does not lets no commit through."""


@dataclass(frozen=True)
class StreamingSetup:
    """A server's setup, as far as streaming depends on it."""

    slot_name: str
    slot: SlotState | None
    keep_size: int | None
    """Bytes that a slot may hold (max_slot_wal_keep_size); None: any number."""
    synchronous_names: str
    synchronous_commit: str
    awaited: tuple[Receiving, ...] | None
    """Whom commits wait for; None where the role may not see that."""


def read_streaming(connection: Connection, slot_name: str) -> StreamingSetup:
    """Ask a running server."""
    found = connection.execute(
        "SELECT active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint"
        " FROM pg_replication_slots WHERE slot_name = %s",
        (slot_name,),
    ).fetchone()
    limit = int(scalar(connection, "SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"))
    names = str(scalar(connection, "SHOW synchronous_standby_names"))
    awaited = None
    if scalar(connection, "SELECT pg_has_role('pg_read_all_stats', 'USAGE')"):
        rows = connection.execute(
            "SELECT application_name, flush_lsn IS NOT NULL, sync_state FROM pg_stat_replication ORDER BY 1"
        ).fetchall()
        # PostgreSQL calls asynchronous whoever does not flush, and waits for it all the same where it is named.
        awaited = tuple(
            Receiving(str(name), bool(flushes))
            for name, flushes, state in rows
            if state in ("sync", "quorum") or (not flushes and _is_named(str(name), names))
        )
    return StreamingSetup(
        slot_name=slot_name,
        slot=SlotState(bool(found[0]), found[1], max(int(found[2] or 0), 0)) if found else None,
        keep_size=limit << 20 if limit >= 0 else None,
        synchronous_names=names,
        synchronous_commit=str(scalar(connection, "SHOW synchronous_commit")),
        awaited=awaited,
    )


def _is_named(receiver: str, names: str) -> bool:
    """Whether synchronous_standby_names, such as `FIRST 1 (one, "two")`, names it."""
    named = {quoted or plain.lower() for quoted, plain in re.findall(r'"([^"]+)"|([\w*]+)', names)}
    return "*" in named or receiver.lower() in {name.lower() for name in named}


def judge_streaming(
    setup: StreamingSetup, area: str, *, streams: bool, rpo: timedelta | None, agent_is_here: bool
) -> tuple[Finding, ...]:
    """What the setup means. `streams`: the agent is to stream; `agent_is_here`: it runs on the database's own host."""
    entries = []
    if streams or setup.slot is not None:
        entries += [_slot(setup, streams=streams), _keep_size(setup)]
    entries += _commits(setup, streams=streams, rpo=rpo, agent_is_here=agent_is_here)
    return tuple(Finding(area, *entry) for entry in entries)


_Entry = tuple[str, Level, str, str]


def _slot(setup: StreamingSetup, *, streams: bool) -> _Entry:
    slot, name = setup.slot, setup.slot_name
    looked_at, drop = "the replication slot", f"SELECT pg_drop_replication_slot('{name}')"
    if slot is None:
        return looked_at, Level.PROBLEM, f"there is no {name}: the agent has never streamed", "dr agent --stream"
    held = f"{name} holds {format_bytes(slot.held_bytes)} of the log"
    if not streams:
        seen = f"{held}, though the agent does not stream: it will fill pg_wal"
        return looked_at, Level.PROBLEM, seen, f"{drop}; or dr agent --stream"
    if slot.wal_status == "lost":
        seen = f"the server has let go of the log that {name} was to hold: there is a hole in what is stored"
        return looked_at, Level.PROBLEM, seen, "the agent makes it anew when it runs; then dr backup full"
    if slot.wal_status == "unreserved":
        seen = f"{held}, more than max_slot_wal_keep_size, and is lost at the next checkpoint"
        return looked_at, Level.PROBLEM, seen, "is the agent running, and the repository in reach?"
    if not slot.active:
        return looked_at, Level.PROBLEM, f"{held}, and nobody receives it", "dr agent --stream; its log says why"
    return looked_at, Level.OK, held, ""


def _keep_size(setup: StreamingSetup) -> _Entry:
    looked_at = "max_slot_wal_keep_size"
    if setup.keep_size is None:
        seen = "-1: while the agent is away the log is kept without end, until pg_wal is full and the server stops"
        mend = "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB', less than is free beside pg_wal; then reload"
        return looked_at, Level.PROBLEM, seen, mend
    return looked_at, Level.OK, format_bytes(setup.keep_size), ""


def _commits(setup: StreamingSetup, *, streams: bool, rpo: timedelta | None, agent_is_here: bool) -> list[_Entry]:
    looked_at, zero = "synchronous commits", rpo == timedelta(0)
    names = setup.synchronous_names.strip()
    if not names:
        if not zero:
            return []
        seen = "no commit waits for anybody, so the last seconds are lost with the host, and an RPO of 0 is promised"
        mend = f"synchronous_standby_names = '{setup.slot_name}', with the agent on a host that survives"
        return [(looked_at, Level.PROBLEM, seen, mend)]
    if setup.awaited is None:
        seen = f"they wait for {names}; whether that confirms, this role may not see"
        return [(looked_at, Level.WARNING, seen, "GRANT pg_read_all_stats to it")]
    if not setup.awaited:
        seen = f"they wait for {names}, and nobody of that name is connected: no commit comes back"
        return [(looked_at, Level.PROBLEM, seen, "start the agent; or synchronous_standby_names = '', then reload")]
    silent = [each.name for each in setup.awaited if not each.flushes]
    if silent:
        seen = f"they wait for {', '.join(silent)}, which never says what it has on disk: no commit comes back"
        mend = "pg_receivewal has to run with --synchronous, as dr agent --stream runs it"
        return [(looked_at, Level.PROBLEM, seen, mend)]
    if setup.synchronous_commit in ("off", "local"):
        seen = f"synchronous_commit = {setup.synchronous_commit}: they do not wait for {names}"
        return [(looked_at, Level.PROBLEM if zero else Level.WARNING, seen, "synchronous_commit = on, then reload")]
    if streams and agent_is_here and any(each.name == setup.slot_name for each in setup.awaited):
        seen = "they wait for an agent on the database's own host: what it confirmed is lost with the host"
        return [(looked_at, Level.WARNING, seen, "run dr agent --stream on another host")]
    return [(looked_at, Level.OK, f"they wait for {', '.join(each.name for each in setup.awaited)}", "")]
