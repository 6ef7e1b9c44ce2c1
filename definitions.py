"""Dagster's code location: everything is put together here, from the recovery plan. workspace.yaml names this file."""

import dagster as dg

from assets.adherence import adherence_definitions
from assets.approval import approval_definitions
from assets.backup import backup_definitions
from assets.drill import drill_definitions
from assets.recovery import recovery_definitions
from assets.restore import restore_definitions
from assets.work import machine_plan
from sensors.archive import archive_definitions

plan = machine_plan()

defs = dg.Definitions.merge(
    backup_definitions(plan),
    archive_definitions(plan),
    recovery_definitions(plan),
    restore_definitions(plan),
    approval_definitions(),
    drill_definitions(plan),
    adherence_definitions(plan),
    dg.Definitions(
        # Steps follow one another in the run's own process: a process for each costs seconds of the RTO.
        executor=dg.in_process_executor,
        # What ops hand on lies below Dagster's home, so that a later run can go on from there.
        resources={"io_manager": dg.FilesystemIOManager()},
    ),
)
