"""Repositories of the first format, kept as they were: they are read, restored, and still what is written today."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.engines.postgres.connection import scalar
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.processes.identity import give_to, server_identity
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import Server, find_binaries
from dr_pipelines.reports.reading import read_record
from dr_pipelines.repository.approvals import Approvals, Standing
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.uses import read_uses
from dr_pipelines.runbooks.execution import Journal, Outcome
from dr_pipelines.runbooks.handover import Results
from dr_pipelines.settings import Settings
from dr_pipelines.timing import FakeClock, parse_moment, wait_until
from tests import archived
from tests.made_up import segment
from tests.repository import golden, golden_objects
from tests.repository.golden_objects import SYSTEM
from tests.repository.golden_shape import differences, differences_in_kind
from tests.repository.test_format import read_with_documented_reader

FORMATS = Path(__file__).parent / "formats"
OBJECTS = FORMATS / "1-objects"
SERVERS = [pytest.param(15, marks=pytest.mark.debian), 18]


def story_of(major: int) -> golden.Story:
    return golden.Story(**json.loads((FORMATS / f"1-postgres-{major}" / "story.json").read_text()))


def copy_of(kept: Path, place: Path) -> Repository:
    shutil.copytree(kept / "repository", place)
    return open_repository(str(place), settings=Settings())


@pytest.fixture
def objects(tmp_path: Path) -> Repository:
    return copy_of(OBJECTS, tmp_path / "repository")


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """A state folder that servers can reach."""
    with archived.state() as settings:
        yield settings


class TestOneObjectOfEachKind:
    def test_backups_and_what_is_none(self, objects: Repository) -> None:
        survey = survey_backups(objects.store.child(SYSTEM))
        assert [each.backup_id for each in survey.complete] == [golden_objects.INCREMENTAL, golden_objects.FULL]
        assert survey.complete[0].parent == golden_objects.FULL
        assert (survey.incomplete, survey.abandoned) == ((golden_objects.INTERRUPTED,), (golden_objects.ABANDONED,))
        assert survey.damaged == ()

    def test_the_log(self, objects: Repository) -> None:
        log = Log(objects.store.child(SYSTEM), segment_size=1 << 20)
        for number in (3, 4):
            assert log.fetch(segment(number)[0]) == segment(number)[1]
        name, raw = segment(5, timeline=2)
        assert log.fetch(name) == raw[:900] + bytes(len(raw) - 900)
        assert log.fetch("00000002.history") == golden_objects.HISTORY
        assert log.fetch(f"{segment(5)[0]}.partial") == segment(5)[1]
        assert log.fetch(f"{segment(3)[0]}.00000028.backup").startswith(b"START WAL LOCATION")
        assert (log.read_position(1), log.read_position()) == (golden_objects.POSITION, golden_objects.LATER)
        chain = log.chain(Lsn.parse("0/300028"), 1, 1 << 20)
        assert (chain.timeline, chain.missing) == (2, ())

    def test_locks_and_notes_of_readers(self, objects: Repository) -> None:
        (use,) = read_uses(objects.store.child(SYSTEM), golden_objects.NOON)
        assert (use.user, use.backup_id) == (golden_objects.EXECUTION, golden_objects.FULL)
        with hold(objects.service("database"), "backup", purpose="test", clock=FakeClock(golden_objects.NOON)) as lock:
            assert lock.generation == 2

    def test_an_execution_with_its_approval(self, objects: Repository) -> None:
        (assessed,) = Journal(objects.store, golden_objects.EXECUTION).steps()
        assert (assessed.outcome, assessed.duration) == (Outcome.DONE, timedelta(seconds=1.5))
        approval = Approvals(objects.store, golden_objects.EXECUTION).latest(golden_objects.NOON)
        assert approval is not None and approval.standing is Standing.APPROVED
        assert approval.allows(golden_objects.EXECUTION, "/srv/data")
        fenced = Results(objects.store, golden_objects.EXECUTION).get("fence")
        assert fenced is not None and golden_objects.FENCE.items() <= fenced.items()

    def test_records_plans_and_a_drills_own_repository(self, objects: Repository) -> None:
        (record,) = objects.records.list()
        assert read_record(record).rto_seconds == 20.4
        assert (objects.latest_plan() or "").startswith("plan_version: 1\n")
        assert Log(objects.sandbox(golden_objects.SANDBOX).store.child(SYSTEM)).fetch(segment(3)[0]) == b"x"


class TestWhatIsWrittenToday:
    def test_is_what_was_written_then(self, tmp_path: Path) -> None:
        golden_objects.make_objects(tmp_path)
        assert differences(OBJECTS / "repository", tmp_path / "repository") == []

    @pytest.mark.slow
    def test_is_of_the_same_kinds_from_a_real_server(self, tmp_path: Path) -> None:
        golden.make_postgres(tmp_path, 18)
        assert differences_in_kind(FORMATS / "1-postgres-18" / "repository", tmp_path / "repository") == []

    def test_would_be_seen_to_differ(self, objects: Repository) -> None:
        place = Path(objects.url)
        _change(place / SYSTEM / "position.json", heartbeat_at=None, lsn=7, new_member=True)
        event = place / "executions" / golden_objects.EXECUTION / "events" / "000000.json"
        event.unlink()
        log = place / SYSTEM / "log" / "00000002" / "00000002.history"
        shutil.copy(place / SYSTEM / "log" / "00000001" / segment(3)[0], log)
        found = "\n".join(differences(OBJECTS / "repository", place))
        for expected in ("heartbeat_at is missing", "lsn was '0/500384' and is 7", "000000.json is missing"):
            assert expected in found
        assert "00000002.history holds other data" in found and "new_member" not in found
        found = "\n".join(differences_in_kind(OBJECTS / "repository", place))
        assert "heartbeat_at is missing" in found and "lsn was" in found


def _change(path: Path, **members: object) -> None:
    document = unseal(path.read_bytes(), what=str(path)) | members
    path.write_bytes(seal({name: value for name, value in document.items() if value is not None}))


@pytest.mark.slow
class TestAServersRepository:
    @pytest.mark.parametrize("major", SERVERS)
    def test_is_restored_to_its_end_and_to_a_time(self, major: int, settings: Settings, tmp_path: Path) -> None:
        story, repository = story_of(major), copy_of(FORMATS / f"1-postgres-{major}", tmp_path / "repository")
        for moment, marks in ((None, story.marks), (parse_moment(story.between), story.marks_between)):
            with archived.restore(settings, repository, to=moment) as restore:
                restore.run()
                assert str(restore.ask(golden.MARKS)).split(",") == marks
                assert moment is not None or archived.failed(restore.validate()) == []
        (record,) = (record for record in repository.records.list() if record["backup"])
        assert read_record(record).verdict == "met"

    @pytest.mark.parametrize("major", SERVERS)
    def test_is_restored_with_the_documented_reader_and_postgresqls_own_tools(
        self, major: int, settings: Settings, world_readable_folder: Path
    ) -> None:
        story, folder = story_of(major), world_readable_folder
        system = FORMATS / f"1-postgres-{major}" / "repository" / "services" / "database" / story.system
        for backup in story.backups:
            (folder / backup).mkdir()
            assert read_with_documented_reader(folder, "backup", system, backup, folder / backup).stderr == ""
        (folder / "log").mkdir()
        for path in system.glob("log/*/*"):
            name = path.name.removesuffix(".chunks")
            assert read_with_documented_reader(folder, "log", system, name, folder / "log" / name).stderr == ""
        binaries = find_binaries(settings, major)
        data = folder / story.backups[0]
        if len(story.backups) > 1:
            data = folder / "combined"
            chain = [str(folder / backup) for backup in story.backups]
            subprocess.run([binaries["pg_combinebackup"], *chain, "-o", str(data)], check=True)
        assert _marks_of(data, folder / "log", settings, major) == story.marks


def _marks_of(data: Path, log: Path, settings: Settings, major: int) -> list[str]:
    """What a server finds that starts on the data with nothing but that log."""
    (data / "recovery.signal").touch()
    (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
    data.chmod(0o700)
    identity = server_identity(settings)
    for path in (data, *data.rglob("*")):
        give_to(path, identity)
    server = Server(find_binaries(settings, major), data, free_port(), identity, "")
    server.start(
        Leases(settings.state_dir),
        owner=archived.OWNER,
        ttl=timedelta(minutes=10),
        options={"restore_command": f"cp {log}/%f %p", "recovery_target_timeline": "latest", "fsync": "off"},
    )
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            assert wait_until(lambda: not scalar(connection, "SELECT pg_is_in_recovery()"), timeout=30)
            return str(scalar(connection, golden.MARKS)).split(",")
    finally:
        server.kill()
