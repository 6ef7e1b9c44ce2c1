"""What is happening, told at the same time to a log and, as lines of JSON, to a file that another process reads.

A command that lets Dagster carry out a runbook names the file in DR_PROGRESS and shows what appears in it.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from dr_pipelines.errors import DrError
from dr_pipelines.runbooks.steps import Notes
from dr_pipelines.timing import Clock

__all__ = ["LOG_INTERVAL", "PROGRESS_VARIABLE", "Entry", "EntryKind", "ProgressReader", "Reporter"]

PROGRESS_VARIABLE = "DR_PROGRESS"
LOG_INTERVAL = 5.0
"""Seconds between two lines of a log that tell how far something is."""
_FILE_INTERVAL = 0.2


class EntryKind(StrEnum):
    """What a line tells."""

    NOTE = "note"
    WARNING = "warning"
    PROGRESS = "progress"
    STEP = "step"
    RECORD = "record"
    ERROR = "error"


class Entry(BaseModel):
    """One line of the file; what a kind has no use for is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime
    kind: EntryKind
    text: str
    """A note's or a warning's words, what is in progress, a step's name, a record's id, an error's message."""
    done: int | None = None
    """Of progress: how much of `total`; bytes or files."""
    total: int | None = None
    outcome: str | None = None
    """Of a step: started, done or failed."""
    code: str | None = None
    """Of an error: its stable name."""
    hint: str | None = None
    exit_code: int | None = None


class Reporter:
    """Takes notes, warnings and progress, from any thread; keeps progress to a line every few seconds in the log."""

    def __init__(self, log: Notes, clock: Clock, file: Path | None = None) -> None:
        self._log, self._clock, self._file = log, clock, file
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], float] = {}

    @classmethod
    def from_environment(cls, log: Notes, clock: Clock, environment: Mapping[str, str] = os.environ) -> "Reporter":
        """One that writes to the file that DR_PROGRESS names, where it names one."""
        file = environment.get(PROGRESS_VARIABLE)
        return cls(log, clock, Path(file) if file else None)

    def info(self, message: str) -> None:
        """A line for who watches."""
        self._log.info(message)
        self._append(EntryKind.NOTE, message)

    def warning(self, message: str) -> None:
        """A line that asks for attention."""
        self._log.warning(message)
        self._append(EntryKind.WARNING, message)

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of what is being done; the end is always told to the file."""
        if self._is_due("log", what, LOG_INTERVAL, first=False):
            self._log.info(f"{what}: {100 * done // total if total else 100} %")
        is_end = done >= total and self._is_due("end", what, float("inf"), first=True)
        if self._is_due("file", what, _FILE_INTERVAL, first=True) or is_end:
            self._append(EntryKind.PROGRESS, what, done=done, total=total)

    def record(self, record_id: str) -> None:
        """A record was stored."""
        self._append(EntryKind.RECORD, record_id)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tell of the start and the end of the body, and of the error that ended it."""
        self._append(EntryKind.STEP, name, outcome="started")
        try:
            yield
        except BaseException as error:
            self._append(EntryKind.STEP, name, outcome="failed")
            if isinstance(error, DrError):
                self._append(
                    EntryKind.ERROR, error.message, code=error.code, hint=error.hint, exit_code=error.exit_code
                )
            else:
                self._append(EntryKind.ERROR, f"{type(error).__name__}: {error}")
            raise
        self._append(EntryKind.STEP, name, outcome="done")

    def _is_due(self, where: str, what: str, interval: float, *, first: bool) -> bool:
        """Whether the last time is `interval` seconds ago; the first time is one where `first` says so."""
        now = self._clock.monotonic()
        with self._lock:
            last = self._told.get((where, what))
            if last is not None and now - last < interval:
                return False
            self._told[where, what] = now
        return first or last is not None

    def _append(self, kind: EntryKind, text: str, **more: int | str) -> None:
        if self._file is None:
            return
        fields = {"at": self._clock.wall(), "kind": kind, "text": text, **more}
        line = Entry.model_validate(fields).model_dump_json(exclude_none=True) + "\n"
        # One write to a file that is open for appending: lines of several threads and processes do not mix.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


class ProgressReader:
    """Reads the lines of a file while it grows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0

    def read(self) -> tuple[Entry, ...]:
        """What has been written since the last call; nothing where the file is not there yet."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return ()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return tuple(Entry.model_validate_json(line) for line in complete.splitlines())
