"""Fencing a server over SQL: it answers nobody and archives nothing, also when it is started again."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dr_pipelines.engines.postgres.fence import FENCED_COMMAND, Measure, Presence, fence, look_at
from dr_pipelines.errors import ProcessError
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.timing import SystemClock, wait_until
from tests import archived
from tests.archived import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[Cluster]:
    """One that archives, as its configuration file says, with a database, a role that replicates and one that may."""
    with archived.state() as settings, archived.cluster(settings, find_binaries(settings)) as made:
        with (made.server.data / "postgresql.conf").open("a") as file:
            file.write("archive_mode = on\narchive_command = 'true'\n")
        made.start()
        made.do(
            "CREATE DATABASE hotel",
            "CREATE ROLE ada LOGIN PASSWORD 'ada'",
            "CREATE ROLE standby LOGIN REPLICATION PASSWORD 'standby'",
        )
        yield made


def done(measures: tuple[Measure, ...]) -> dict[str, bool]:
    return {measure.name: measure.done for measure in measures}


def fenced(server: Cluster, **changes: str) -> tuple[Measure, ...]:
    return fence(make_conninfo(server.server.dsn(), **changes), clock=SystemClock(), note=lambda text: None)


def refusal(server: Cluster, **changes: str) -> str:
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(make_conninfo(server.server.dsn(), **changes))
    return str(refused.value)


def test_it_answers_nobody_and_archives_nothing_also_when_it_is_started_again(server: Cluster) -> None:
    session = psycopg.connect(server.server.dsn("hotel"), autocommit=True)

    measures = fenced(server)

    assert set(done(measures).values()) == {True}, measures
    for _ in range(2):
        for database in ("hotel", "postgres"):
            assert "not currently accepting connections" in refusal(server, dbname=database)
        assert "too many connections" in refusal(server, dbname="template1", user="ada", password="ada")
        said = refusal(server, user="standby", password="standby", replication="true")
        assert "replication" in said or "REPLICATION" in said
        command = str(server.ask("SHOW archive_command", "template1"))
        assert command == f"{FENCED_COMMAND} # it was: true"
        server.server.stop()
        server.start()
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    # It keeps its log.
    server.do("SELECT pg_switch_wal()", database="template1")
    assert wait_until(lambda: server.ask("SELECT failed_count FROM pg_stat_archiver", "template1"), timeout=30)


def test_fenced_again_it_is_fenced_as_before(server: Cluster) -> None:
    fenced(server)

    measures = fenced(server)

    assert set(done(measures).values()) == {True}, measures
    assert server.ask("SHOW archive_command", "template1") == f"{FENCED_COMMAND} # it was: true"


def test_a_role_that_may_not_fence_it_says_so_and_leaves_it_open(server: Cluster) -> None:
    measures = fenced(server, user="ada", password="ada")

    achieved = done(measures)
    assert not achieved["archiver_stopped"] and not achieved["databases_closed"]
    assert not achieved["connections_refused"]
    assert [measure.name for measure in measures if measure.essential and not measure.done]
    assert server.ask("SHOW archive_command") == "true"


def test_an_archiver_that_the_command_line_has_started_cannot_be_stopped_and_that_is_said(server: Cluster) -> None:
    server.server.stop()
    server.start(archive_command="true --really")

    measures = fenced(server)

    assert not done(measures)["archiver_stopped"]
    assert "command line" in next(measure.detail for measure in measures if measure.name == "archiver_stopped")
    assert done(measures)["databases_closed"]


def test_commits_that_wait_for_a_standby_that_is_gone_do_not_hold_it_up(server: Cluster) -> None:
    server.do("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    assert wait_until(lambda: server.ask("SHOW synchronous_standby_names") == "nobody", timeout=10)

    assert set(done(fenced(server)).values()) == {True}


def test_what_a_look_at_a_server_finds(server: Cluster) -> None:
    found = look_at(server.server.dsn())
    assert (found.presence, found.system_identifier) == (Presence.ANSWERS, server.system)
    assert found.started_at is not None and found.position is not None

    refused = look_at(make_conninfo(server.server.dsn(), password="wrong"))
    assert refused.presence is Presence.REFUSES and "password" in refused.said

    silent = look_at(make_conninfo(server.server.dsn(), port=free_port()))
    assert silent.presence is Presence.SILENT and silent.system_identifier is None

    fenced(server)
    assert look_at(server.server.dsn()).presence is Presence.ANSWERS


def test_a_server_that_is_not_there_cannot_be_fenced(server: Cluster) -> None:
    with pytest.raises(ProcessError, match="cannot be reached"):
        fenced(server, port=str(free_port()))
