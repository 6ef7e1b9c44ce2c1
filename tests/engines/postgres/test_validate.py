"""Validation: each check of a restored server is shown to pass where it should and to catch its thing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dr_pipelines.engines.checks import Check
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.engines.postgres.validate import LogEnd, first_query, validate
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.plan import Validation
from dr_pipelines.processes.identity import run
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import Manifest
from dr_pipelines.settings import Settings
from tests import archived
from tests.archived import Cluster
from tests.made_up import MadeUpArchive

pytestmark = pytest.mark.slow

BLOCK = 8192


@dataclass
class Restored:
    """A server that is taken for a restored one, and the backup that it is held against."""

    cluster: Cluster
    server: RestoredServer
    manifest: Manifest

    def validate(self, wishes: Validation | None = None, log_end: LogEnd | None = None) -> dict[str, Check]:
        binaries = self.cluster.server.binaries
        notes: list[str] = []
        found = validate(self.server, binaries, self.manifest, wishes, log_end=log_end, note=notes.append)
        return {check.name: check for check in found}

    def do(self, *statements: str) -> None:
        self.cluster.do(*statements)

    def change_file(self, table: str, position: int, change: bytes, *, checksums: bool = True) -> None:
        """Change bytes of the file of a table or index while the server is stopped and has none of it in memory."""
        self.do("CHECKPOINT")
        path = self.cluster.server.data / str(self.cluster.ask(f"SELECT pg_relation_filepath('{table}')"))
        self.cluster.server.stop()
        if not checksums:
            tool, data = self.cluster.server.binaries["pg_checksums"], self.cluster.server.data
            run([tool, "--disable", "--no-sync", str(data)], identity=self.cluster.server.identity, timeout=60)
        with path.open("r+b") as file:
            file.seek(position)
            file.write(change)
        self.cluster.start()


@contextmanager
def taken_for_restored(settings: Settings, folder: Path) -> Iterator[Restored]:
    with archived.cluster(settings, find_binaries(settings)) as made:
        socket = made.folder / "socket"
        socket.mkdir()
        archived.give_to_server(socket, settings)
        made.options["unix_socket_directories"] = str(socket)
        hba = made.server.data / "pg_hba.conf"
        hba.write_text("local all all trust\n" + hba.read_text())
        made.start()
        made.do(
            "CREATE TABLE guests (id int PRIMARY KEY, name text NOT NULL)",
            "INSERT INTO guests SELECT n, 'guest ' || n FROM generate_series(1, 5000) n",
            "CREATE TABLE stays (guest int REFERENCES guests)",
            "CREATE UNLOGGED TABLE unlogged (n int PRIMARY KEY)",
        )
        server = RestoredServer(
            data=made.server.data,
            port=made.server.port,
            socket=socket,
            superuser="postgres",
            system_identifier=made.system,
            timeline=1,
            replayed_lsn="0/5000000",
            last_commit_at=None,
        )
        manifest = MadeUpArchive(FolderStore(folder)).backup(5, 4, 5)
        yield Restored(made, server, manifest.model_copy(update={"system_identifier": made.system}))


@pytest.fixture(scope="module")
def sound(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restored]:
    """One that stays sound."""
    with taken_for_restored(settings, tmp_path_factory.mktemp("sound")) as restored:
        yield restored


@pytest.fixture
def broken(settings: Settings, tmp_path: Path) -> Iterator[Restored]:
    """One to be broken."""
    with taken_for_restored(settings, tmp_path) as restored:
        yield restored


def wishes(sql: str = "SELECT 1", expect: str = "= 1", database: str = "postgres") -> Validation:
    return Validation.model_validate(
        {
            "smoke_queries": ({"name": "asked", "sql": sql, "expect": expect},),
            "application_query": sql,
            "database": database,
        }
    )


def ends(last_segment: str, proven: str | None, *, stated: bool = True) -> LogEnd:
    return LogEnd(Lsn.parse(last_segment), Lsn.parse(proven) if proven else None, stated)


def test_a_sound_server_passes_every_check(sound: Restored) -> None:
    checks = sound.validate(wishes("SELECT count(*) FROM guests", "= 5000"), ends("0/4F00000", "0/5000000"))
    assert [check for check in checks.values() if not check.passed] == []
    assert list(checks) == [
        "is_the_restored_server",
        "log_replayed_to_its_end",
        "amcheck",
        "constraints_hold[postgres]",
        "constraints_hold[template1]",
        "smoke[asked]",
    ]


class TestTheServer:
    def test_of_another_cluster_is_caught(self, sound: Restored) -> None:
        other = Restored(sound.cluster, sound.server, sound.manifest.model_copy(update={"system_identifier": "42"}))
        check = other.validate()["is_the_restored_server"]
        assert check.passed is False
        assert f"system identifier {sound.manifest.system_identifier}, the backup's is 42" in check.detail

    def test_with_its_data_elsewhere_is_caught(self, sound: Restored) -> None:
        """As the lost server would be, were it not lost."""
        other = Restored(sound.cluster, replace(sound.server, data=Path("/srv/restored")), sound.manifest)
        check = other.validate()["is_the_restored_server"]
        assert check.passed is False
        assert "not in the target /srv/restored" in check.detail

    def test_that_is_still_recovering_is_caught(self, broken: Restored) -> None:
        broken.cluster.server.stop()
        signal = broken.cluster.server.data / "standby.signal"
        signal.touch()
        archived.give_to_server(signal, Settings())
        broken.cluster.start()
        checks = broken.validate()
        assert "it is still in recovery" in checks["is_the_restored_server"].detail
        assert checks["amcheck"].passed is None


class TestAReplay:
    """To 0/5000000, as the server has it."""

    @pytest.mark.parametrize(("begins", "passed"), [("0/4F00000", True), ("0/5000000", False), ("0/5100000", False)])
    @pytest.mark.parametrize("proven", ["0/4000000", None])
    def test_that_ended_before_the_last_segment_is_caught(
        self, sound: Restored, begins: str, passed: bool, proven: str | None
    ) -> None:
        check = sound.validate(log_end=ends(begins, proven, stated=proven is not None))["log_replayed_to_its_end"]
        assert check.passed is passed
        assert check.detail.startswith(f"replayed to 0/5000000, the log's last segment begins at {begins}")

    @pytest.mark.parametrize(("proven", "passed"), [("0/4FFFFF8", True), ("0/5000000", True), ("0/5000008", False)])
    def test_that_ended_within_the_last_segment_but_before_what_was_proven_is_caught(
        self, sound: Restored, proven: str, passed: bool
    ) -> None:
        check = sound.validate(log_end=ends("0/4F00000", proven))["log_replayed_to_its_end"]
        assert check.passed is passed
        assert check.detail.endswith(f"the recovery point was proven at {proven}")

    def test_is_unverified_where_a_recovery_point_is_stated_and_not_where_it_was_proven(self, sound: Restored) -> None:
        check = sound.validate(log_end=ends("0/4F00000", None))["log_replayed_to_its_end"]
        assert check.passed is None
        assert check.detail.endswith("at which position the recovery point was proven is not known")


class TestDamagedPages:
    """Found by amcheck, and wherever else the page is read; none keeps the other checks from being made."""

    def test_of_a_table(self, broken: Restored) -> None:
        broken.change_file("guests", BLOCK + 5000, b"\xff")
        checks = broken.validate(wishes("SELECT count(*) FROM guests", "= 5000"))
        assert checks["amcheck"].passed is False
        assert "invalid page in block 1" in checks["amcheck"].detail
        assert checks["constraints_hold[postgres]"].passed is False
        assert "guests cannot be checked: invalid page in block 1" in checks["constraints_hold[postgres]"].detail
        assert checks["smoke[asked]"].passed is False
        assert checks["constraints_hold[template1]"].passed is True

    def test_of_an_index(self, broken: Restored) -> None:
        broken.change_file("guests_pkey", BLOCK + 5000, b"\xff")
        checks = broken.validate()
        assert checks["amcheck"].passed is False
        assert "guests_pkey" in checks["amcheck"].detail

    def test_of_a_cluster_without_checksums(self, broken: Restored) -> None:
        # The byte that says where the data of the page's first row, which lies at its end, begin.
        first = BLOCK + BLOCK - 40
        broken.change_file("guests", first + 22, b"\xfe", checksums=False)
        check = broken.validate()["amcheck"]
        assert check.passed is False
        assert "guests" in check.detail

    def test_of_a_catalogue_that_no_session_can_begin_without(self, broken: Restored) -> None:
        broken.do("CREATE DATABASE ruined")
        broken.cluster.database = "ruined"
        path = broken.cluster.ask("SELECT pg_relation_filepath('pg_class')")
        broken.cluster.database = "postgres"
        broken.do("CHECKPOINT")
        broken.cluster.server.stop()
        with (broken.cluster.server.data / str(path)).open("r+b") as file:
            file.write(b"\xff" * BLOCK)
        for cached in (broken.cluster.server.data / str(path)).parent.glob("pg_internal.init"):
            cached.unlink()
        broken.cluster.start()
        checks = broken.validate()
        assert checks["constraints_hold[ruined]"].passed is None
        assert checks["constraints_hold[postgres]"].passed is True
        assert checks["amcheck"].passed is not True


class TestBrokenConstraints:
    def test_are_caught_in_every_database(self, broken: Restored) -> None:
        broken.do("CREATE DATABASE second")
        for database in ("postgres", "second"):
            broken.cluster.do(
                "CREATE TABLE rooms (id int PRIMARY KEY)",
                "CREATE TABLE keys (room int REFERENCES rooms)",
                "SET session_replication_role = replica",
                "INSERT INTO keys VALUES (1)",
                database=database,
            )
        checks = broken.validate()
        for database in ("postgres", "second"):
            assert checks[f"constraints_hold[{database}]"].passed is False


class TestSmokeQueries:
    @pytest.mark.parametrize(
        ("sql", "expect", "words"),
        [
            ("SELECT count(*) FROM stays", "> 0", "answered 0, expected > 0"),
            ("SELECT count(*) = 1 FROM guests", "true", "answered False, expected true"),
            ("SELECT NULL", "= 0", "answered None, expected = 0"),
            ("SELECT 1 WHERE false", "= 1", "answered None, expected = 1"),
            ("SELECT count(*) FROM nowhere", "> 0", 'relation "nowhere" does not exist'),
            ("DELETE FROM guests RETURNING 1", "= 1", "cannot execute DELETE in a read-only transaction"),
            ("SELECT pg_terminate_backend(pg_backend_pid())", "true", "terminating connection"),
        ],
    )
    def test_that_do_not_hold_are_caught(self, sound: Restored, sql: str, expect: str, words: str) -> None:
        check = sound.validate(wishes(sql, expect))["smoke[asked]"]
        assert check.passed is False
        assert words in check.detail

    def test_in_a_database_that_is_not_there_are_caught(self, sound: Restored) -> None:
        check = sound.validate(wishes(database="hotel"))["smoke[asked]"]
        assert check.passed is False
        assert 'database "hotel" does not exist' in check.detail


class TestTheApplicationsFirstQuery:
    def test_that_answers_anything_passes(self, sound: Restored) -> None:
        assert first_query(sound.server, wishes("SELECT 0")) == Check("application_query", True, "answered 0")

    def test_that_fails_is_caught(self, sound: Restored) -> None:
        check = first_query(sound.server, wishes("SELECT * FROM nowhere"))
        assert check.passed is False
        assert "does not exist" in check.detail

    def test_that_nobody_wrote_down_is_not_passed(self, sound: Restored) -> None:
        assert first_query(sound.server, None).passed is None


class TestTheExtension:
    EXTENSIONS = "SELECT string_agg(extname || ' in ' || extnamespace::regnamespace, ',') FROM pg_extension"
    SCHEMAS = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'dr_pipelines%'"

    def test_is_gone_afterwards(self, sound: Restored) -> None:
        before = sound.cluster.ask(self.EXTENSIONS)
        sound.validate()
        for database in ("postgres", "template1"):
            assert sound.cluster.ask(self.SCHEMAS, database) == 0
        assert sound.cluster.ask(self.EXTENSIONS) == before

    def test_of_the_source_stays(self, broken: Restored) -> None:
        broken.do("CREATE EXTENSION amcheck")
        broken.validate()
        assert "amcheck in public" in str(broken.cluster.ask(self.EXTENSIONS))

    def test_that_an_interrupted_validation_left_is_removed(self, broken: Restored) -> None:
        broken.do("CREATE SCHEMA dr_pipelines_amcheck", "CREATE EXTENSION amcheck SCHEMA dr_pipelines_amcheck")
        assert broken.validate()["amcheck"].passed
        assert broken.cluster.ask(self.SCHEMAS) == 0
