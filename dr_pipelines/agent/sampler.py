"""Asks the server, once a second, what time it is and how far its log has come; in a thread of its own.

A server that hangs must not hold up the shipping, so nothing here is waited for.
"""

import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import psycopg

from dr_pipelines.engines.postgres.position import Sample
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.errors import ConfigurationError
from dr_pipelines.timing import Clock

__all__ = ["Answer", "Sampler", "Slot", "ask"]

_PATIENCE = 5.0
"""Seconds after its last answer from which on a server counts as away."""

_Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Slot:
    """What the server says of the replication slot that a receiver takes the log through."""

    active: bool
    """A receiver is connected."""
    wal_status: str | None
    """`reserved`, `extended`, `unreserved` or `lost` (pg_replication_slots)."""
    held_bytes: int
    """How much of the log the server keeps for it."""
    room_bytes: int | None
    """How much more it may hold before the server lets go of it; None: there is no limit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said: who it is, and where it stands."""

    major: int
    system_identifier: str
    segment_size: int
    sample: Sample
    slot: Slot | None = None
    """None where none was asked for, or there is none of that name."""


def ask(connection: _Connection, slot: str | None = None) -> Answer:
    """Ask once. Raises psycopg.Error, also of a standby, which has no insert position.

    The order is what makes a sample a proof: first the clock, then the snapshot (taken as the second statement begins),
    then the position. So what was acknowledged before the clock was read is before the position; and what has a number
    below the snapshot's and is not under way in it is before the position too.
    """
    (moment,) = _row(connection, "SELECT clock_timestamp()")
    lowest, following, lsn, file, system, size = _row(
        connection,
        "SELECT pg_snapshot_xmin(now.snapshot)::text, pg_snapshot_xmax(now.snapshot)::text,"
        " pg_current_wal_insert_lsn()::text, pg_walfile_name(pg_current_wal_insert_lsn()),"
        " (SELECT system_identifier::text FROM pg_control_system()),"
        " (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size')"
        " FROM (SELECT pg_current_snapshot() AS snapshot) AS now",
    )
    sample = Sample(
        at=moment.astimezone(UTC),
        lsn=Lsn.parse(lsn),
        timeline=int(file[:8], 16),
        next_xid=int(following),
        quiet=lowest == following,
    )
    major = connection.info.server_version // 10000
    return Answer(major, system, int(size), sample, _slot(connection, slot) if slot else None)


def _slot(connection: _Connection, name: str) -> Slot | None:
    found = connection.execute(
        "SELECT active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, safe_wal_size"
        " FROM pg_replication_slots WHERE slot_name = %s",
        (name,),
    ).fetchone()
    if found is None:
        return None
    active, status, held, room = found
    return Slot(active, status, max(int(held or 0), 0), room)


def _row(connection: _Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row


class Sampler(threading.Thread):
    """Collects answers until `stop`, connecting again whenever the connection is lost."""

    def __init__(self, dsn: str, *, clock: Clock, stop: threading.Event, every: float, slot: str | None = None) -> None:
        super().__init__(name="sampler", daemon=True)
        try:
            psycopg.conninfo.conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:
            # Its words would repeat a piece of the string, and that may be the password.
            raise ConfigurationError(
                "the server's connection string cannot be read", hint="see DR_DSN__<SERVICE>"
            ) from None
        self._dsn, self._clock, self._stop_event, self._every, self._slot = dsn, clock, stop, every, slot
        self._answers: deque[Answer] = deque(maxlen=3600)
        self._answered_at: float | None = None
        self._error: str | None = None

    def drain(self) -> list[Answer]:
        """The answers since the last call, oldest first."""
        found: list[Answer] = []
        while self._answers:
            found.append(self._answers.popleft())
        return found

    @property
    def up(self) -> bool:
        """Whether the server has answered lately."""
        return (
            self._error is None
            and self._answered_at is not None
            and self._clock.monotonic() - self._answered_at < _PATIENCE
        )

    @property
    def problem(self) -> str | None:
        """Why there is no answer; None where there is one, or where the first is still to come."""
        if self._error is not None:
            return self._error
        if self._answered_at is not None and not self.up:
            return "the server does not answer"
        return None

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                with psycopg.connect(
                    self._dsn,
                    autocommit=True,
                    connect_timeout=2,
                    application_name="dr_agent",
                    options="-c statement_timeout=2000",
                    tcp_user_timeout=5000,
                ) as connection:
                    self._ask_until_stopped(connection)
            except psycopg.Error as error:
                # A statement that failed with the connection still up (a standby, say) says why in its first line.
                self._error = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                self._stop_event.wait(self._every)

    def _ask_until_stopped(self, connection: _Connection) -> None:
        while not self._stop_event.is_set():
            self._answers.append(ask(connection, self._slot))
            self._answered_at, self._error = self._clock.monotonic(), None
            self._stop_event.wait(self._every)
