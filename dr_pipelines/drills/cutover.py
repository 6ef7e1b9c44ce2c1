"""The drill's cutover: an application of the lab finds the server that takes the lost one's place, by itself.

Whoever asked for the drill approves it, unless it is to be approved by hand: the server whose place is taken was made
for the drill and killed by it. Only what the lab has made is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dr_pipelines.drills.measure import ACKNOWLEDGEMENT_TOLERANCE
from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.archive_script import install_archive_script
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.lab.application import Note, read_notes
from dr_pipelines.lab.clients import connection_file, notes_of_application
from dr_pipelines.lab.database import DATABASE, LabDatabase
from dr_pipelines.processes.ports import free_port
from dr_pipelines.repository.approvals import Approvals, Decision
from dr_pipelines.runbooks.cutover import achieved, cut_over
from dr_pipelines.runbooks.cutover_closing import restored_by
from dr_pipelines.runbooks.database_restore import Assessment, Surroundings, Validated
from dr_pipelines.runbooks.execution import Execution
from dr_pipelines.runbooks.handover import Handover, Means, Wish, begin_cutover
from dr_pipelines.runbooks.outcome import Restored
from dr_pipelines.timing import format_moment, wait_until

__all__ = ["Cutting", "application_checks", "first_answer"]

_PATIENCE = 30.0
"""Seconds in which the application finds the new server."""
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Cutting:
    """The cutover of one drill."""

    around: Surroundings
    execution: Execution
    lab: LabDatabase
    by_hand: bool

    @property
    def _wish(self) -> Wish:
        """At a port of its own, chosen once for all attempts."""
        note = self.lab.folder / "new-server.port"
        if not note.exists():
            draft = note.with_suffix(".draft")
            draft.write_text(str(free_port()))
            draft.rename(note)
        return Wish(_HOST, _HOST, int(note.read_text()), patience=timedelta(hours=1), despite_findings=True)

    @property
    def _means(self) -> Means:
        return Means(
            dsn=self.lab.dsn("postgres"),
            old=(_HOST, str(self.lab.port)),
            fence_command=None,
            switch_command=None,
            connection_file=connection_file(self.lab),
            spool=self.lab.folder / "new-host" / "spool",
            script=install_archive_script(self.around.settings.state_dir),
            streams=self.lab.log != "archive",
            sandbox=self.execution.id,
            is_drill=True,
            when_asked=(lambda approvals: None) if self.by_hand else self._approve,
        )

    def _approve(self, approvals: Approvals) -> None:
        now = self.around.clock.wall()
        approval = approvals.latest(now)
        assert approval is not None and approval.request is not None
        approvals.answer(
            Decision.APPROVED,
            target=approval.request.target,
            by=self.execution.requested_by or "the drill",
            now=now,
            reason="a drill, which made the old server and killed it",
            confirmed=tuple(approval.request.confirmations),
        )

    def carry_out(
        self, assessment: Assessment, server: RestoredServer, validated: Validated, run_id: str | None
    ) -> str | None:
        """Cut over, and wait until the application has got an answer; returns what went wrong of the new backup.

        Done again after an interruption it goes on where it was.
        """
        handover = begin_cutover(self.around, assessment, server, validated, self._means)
        done = cut_over(self.around, handover, self._wish, self._means, run_id)
        self._await_application()
        return done.backup_problem

    def _await_application(self) -> datetime | None:
        found: list[datetime | None] = []

        def has_answer() -> bool:
            found[:] = [first_answer(self._notes(), self._address)]
            return found[0] is not None

        wait_until(has_answer, timeout=_PATIENCE, clock=self.around.clock, interval=0.1)
        return found[0]

    @property
    def _address(self) -> str:
        return ":".join(self._wish.address)

    def _notes(self) -> Sequence[Note]:
        return read_notes(notes_of_application(self.lab))

    def dsn(self) -> str:
        """How the hotel's data are reached in the new server; holds the password."""
        return replace(self.lab, port=self._wish.port).dsn(DATABASE)

    def restored(self, handover: Handover, recovery_point: datetime | None) -> Restored:
        """What the record says: healthy is when the application had its answer, by its own notes."""
        done = achieved(self.around, handover, self._wish, self._means)
        if done.switched_at is None:
            return replace(restored_by(self.around, handover, done), recovery_point=recovery_point)
        notes, outage = self._notes(), self.execution.outage_started_at
        assert outage is not None
        checks = application_checks(notes, old=f"{_HOST}:{self.lab.port}", new=self._address, outage=outage)
        found = restored_by(self.around, handover, done)
        return replace(
            found,
            recovery_point=recovery_point,
            checks=(*found.checks, *checks),
            healthy_at=first_answer(notes, self._address),
            noted_by="the application's own notes",
        )


def first_answer(notes: Sequence[Note], new: str) -> datetime | None:
    """When the application had its first answer at that address; None where it had none."""
    return next((note.at for note in notes if note.answered and note.address == new), None)


def application_checks(notes: Sequence[Note], *, old: str, new: str, outage: datetime) -> tuple[Check, ...]:
    """Did the application find the new server by itself, and did the old one answer nobody any more?"""
    there, before = first_answer(notes, new), [note.at for note in notes if note.answered and note.address == old]
    name = "application_reconnected_by_itself"
    if there is None:
        reconnected = Check(name, False, f"it had no answer at {new}: {_last(notes)}")
    elif not before:
        reconnected = Check(name, None, "it had no answer before the loss, so it did not have to reconnect")
    else:
        failed = sum(not note.answered for note in notes if before[-1] < note.at < there)
        silent = (there - before[-1]).total_seconds()
        reconnected = Check(name, True, f"without an answer for {silent:.1f} s, after {failed} attempts in vain")
    late = [moment for moment in before if moment > outage + ACKNOWLEDGEMENT_TOLERANCE]
    detail = f"the old server answered it at {format_moment(late[0])}" if late else "the last answer was before it"
    return reconnected, Check("old_server_answered_nobody_after_outage", not late if before else None, detail)


def _last(notes: Sequence[Note]) -> str:
    return f"its last note is of {format_moment(notes[-1].at)}, at {notes[-1].address}" if notes else "it noted nothing"
