"""A writer: a process that does what a hotel's staff and guests do, and notes each row outside the database.

    DR_WRITER_DSN=... python -m dr_pipelines.lab.writers --writer 1 --log /path/writer-1.log --rate 50

The connection string comes from the environment, since arguments are readable by everybody. It ends with exit code 0
when the connection is lost or on SIGTERM, once the transaction that it is in is over; with another where it could not
begin or met an error that is none of a database's everyday ones.
"""

import argparse
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import errors

from dr_pipelines.errors import ConfigurationError, DrError, ProcessError, UsageError
from dr_pipelines.lab.marks import MarkLog
from dr_pipelines.timing import Clock, SystemClock

__all__ = ["main"]

# Such a transaction is known to have left nothing, and may well succeed the next time.
_PASSING = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable, errors.QueryCanceled)
_STOP = (signal.SIGTERM, signal.SIGINT)
_PAUSE_BEFORE_RETRY = 0.01

_BOOKING = """
WITH booked AS (
    INSERT INTO reservations (guest_id, room_id, arrives_on, leaves_on, status)
    VALUES (%(guest)s, %(room)s, current_date + %(days)s, current_date + %(days)s + %(nights)s, 'booked')
    RETURNING id, room_id
)
INSERT INTO payments (reservation_id, amount_cents)
SELECT booked.id, rooms.rate_cents * %(nights)s::bigint FROM booked JOIN rooms ON rooms.id = booked.room_id
"""
_MESSAGE = "INSERT INTO messages (guest_id, body) VALUES (%s, %s)"
_MARKER = "INSERT INTO markers (writer, seq, written_at) VALUES (%s, %s, %s)"
_BODIES = (
    "Is the room ready before three?",
    "We will be two more for breakfast tomorrow.",
    "Thank you, the key works now.",
    "Please wake us at six.",
)


@dataclass
class Writer:
    """Writes rows 1, 2, 3 and so on until it is told to end or the connection is lost."""

    number: int
    connection: psycopg.Connection
    log: MarkLog
    clock: Clock
    guests: Sequence[int]
    rooms: Sequence[int]
    draw: random.Random

    def run(self, rate: float) -> None:
        """Write `rate` rows a second; after a pause of the server it does not hurry to make up for it."""
        seq, due = 1, self.clock.monotonic()
        while not _told_to_stop(due - self.clock.monotonic()):
            try:
                done = self._write(seq)
            except psycopg.Error as error:
                self.log.ended(self.clock.wall(), f"{type(error).__name__}: {error}")
                if _left_nothing(error):
                    raise
                return
            seq += done
            pause = 1 / rate if done else _PAUSE_BEFORE_RETRY
            due = max(due + pause, self.clock.monotonic())
        self.log.ended(self.clock.wall(), "told to end")

    def _write(self, seq: int) -> bool:
        """One transaction; False where it failed by itself. Raises psycopg.Error where there is no going on."""
        try:
            self._do_business()
            moment = self.clock.wall()
            self.connection.execute(_MARKER, (self.number, seq, moment))
            self.log.attempted(seq, moment)
            self.connection.commit()
        except psycopg.Error as error:
            if not _left_nothing(error):
                raise
            self.log.retried(seq, self.clock.wall(), f"{type(error).__name__}: {error}")
            self.connection.rollback()
            if isinstance(error, _PASSING):
                return False
            raise
        self.log.acknowledged(seq, self.clock.wall())
        return True

    def _do_business(self) -> None:
        guest = self.draw.choice(self.guests)
        if self.draw.random() < 0.5:
            self.connection.execute(_MESSAGE, (guest, self.draw.choice(_BODIES)))
            return
        stay = {"days": self.draw.randrange(1, 300), "nights": self.draw.randrange(1, 10)}
        self.connection.execute(_BOOKING, {"guest": guest, "room": self.draw.choice(self.rooms), **stay})


def _left_nothing(error: psycopg.Error) -> bool:
    """Whether the transaction is certain to be rolled back.

    That is so when the server says ERROR. After FATAL, or with no word from the server, a commit's fate is unknown.
    """
    return error.diag.severity_nonlocalized == "ERROR"


def _told_to_stop(seconds: float) -> bool:
    """Wait until then, or until a signal asks to end; the signals are blocked, so none breaks into a transaction."""
    return signal.sigtimedwait(_STOP, max(0.0, seconds)) is not None


def _connect(dsn: str, writer: int) -> psycopg.Connection:
    try:
        connection = psycopg.connect(dsn, application_name=f"writer-{writer}", connect_timeout=10)
    except psycopg.Error as error:
        raise ProcessError(f"writer {writer} cannot reach the database: {error}") from None
    # An acknowledgement must mean that the row is on the server's disk, whatever the server's settings say.
    connection.execute("SET synchronous_commit TO on")
    connection.commit()
    return connection


def _begin(connection: psycopg.Connection, writer: int, log: MarkLog, clock: Clock) -> Writer:
    """Look at what the hotel has. Raises UsageError where a writer of this number cannot write here."""
    before = connection.execute("SELECT max(seq) FROM markers WHERE writer = %s", (writer,)).fetchone()
    if before is None or before[0] is not None:
        raise UsageError(f"writer {writer} has written to this database before", hint="give it another number")
    guests, rooms = (
        [int(row[0]) for row in connection.execute(f"SELECT id FROM {table} ORDER BY id LIMIT 10000")]
        for table in ("guests", "rooms")
    )
    connection.commit()
    if not guests or not rooms:
        raise UsageError("the hotel has no guests or no rooms", hint="load data first")
    return Writer(writer, connection, log, clock, guests, rooms, random.Random(writer))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="writers", description="Write to the hotel's database and note each row.")
    parser.add_argument("--writer", type=int, required=True, help="this writer's number")
    parser.add_argument("--log", type=Path, required=True, help="its log, outside the database; must not exist")
    parser.add_argument("--rate", type=float, default=20.0, help="rows a second")
    arguments = parser.parse_args(argv)
    if arguments.rate <= 0 or arguments.writer < 0:
        parser.error("the rate must be above 0 and the writer's number not below it")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one writer until it ends; returns the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    arguments, clock = _arguments(argv), SystemClock()
    try:
        dsn = os.environ.get("DR_WRITER_DSN")
        if not dsn:
            raise ConfigurationError("DR_WRITER_DSN is not set", hint="set it to the database's connection string")
        try:
            log = MarkLog(arguments.log, arguments.writer, clock.wall())
        except FileExistsError:
            raise UsageError(f"{arguments.log} is there already", hint="a log is of one run; name a new file") from None
        with log, _connect(dsn, arguments.writer) as connection:
            _begin(connection, arguments.writer, log, clock).run(arguments.rate)
    except DrError as error:
        print(f"writer {arguments.writer}: {error}", file=sys.stderr)
        return error.exit_code
    except psycopg.Error as error:
        print(f"writer {arguments.writer}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
