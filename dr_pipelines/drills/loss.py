"""What a drill's loss cost: the writers' notes compared with the rows of the database that came back."""

from datetime import datetime

import psycopg

from dr_pipelines.drills.measure import measure
from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.errors import DrError
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.database import LabDatabase
from dr_pipelines.lab.marks import read_marks, recovered_marks
from dr_pipelines.processes.leases import Leases
from dr_pipelines.runbooks.outcome import Loss
from dr_pipelines.runbooks.record import Rows

__all__ = ["measure_loss"]


def measure_loss(
    lab: LabDatabase,
    leases: Leases,
    writers: int,
    dsn: str,
    outage_started_at: datetime | None,
    recovery_point: datetime | None,
) -> Loss:
    """What the loss cost, with the database at `dsn` as what came back.

    Where notes or rows cannot be read, there is no figure, and a check that says why.
    """
    assert outage_started_at is not None
    try:
        lab_database.wait_for_writers(lab, leases, timeout=30)
        marks = [read_marks(lab.marks / f"writer-{number}.log") for number in range(1, writers + 1)]
        with connect(dsn) as connection:
            rows = recovered_marks(connection)
        measured = measure(
            marks,
            {writer: [seq for seq, _ in found] for writer, found in rows.items()},
            outage_started_at=outage_started_at,
            recovery_point=recovery_point,
        )
    except (ValueError, OSError, DrError, psycopg.Error) as error:
        text = str(error).strip()
        return Loss(None, f"not measured: {text}", None, None, (Check("markers_compared", None, text),))
    method = (
        "markers: outage's start minus the newest recovered row of the unbroken sequence, the worst of "
        f"{writers} writers; 0 where no acknowledged row is lost"
    )
    return Loss(
        rpo=measured.rpo,
        method=f"not measured: {measured.unmeasured}" if measured.unmeasured is not None else method,
        recovered_to=max((moment for found in rows.values() for _, moment in found), default=None),
        rows=Rows(acknowledged=measured.rows.acknowledged, recovered=measured.rows.recovered, lost=measured.rows.lost),
        checks=measured.checks,
    )
