"""An application: a client that follows its connection file, asks and writes, and reconnects by itself.

    DR_APPLICATION_DSN='service=database user=...' PGSERVICEFILE=... python -m dr_pipelines.lab.application --log FILE

It notes each answer and each failure outside the database, one line a note, each appended by one write; moments are of
the wall clock, ISO 8601 in UTC. It ends with exit code 0 on SIGTERM.

    B <moment>                      the first line: it began
    S <moment> <address>            a query and a write were answered at that host and port
    F <moment> <address> <reason>   they were not
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

from dr_pipelines.errors import ConfigurationError, DrError, UsageError
from dr_pipelines.timing import Clock, SystemClock, format_moment, parse_moment

__all__ = ["Note", "main", "read_notes"]

_EVERY = 0.1
"""Seconds between two questions, and between two attempts to get an answer."""
_STOP = (signal.SIGTERM, signal.SIGINT)
_ASK = "SELECT id FROM guests ORDER BY id LIMIT 1"
_WRITE = "INSERT INTO messages (guest_id, body) VALUES (%s, 'Is anybody there?')"


@dataclass(frozen=True)
class Note:
    """One line: whether it was answered, when, where."""

    answered: bool
    at: datetime
    address: str


def read_notes(path: Path) -> tuple[Note, ...]:
    """What an application noted, oldest first; a last line without its end is passed over.

    Raises ValueError that names file and line where that is not what an application writes.
    """
    notes = []
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        kind, *words = line.decode(errors="replace").split(" ")
        try:
            if (kind == "B") != (number == 1) or kind not in "BSF" or (kind != "B" and len(words) < 2):
                raise ValueError("it cannot stand here")
            moment = parse_moment(words[0] if words else "")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {line.decode(errors='replace')!r}: {error}") from None
        if kind != "B":
            notes.append(Note(kind == "S", moment, words[1]))
    if not lines:
        raise ValueError(f"{path}:1: nothing is noted: the application was killed before it began")
    return tuple(notes)


class _Notebook:
    def __init__(self, path: Path, clock: Clock) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._clock = clock
        self.note("B")

    def note(self, kind: str, *words: str) -> None:
        line = " ".join([kind, format_moment(self._clock.wall()), *" ".join(words).split()]) + "\n"
        if os.write(self._file, line.encode()) != len(line.encode()):
            raise OSError("a note was written in part: the disk of the application's log is full")


def _run(dsn: str, notebook: _Notebook) -> None:
    connection: psycopg.Connection | None = None
    address = "nowhere"
    while signal.sigtimedwait(_STOP, _EVERY) is None:
        try:
            if connection is None:
                connection = psycopg.connect(dsn, application_name="application", connect_timeout=2)
                address = f"{connection.info.host}:{connection.info.port}"
            row = connection.execute(_ASK).fetchone()
            connection.execute(_WRITE, row)
            connection.commit()
        except psycopg.Error as error:
            notebook.note("F", address, f"{type(error).__name__}: {error}")
            if connection is not None:
                connection.close()
            connection, address = None, "nowhere"
        else:
            notebook.note("S", address)
    if connection is not None:
        connection.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until it is told to end; returns the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    parser = argparse.ArgumentParser(prog="application", description="Ask and write, and note each answer.")
    parser.add_argument("--log", type=Path, required=True, help="its log, outside the database; must not exist")
    arguments = parser.parse_args(argv)
    try:
        dsn = os.environ.get("DR_APPLICATION_DSN")
        if not dsn:
            raise ConfigurationError("DR_APPLICATION_DSN is not set", hint="set it to how the application connects")
        try:
            notebook = _Notebook(arguments.log, SystemClock())
        except FileExistsError:
            raise UsageError(f"{arguments.log} is there already", hint="a log is of one run; name a new file") from None
        _run(dsn, notebook)
    except DrError as error:
        print(f"application: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
