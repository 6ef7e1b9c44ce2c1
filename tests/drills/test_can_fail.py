"""The drill can fail: whatever goes wrong between the loss and the measurement turns the verdict, and is named."""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.drills import database as drill
from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.coverage import choose
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.engines.postgres.wal import Segment
from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.marks import read_marks
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks import database_restore as runbook
from dr_pipelines.runbooks.record import Record
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, format_moment, wait_until
from tests import archived

pytestmark = pytest.mark.slow

PLAN = Path(__file__).parents[2] / "recovery-plan.yaml"
COVERED = "acknowledged_before_recovery_point_are_there"


@dataclass(frozen=True)
class Drill:
    """A drill whose database is lost; the rest of it is to be carried out."""

    around: runbook.Surroundings
    lost: drill.Lost

    @property
    def store(self) -> Store:
        """The backups and the log that are left."""
        return drill.drill_store(self.around, self.lost.execution.id, "database")

    def writer_log(self, number: int = 1) -> Path:
        return Path(self.lost.lab_folder) / "marks" / f"writer-{number}.log"

    def carry_out(self) -> Record:
        return drill.carry_out(self.around, self.lost, "run-1")


def surroundings(settings: Settings) -> runbook.Surroundings:
    return runbook.surroundings(settings, logging.getLogger("tests"), create=True)


@pytest.fixture(scope="module")
def after_the_loss() -> Iterator[tuple[Drill, Path]]:
    """A database that was lost under load; what is left of it lies in the folder, to be copied for each test."""
    with archived.state() as settings, archived.open_to_all() as folder:
        around = surroundings(settings.model_copy(update={"repository": str(folder / "repository"), "plan": PLAN}))
        options = drill.DrillOptions(
            size_bytes=2_000_000, writers=2, rate=50, archive_timeout=timedelta(seconds=1), seed=1
        )
        staged = drill.set_the_stage(around, options, timed_id("drill", SystemClock().wall()))
        # So that there is a middle of the log to take a segment from.
        store = drill.drill_store(around, staged.execution_id, options.service)
        assert wait_until(lambda: len(after_the_backup(store)) >= 3, timeout=60)
        lost = drill.lose_database(around, staged)
        lab = lab_database.load(Path(lost.lab_folder))
        assert lab is not None
        lab_database.wait_for_writers(lab, around.leases, timeout=30)
        (folder / "lab").mkdir()
        shutil.copytree(lab.marks, folder / "lab" / "marks")
        dataclasses.replace(lab, folder=folder / "lab").save()
        yield Drill(around, replace(lost, lab_folder=str(folder / "lab"))), folder


@pytest.fixture
def lost(after_the_loss: tuple[Drill, Path], world_readable_folder: Path) -> Drill:
    """That drill, of which this test has its own repository and writers' logs."""
    original, folder = after_the_loss
    shutil.copytree(folder, world_readable_folder / "copy")
    settings = original.around.settings.model_copy(
        update={"repository": str(world_readable_folder / "copy" / "repository")}
    )
    lab = lab_database.load(folder / "lab")
    assert lab is not None
    dataclasses.replace(lab, folder=world_readable_folder / "copy" / "lab").save()
    return Drill(surroundings(settings), replace(original.lost, lab_folder=str(world_readable_folder / "copy" / "lab")))


def after_the_backup(store: Store) -> tuple[str, ...]:
    """The segments that hold what was written after the backup."""
    covered = choose(store, None)
    return covered.chain.files[covered.chain.files.index(str(covered.manifest.details["stop_segment"])) + 1 :]


def checks(record: Record) -> dict[str, str]:
    """What did not pass, and why."""
    return {check.name: check.detail for check in record.checks if not check.passed}


def ended(lost: Drill) -> bool:
    """Nothing of the drill runs or lies about, and its record is in the repository."""
    owners = {lost.lost.execution.id, f"lab-{lost.lost.execution.id}"}
    leases = Leases(lost.around.settings.state_dir)
    return (
        not [lease for lease in leases.all(ending=True) if lease.owner in owners]
        and not (lost.around.settings.state_dir / "restores" / lost.lost.execution.id).exists()
        and not list(lost.around.repository.store.list("drills/"))
        and len(list(lost.around.repository.records.ids(kind="drill"))) == 1
    )


def test_what_nobody_meddled_with_is_met(lost: Drill) -> None:
    record = lost.carry_out()
    assert checks(record) == {}
    assert record.verdict is Verdict.MET
    assert record.rows is not None and record.rows.recovered > 20
    assert ended(lost)


def test_a_segment_that_is_removed_after_the_recovery_point_was_printed(lost: Drill) -> None:
    log = Log(lost.store)
    position = log.read_position()
    assert position is not None and position.stored_end is not None and position.segment_size is not None
    proving = Segment.before(position.stored_end, 1, position.segment_size).name
    # One more may have come in the moment before the loss, of which the agent could not tell any more.
    for missing in (segment.name for segment in log.segments() if segment.name >= proving):
        lost.store.delete(f"log/{missing[:8]}/{missing}")
    record = lost.carry_out()
    assert record.verdicts.integrity is Verdict.MISSED
    assert record.verdict is Verdict.MISSED
    assert "its newest segments are gone" in checks(record)["log_is_whole"]
    assert "lacks row" in checks(record)[COVERED]
    assert record.rpo_seconds is not None and record.rpo_seconds > 0
    assert record.rto_seconds is None
    assert ended(lost)


def test_a_segment_that_is_removed_from_the_middle(lost: Drill) -> None:
    missing = after_the_backup(lost.store)[0]
    lost.store.delete(f"log/{missing[:8]}/{missing}")
    record = lost.carry_out()
    assert record.verdict is Verdict.MISSED
    assert missing in checks(record)["log_is_whole"]
    assert "lacks row" in checks(record)[COVERED]


def test_a_byte_that_is_flipped_in_a_part(lost: Drill) -> None:
    part = choose(lost.store, None).manifest.parts[1]
    archived.flip(lost.store, part.key)
    record = lost.carry_out()
    assert record.verdict is Verdict.UNVERIFIED
    assert record.verdicts.rto is Verdict.UNVERIFIED
    assert any(part.key in deviation for deviation in record.deviations)
    assert [step.name for step in record.steps if step.outcome == "failed"] == ["restore_latest_backup"]
    assert ended(lost)


class TestAStep:
    """Replaced by one that says that it is done."""

    @pytest.fixture
    def after(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[RestoredServer], object]], None]:
        """Lets something happen between 'apply WAL' and 'validate'."""
        real = runbook.apply_wal

        def set_up(happens: Callable[[RestoredServer], object]) -> None:
            def apply_wal(
                around: runbook.Surroundings,
                assessment: runbook.Assessment,
                files: runbook.RestoredFiles,
                run_id: str | None,
            ) -> RestoredServer:
                server = real(around, assessment, files, run_id)
                happens(server)
                return server

            monkeypatch.setattr(drill, "apply_wal", apply_wal)

        return set_up

    def test_after_which_a_row_was_deleted(
        self, lost: Drill, after: Callable[[Callable[[RestoredServer], object]], None]
    ) -> None:
        def delete(server: RestoredServer) -> None:
            with psycopg.connect(server.dsn("hotel"), autocommit=True) as connection:
                connection.execute("DELETE FROM markers WHERE (writer, seq) = (2, 5)")

        after(delete)
        record = lost.carry_out()
        assert record.verdicts.integrity is Verdict.MISSED
        assert record.verdict is Verdict.MISSED
        assert "writer 2 lacks row 5 though row 6 is there" in checks(record)["rows_are_a_gapless_prefix"]
        assert "writer 2 lacks row 5" in checks(record)[COVERED]
        assert record.rows is not None and record.rows.lost > 0

    def test_after_which_a_constraint_was_broken(
        self, lost: Drill, after: Callable[[Callable[[RestoredServer], object]], None]
    ) -> None:
        def delete(server: RestoredServer) -> None:
            with psycopg.connect(server.dsn("hotel"), autocommit=True) as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute("DELETE FROM guests WHERE id = (SELECT min(guest_id) FROM reservations)")

        after(delete)
        record = lost.carry_out()
        assert record.verdict is Verdict.MISSED
        assert "foreign key reservations_guest_id_fkey" in checks(record)["constraints_hold[hotel]"]
        assert "smoke[no_reservation_without_guest_or_room]" in checks(record)
        assert record.rto_seconds is None

    def test_with_a_server_that_was_never_restored(self, lost: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = lost.around.settings
        with archived.cluster(settings, find_binaries(settings)) as fresh:
            hba = fresh.server.data / "pg_hba.conf"
            hba.write_text("local all all trust\n")
            fresh.options["unix_socket_directories"] = str(fresh.server.data.parent)
            fresh.start()
            (fresh.server.data.parent).chmod(0o755)

            def apply_wal(*_: object) -> RestoredServer:
                return RestoredServer(
                    data=fresh.server.data,
                    port=fresh.server.port,
                    socket=fresh.server.data.parent,
                    superuser="postgres",
                    system_identifier="7340000000000000001",
                    timeline=2,
                    replayed_lsn="FF/0",
                    last_commit_at=datetime.now(UTC),
                )

            monkeypatch.setattr(drill, "apply_wal", apply_wal)
            record = lost.carry_out()
        assert record.verdict is Verdict.MISSED
        assert "system identifier" in checks(record)["is_the_restored_server"]
        assert 'database "hotel" does not exist' in checks(record)["markers_compared"]
        assert 'database "hotel" does not exist' in checks(record)["application_query"]
        assert record.verdicts.rpo is Verdict.UNVERIFIED
        assert (record.rto_seconds, record.rpo_seconds, record.rows) == (None, None, None)

    def test_without_any_files(self, lost: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
        def restore_latest_backup(
            around: runbook.Surroundings, assessment: runbook.Assessment, run_id: str | None
        ) -> runbook.RestoredFiles:
            return runbook.RestoredFiles(assessment.target, 3, Check("pg_verifybackup", True, "all as it was"))

        monkeypatch.setattr(drill, "restore_latest_backup", restore_latest_backup)
        record = lost.carry_out()
        assert record.verdict is Verdict.UNVERIFIED
        assert [step.name for step in record.steps if step.outcome == "failed"] == ["apply_wal"]
        assert any("pg_controldata" in deviation for deviation in record.deviations)
        assert ended(lost)

    def test_that_left_the_log_out(self, lost: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
        real = runbook.apply_wal

        def apply_wal(
            around: runbook.Surroundings,
            assessment: runbook.Assessment,
            files: runbook.RestoredFiles,
            run_id: str | None,
        ) -> RestoredServer:
            stop = str(choose(lost.store, None).manifest.details["stop_segment"])
            needed = assessment.files[: assessment.files.index(stop) + 1]
            return real(around, replace(assessment, files=needed), files, run_id)

        monkeypatch.setattr(drill, "apply_wal", apply_wal)
        record = lost.carry_out()
        assert record.verdict is Verdict.MISSED
        assert "the log's last segment begins at" in checks(record)["log_replayed_to_its_end"]
        assert "lacks row" in checks(record)[COVERED]

    def test_that_breaks_in_a_way_that_nobody_thought_of(self, lost: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
        def validate(*_: object) -> None:
            raise KeyError("unheard of")

        monkeypatch.setattr(drill, "validate", validate)
        record = lost.carry_out()
        assert record.verdict is Verdict.UNVERIFIED
        assert "KeyError('unheard of')" in record.deviations
        assert ended(lost)


class TestAWritersLog:
    def test_that_claims_an_acknowledgement_that_never_was(self, lost: Drill) -> None:
        attempts = read_marks(lost.writer_log()).attempts
        assert lost.lost.recovery_point is not None
        moment = format_moment(lost.lost.recovery_point)
        last = attempts[-1]
        seq = last.seq if last.acknowledged_at is None else last.seq + 1
        with lost.writer_log().open("a") as log:
            if last.acknowledged_at is not None:
                log.write(f"A {seq} {moment}\n")
            log.write(f"K {seq} {moment}\n")
        record = lost.carry_out()
        assert record.verdicts.integrity is Verdict.MISSED
        assert record.verdict is Verdict.MISSED
        assert f"writer 1 lacks row {seq}, acknowledged at {moment}" in checks(record)[COVERED]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda log: log.replace("A 3 ", "A 4 ", 1), "expected row 3"),
            (lambda log: None, "No such file"),
        ],
        ids=["that is not what a writer writes", "that is gone"],
    )
    def test_leaves_the_loss_unverified(self, lost: Drill, change: Callable[[str], str | None], words: str) -> None:
        changed = change(lost.writer_log().read_text())
        lost.writer_log().unlink()
        if changed is not None:
            lost.writer_log().write_text(changed)
        record = lost.carry_out()
        assert record.verdict is Verdict.UNVERIFIED
        assert record.verdicts.rpo is Verdict.UNVERIFIED
        assert words in checks(record)["markers_compared"]
        assert str(lost.writer_log()) in checks(record)["markers_compared"]
        assert record.rto_seconds is not None
        assert ended(lost)
