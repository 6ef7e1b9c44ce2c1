"""Markers: what each writer noted outside the database, and what the database has of it.

A writer's log is text, one line a note, each appended by one write. Moments are of the wall clock, ISO 8601 in UTC.

    W <writer> <moment>         the first line: whose log it is
    A <seq> <moment>            this row's commit is about to be asked for
    K <seq> <moment>            the commit was acknowledged
    R <seq> <moment> <reason>   the transaction failed by itself and left nothing; the same seq comes again
    E <moment> <reason>         the writer ended; an attempt that is open here has a fate that nobody knows

Rows are numbered from 1 and written one after another: seq is never attempted while the one before is open.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Self

from psycopg import Connection

from dr_pipelines.timing import format_moment, parse_moment

__all__ = ["Attempt", "MarkLog", "Note", "WriterMarks", "read_marks", "recovered_marks"]


class Note(StrEnum):
    """The kinds of lines in a writer's log."""

    WRITER = "W"
    ATTEMPTED = "A"
    ACKNOWLEDGED = "K"
    RETRIED = "R"
    ENDED = "E"


@dataclass(frozen=True)
class Attempt:
    """One row whose commit was asked for; `acknowledged_at` is None where no answer was noted."""

    seq: int
    attempted_at: datetime
    acknowledged_at: datetime | None = None


@dataclass(frozen=True)
class WriterMarks:
    """All that one writer noted, in the order of its rows; what it knows to have failed is not there."""

    writer: int
    attempts: tuple[Attempt, ...]


class MarkLog:
    """The writing side of a log: what was noted stays when the writer is killed."""

    def __init__(self, path: Path, writer: int, started_at: datetime) -> None:
        """Begin a new log. Raises FileExistsError: a log is of one run of one writer."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._append(Note.WRITER, str(writer), format_moment(started_at))

    def attempted(self, seq: int, moment: datetime) -> None:
        """To be noted before the commit is asked for."""
        self._append(Note.ATTEMPTED, str(seq), format_moment(moment))

    def acknowledged(self, seq: int, moment: datetime) -> None:
        """To be noted after the commit was acknowledged."""
        self._append(Note.ACKNOWLEDGED, str(seq), format_moment(moment))

    def retried(self, seq: int, moment: datetime, reason: str) -> None:
        """To be noted where it is certain that the transaction left nothing."""
        self._append(Note.RETRIED, str(seq), format_moment(moment), reason)

    def ended(self, moment: datetime, reason: str) -> None:
        """The last note of a writer that was not killed."""
        self._append(Note.ENDED, format_moment(moment), reason)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, note: Note, *words: str) -> None:
        line = (" ".join([note, *" ".join(words).split()]) + "\n").encode()
        if os.write(self._file, line) != len(line):
            raise OSError("a note was written in part: the disk of the writer's log is full")


@dataclass
class _Reading:
    """The state of a log while it is read: which row is open, and whether it may be attempted again."""

    writer: int | None = None
    attempts: list[Attempt] = field(default_factory=list)
    is_open: bool = False

    def take(self, line: str) -> None:
        """Take the next line. Raises ValueError where it cannot stand here."""
        kind, *words = line.split(" ")
        note = Note(kind)
        if (note is Note.WRITER) != (self.writer is None):
            raise ValueError("a log has one line that names its writer, the first")
        if note is Note.ENDED:
            parse_moment(words[0] if words else "")
            return
        if len(words) < 2 or (len(words) > 2 and note is not Note.RETRIED):
            raise ValueError("expected a number and a moment")
        number, moment = _number(words[0]), parse_moment(words[1])
        match note:
            case Note.WRITER:
                self.writer = number
            case Note.ATTEMPTED:
                self._expect(number, None if self.is_open else len(self.attempts) + 1)
                self.attempts.append(Attempt(number, moment))
                self.is_open = True
            case Note.ACKNOWLEDGED:
                self._expect(number, len(self.attempts) if self.is_open else None)
                self.attempts[-1] = Attempt(number, self.attempts[-1].attempted_at, moment)
                self.is_open = False
            case Note.RETRIED:
                self._expect(number, len(self.attempts) + (not self.is_open))
                if self.is_open:
                    self.attempts.pop()
                    self.is_open = False

    def _expect(self, number: int, expected: int | None) -> None:
        if expected is None:
            raise ValueError(f"row {len(self.attempts)} is still open" if self.is_open else "no row is open")
        if number != expected:
            raise ValueError(f"expected row {expected}")


def read_marks(path: Path) -> WriterMarks:
    """Read a writer's log. A last line without its end is what a killed writer leaves, and is passed over.

    What follows the writer's last note is read like the rest: claims are judged where they are measured. Raises
    ValueError that names file and line where the log is not what a writer writes.
    """
    reading = _Reading()
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            reading.take(line.decode())
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {line.decode(errors='replace')!r}: {error}") from None
    if reading.writer is None:
        raise ValueError(f"{path}:1: no writer is named: it was killed before it began, or this is no writer's log")
    return WriterMarks(reading.writer, tuple(reading.attempts))


def recovered_marks(connection: Connection) -> Mapping[int, tuple[tuple[int, datetime], ...]]:
    """By writer: number and time stamp of each row that the database holds, in the order of the numbers."""
    found: dict[int, list[tuple[int, datetime]]] = {}
    for writer, seq, written_at in connection.execute("SELECT writer, seq, written_at FROM markers ORDER BY 1, 2"):
        found.setdefault(writer, []).append((seq, written_at.astimezone(UTC)))
    return MappingProxyType({writer: tuple(rows) for writer, rows in found.items()})


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ValueError(f"{word!r} is not a number")
    return int(word)
