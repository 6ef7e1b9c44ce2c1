"""What a restore would take, for `dr restore --dry-run`: nothing is changed."""

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from dr_pipelines.engines.postgres import coverage, target
from dr_pipelines.engines.postgres.room import require_space
from dr_pipelines.engines.postgres.timelines import Timeline
from dr_pipelines.errors import LogGap
from dr_pipelines.processes.postgres import Binaries, find_binaries
from dr_pipelines.runbooks.database_restore import Assessment, Surroundings, estimate_steps, plan_restore
from dr_pipelines.runbooks.estimate import RestoreEstimate
from dr_pipelines.runbooks.execution import Execution
from dr_pipelines.runbooks.request import RestoreRequest
from dr_pipelines.timing import format_bytes, format_moment

__all__ = ["Estimate", "estimate", "refuse_early"]


@dataclass(frozen=True)
class Estimate:
    """What would be restored, from what and to where."""

    repository: str
    request: RestoreRequest
    planned: Assessment
    covered_from: datetime
    covered_to: datetime | None
    free_bytes: int
    binaries: Binaries
    timelines: tuple[Timeline, ...]
    expected: RestoreEstimate

    def document(self) -> dict[str, object]:
        """As JSON values; sizes in bytes."""
        planned, destination = self.planned, self.request.destination
        return {
            "dry_run": True,
            "repository": self.repository,
            "service": self.request.service,
            "to": self.request.target_time or "latest",
            "covered_from": self.covered_from,
            "covered_to": self.covered_to,
            "gap": planned.gap,
            "doubts": list(planned.doubts),
            "backup_id": planned.backup_id,
            "based_on": list(planned.links[:-1]),
            "system_identifier": planned.system_identifier,
            "stored_bytes": planned.stored_bytes,
            "raw_bytes": planned.raw_bytes,
            "log_files": len(planned.files),
            "log_bytes": planned.log_bytes,
            "log_end": planned.log_end,
            "timeline": planned.timeline,
            "timelines": [
                {
                    "timeline": each.number,
                    "left_timeline": each.left.timeline if each.left is not None else None,
                    "left_at": str(each.left.at) if each.left is not None else None,
                    "from": each.begun_at,
                    "until": each.until,
                }
                for each in self.timelines
            ],
            "target": str(destination) if destination is not None else None,
            "needed_bytes": planned.room.least,
            "enough_bytes": planned.room.enough,
            "free_bytes": self.free_bytes,
            "postgres": self.binaries.version,
            "postgres_bin": str(self.binaries.folder),
            "estimate": self.expected.document(),
        }

    def show(self, console: Console) -> None:
        """For a person."""
        planned, request = self.planned, self.request
        lines = {
            "repository": self.repository,
            "covered": f"{format_moment(self.covered_from)} to {_moment(self.covered_to)}",
            "to": format_moment(request.target_time) if request.target_time else "latest",
            "backup": f"{planned.title}, {format_bytes(planned.stored_bytes)} to fetch, "
            f"{format_bytes(planned.raw_bytes)} to write",
            "log": f"{len(planned.files)} files, {format_bytes(planned.log_bytes)} to replay, up to {planned.log_end}",
            "timeline": planned.others or str(planned.timeline),
            "gap": planned.gap,
            "damaged": "; ".join(planned.doubts) or None,
            "target": f"{request.destination or 'none given'}, {format_bytes(self.free_bytes)} free",
            "room": f"{format_bytes(planned.room.least)} needed at least, {format_bytes(planned.room.enough)} by an "
            "upper estimate of what the log adds",
            "with": f"PostgreSQL {self.binaries.version} in {self.binaries.folder}",
        }
        for name, value in lines.items():
            if value is not None:
                console.print(f"{name + ':':<12}{value}")
        console.print(f"{'estimate:':<12}{self.expected.told}")
        for step in self.expected.steps:
            console.print(f"  {step.step}: {step.range}; {step.told}")
        console.print("nothing was done: this was a dry run")


def estimate(around: Surroundings, request: RestoreRequest, *, allow_gap: bool) -> Estimate:
    """Look at the repository, the binaries and the target. Raises what would stop the restore."""
    planned = refuse_early(around, request, allow_gap=allow_gap)
    store = coverage.newest_system(around.repository.service(request.service))
    covered = coverage.choose(store, None, timeline=planned.timeline)
    return Estimate(
        repository=around.repository.url,
        request=request,
        planned=planned,
        covered_from=covered.earliest,
        covered_to=covered.recovery_point,
        free_bytes=shutil.disk_usage(_existing(Path(planned.target))).free,
        binaries=find_binaries(around.settings, planned.major),
        timelines=tuple(covered.timelines.values()),
        expected=estimate_steps(around, planned),
    )


def refuse_early(around: Surroundings, request: RestoreRequest, *, allow_gap: bool) -> Assessment:
    """Raise what would stop the restore, as far as can be seen beforehand; else what would be restored."""
    execution = Execution(
        id="dry-run",
        kind="restore",
        runbook="database_restore",
        service=request.service,
        outage_started_at=None,
        started_at=around.clock.wall(),
        target_time=request.target_time,
        timeline=request.timeline,
        reason=request.reason,
        requested_by="",
        plan_sha256=None,
    )
    planned = plan_restore(around, execution, request.destination, request.backup_id)
    if planned.gap and not allow_gap:
        raise LogGap(planned.gap, hint="--allow-gap restores up to the hole")
    if request.destination is not None:
        _check_target(around, planned)
    find_binaries(around.settings, planned.major)
    return planned


def _check_target(around: Surroundings, planned: Assessment) -> None:
    place = Path(planned.target)
    if scarce := require_space(place, planned.room):
        around.notes.warning(scarce)
    note = target.read_note(place)
    # An unfinished restore of the same backup would be gone on with.
    execution_id = note.execution_id if note is not None else planned.execution.id
    target.check(place, target.Note(execution_id, planned.backup_id, planned.system_identifier), around.identity)


def _existing(place: Path) -> Path:
    while not place.exists():
        place = place.parent
    return place


def _moment(moment: datetime | None) -> str:
    return format_moment(moment) if moment is not None else "an unknown moment: no agent has proven one"
