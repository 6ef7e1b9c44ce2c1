"""The lab's application, started beside the database's host: its connection file and its notes are not on that host."""

import sys
from datetime import timedelta
from pathlib import Path

from psycopg.conninfo import make_conninfo

from dr_pipelines.errors import ProcessError
from dr_pipelines.lab.application import read_notes
from dr_pipelines.lab.database import DATABASE, LabDatabase
from dr_pipelines.processes.identity import end_of, open_folder
from dr_pipelines.processes.leases import Leases
from dr_pipelines.runbooks.clients import lead_file_to
from dr_pipelines.timing import wait_until

__all__ = ["connection_file", "notes_of_application", "start_application"]


def connection_file(lab: LabDatabase) -> Path:
    """What the application follows: a libpq connection service file."""
    return lab.folder / "clients" / "pg_service.conf"


def notes_of_application(lab: LabDatabase) -> Path:
    """What the application notes."""
    return lab.marks / "application.log"


def start_application(lab: LabDatabase, service: str, leases: Leases, *, ttl: timedelta) -> None:
    """Start the application; returns when it has had its first answer. Raises ProcessError where it gets none."""
    file = connection_file(lab)
    open_folder(file.parent)
    lead_file_to(file, service, ("127.0.0.1", str(lab.port)))
    log = lab.folder / "application.out"
    dsn = make_conninfo("", service=service, user="postgres", password=lab.password, dbname=DATABASE)
    leases.start(
        [sys.executable, "-m", "dr_pipelines.lab.application", "--log", str(notes_of_application(lab))],
        kind="application",
        owner=lab.owner,
        env={"DR_APPLICATION_DSN": dsn, "PGSERVICEFILE": str(file)},
        log=log,
        ttl=ttl,
    )
    if not wait_until(lambda: _has_answer(lab), timeout=30):
        raise ProcessError(f"the lab's application gets no answer: {end_of(log, lines=3)}")


def _has_answer(lab: LabDatabase) -> bool:
    try:
        return any(note.answered for note in read_notes(notes_of_application(lab)))
    except (FileNotFoundError, ValueError):
        return False
