"""`dr doctor`: well where all is well, and each thing that is wrong is found with its mend."""

import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dr_pipelines.engines.postgres.coverage import newest_system
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import ServerState
from dr_pipelines.processes.leases import Leases
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import delete_backup, read_manifest, write_manifest
from dr_pipelines.repository.store import Store
from tests.cli.conftest import PLAN, ROOT, Dr, Hotel

pytestmark = pytest.mark.slow

QUIET_PLAN = """
plan_version: 1
tiers: [{name: critical, title: Critical, rto: 1h, rpo: 15m}]
services:
  - name: database
    title: Database
    tier: critical
    engine: postgres
    backup: {full: "0 3 * * *", log: continuous, archive_timeout: 60s}
    validation:
      smoke_queries: [{name: one, sql: SELECT 1, expect: "= 1"}]
      application_query: SELECT 1
"""


@pytest.fixture
def host(hotel: Hotel, bare_package: Path) -> Dr:
    """`dr` on the database's host, where nothing but the package is installed."""
    return Dr({**hotel.dr.environment, "PYTHONPATH": str(bare_package)}, hotel.dr.folder)


@pytest.fixture
def elsewhere(dr: Dr, bare_package: Path) -> Dr:
    """`dr` on a machine where nothing is set up and nothing but the package is installed."""
    return Dr({**dr.environment, "PYTHONPATH": str(bare_package)}, dr.folder)


def levels(document: Any, area: str) -> dict[str, str]:
    return {entry["looked_at"]: entry["level"] for entry in document["findings"] if entry["area"] == area}


def found(document: Any, looked_at: str) -> dict[str, str]:
    (entry,) = [entry for entry in document["findings"] if entry["looked_at"] == looked_at]
    return dict(entry)


def test_a_bare_machine_is_told_what_is_off_and_how_to_set_it_up(dr: Dr) -> None:
    said = dr("doctor", DR_LAB_REPOSITORY="folder", DR_PLAN=PLAN)

    assert said.code == 3, said.err
    for expected in ("DR_REPOSITORY", "DR_DSN__DATABASE", "dr backup full database", "mend:"):
        assert expected in said.out
    assert "Traceback" not in said.err


def test_a_host_that_is_set_up_has_no_problem(host: Dr) -> None:
    said = host("doctor", "--json")

    database = levels(said.document, "database")
    assert set(database.values()) == {"ok"}
    assert set(levels(said.document, "the repository").values()) == {"ok"}


def test_exit_codes_follow_the_worst_finding(host: Dr, world_readable_folder: Path) -> None:
    plan = world_readable_folder / "plan.yaml"
    plan.write_text(QUIET_PLAN)

    said = host("doctor", "--json", DR_PLAN=plan)
    broken = host("doctor", "--json", DR_PLAN=plan, DR_DSN__DATABASE="host=127.0.0.1 port=1 user=postgres")

    assert said.code == (1 if said.document["counts"]["problem"] else 3)  # Dagster's daemon does not run
    assert broken.code == 1
    assert "cannot be reached" in found(broken.document, "the server")["seen"]


def test_a_plan_that_asks_a_database_that_is_not_there_is_a_problem(host: Dr, world_readable_folder: Path) -> None:
    plan = world_readable_folder / "plan.yaml"
    plan.write_text(QUIET_PLAN.replace("validation:", "validation:\n      database: elsewhere"))

    said = host("doctor", "--json", DR_PLAN=plan)

    assert found(said.document, "what the plan asks of a restore")["level"] == "problem"
    assert '"elsewhere"' in found(said.document, "what the plan asks of a restore")["seen"]


def test_a_refused_plan_is_a_problem_with_its_line(elsewhere: Dr, world_readable_folder: Path) -> None:
    plan = world_readable_folder / "plan.yaml"
    plan.write_text(QUIET_PLAN.replace("rpo: 15m", "rpo: 15 minutes"))

    said = elsewhere("doctor", "--json", DR_PLAN=plan, DR_LAB_REPOSITORY="folder")

    (entry,) = [entry for entry in said.document["findings"] if entry["area"] == "the plan"]
    assert said.code == 1
    assert (entry["level"], entry["looked_at"]) == ("problem", f"{plan}:3")


def test_a_repository_that_is_not_there_is_a_problem_and_the_rest_is_looked_at(elsewhere: Dr) -> None:
    said = elsewhere("doctor", "--json", DR_REPOSITORY=elsewhere.folder / "none", DR_PLAN=PLAN)

    assert said.code == 1
    assert found(said.document, "DR_REPOSITORY")["level"] == "problem"
    assert found(said.document, "the server")["level"] == "off"


def test_a_spool_that_the_agent_does_not_look_into_is_a_problem(
    hotel: Hotel, host: Dr, world_readable_folder: Path
) -> None:
    other = world_readable_folder / "spool"
    other.mkdir()

    said = host("doctor", "--json", DR_SPOOL__DATABASE=other)

    entry = found(said.document, "archive_command")
    assert entry["level"] == "problem"
    assert str(hotel.lab.spool) in entry["seen"] and str(hotel.lab.spool) in entry["mend"]


def test_a_spool_that_is_not_there_is_a_problem_on_the_database_host(host: Dr) -> None:
    said = host("doctor", "--json", DR_SPOOL__DATABASE="/nowhere/spool")

    assert found(said.document, "the spool /nowhere/spool")["level"] == "problem"


def test_files_that_wait_for_long_are_a_problem(elsewhere: Dr, world_readable_folder: Path) -> None:
    spool = world_readable_folder / "spool"
    spool.mkdir()
    segment = spool / "000000010000000000000001"
    segment.write_bytes(bytes(1024))
    os.utime(segment, (time.time() - 300, time.time() - 300))
    (spool / "holiday.jpg").write_bytes(b"?")

    said = elsewhere("doctor", "--json", DR_SPOOL__DATABASE=spool, DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder")

    assert found(said.document, "waiting in the spool")["level"] == "problem"
    assert "holiday.jpg" in found(said.document, "strangers in the spool")["seen"]


@pytest.fixture
def copy(hotel: Hotel, world_readable_folder: Path) -> Store:
    """The host's part of a copy of the repository in `repository` below the folder, which a test may change."""
    hotel.copy_repository(world_readable_folder / "repository")
    services = FolderStore(world_readable_folder / "repository").child("services/database")
    return newest_system(services)


def test_a_silent_agent_is_a_problem(host: Dr, copy: Store, world_readable_folder: Path) -> None:
    position = Log(copy).read_position()
    assert position is not None
    Log(copy).write_position(position.model_copy(update={"heartbeat_at": datetime.now(UTC) - timedelta(minutes=1)}))

    said = host("doctor", "--json", DR_REPOSITORY=world_readable_folder / "repository")

    assert found(said.document, "the agent")["level"] == "problem"
    assert "at least" in found(said.document, "exposure")["seen"]


def test_an_agent_that_tells_of_a_problem_or_misses_its_server_is_heard(
    host: Dr, copy: Store, world_readable_folder: Path
) -> None:
    position = Log(copy).read_position()
    assert position is not None
    for more, level in (({"problem": "the disk is odd"}, "warning"), ({"server": ServerState.AWAY}, "problem")):
        Log(copy).write_position(position.model_copy(update={"heartbeat_at": datetime.now(UTC), **more}))

        said = host("doctor", "--json", DR_REPOSITORY=world_readable_folder / "repository")

        assert found(said.document, "the agent")["level"] == level


def test_a_backup_that_was_not_made_when_it_was_due_is_a_problem(
    hotel: Hotel, host: Dr, copy: Store, world_readable_folder: Path
) -> None:
    manifest = read_manifest(copy, hotel.backup_id)
    days_ago = {name: getattr(manifest, name) - timedelta(days=3) for name in ("started_at", "stopped_at")}
    delete_backup(copy, hotel.backup_id)
    write_manifest(copy, manifest.model_copy(update=days_ago))

    said = host("doctor", "--json", DR_REPOSITORY=world_readable_folder / "repository")

    assert found(said.document, "newest backup")["level"] == "problem"
    assert "was not made" in found(said.document, "newest backup")["seen"]


def test_an_interrupted_backup_and_a_damaged_one_are_told_of(
    host: Dr, copy: Store, world_readable_folder: Path
) -> None:
    copy.put("backups/20260101T000000Z-full-aaaaaa/parts/000000", [b"half"])
    copy.put("backups/20260101T000000Z-full-bbbbbb/manifest.json", [b"{}"])

    said = host("doctor", "--json", DR_REPOSITORY=world_readable_folder / "repository")

    assert "aaaaaa" in found(said.document, "incomplete backups")["seen"]
    assert found(said.document, "20260101T000000Z-full-bbbbbb")["level"] == "problem"


def test_what_a_killed_command_left_running_is_told_of(elsewhere: Dr) -> None:
    leases = Leases(elsewhere.folder / "state")
    leases.start(["sleep", "60"], kind="writer", owner="lab-left", log=elsewhere.folder / "log", ttl=timedelta(0))

    said = elsewhere("doctor", "--json", DR_LAB_REPOSITORY="folder", DR_PLAN=PLAN)

    assert found(said.document, "leftovers")["level"] == "warning"
    assert "lab-left" in found(said.document, "leftovers")["seen"]
    leases.end_owner("lab-left")


def test_further_tablespaces_are_a_problem(hotel: Hotel, host: Dr) -> None:
    place = hotel.lab.data.parent / "tablespace"
    place.mkdir()
    shutil.chown(place, hotel.lab.data.stat().st_uid)
    with psycopg.connect(hotel.lab.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE fast LOCATION '{place}'")
        try:
            said = host("doctor", "--json")
        finally:
            connection.execute("DROP TABLESPACE fast")

    assert found(said.document, "tablespaces")["level"] == "problem"


def test_a_role_that_may_not_take_a_backup_or_not_even_look_is_said(hotel: Hotel, host: Dr) -> None:
    dsn = hotel.lab.dsn().replace("user=postgres", "user=weak").replace(hotel.lab.password, "x")
    with psycopg.connect(hotel.lab.dsn(), autocommit=True) as connection:
        connection.execute("CREATE ROLE weak LOGIN PASSWORD 'x'")
        weak = host("doctor", "--json", DR_DSN__DATABASE=dsn)
        connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        blind = host("doctor", "--json", DR_DSN__DATABASE=dsn)
        connection.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
        connection.execute("DROP ROLE weak")

    assert (weak.code, blind.code) == (1, 1)
    assert found(weak.document, "base backups")["level"] == "problem"
    assert "may not look" in found(blind.document, "the server")["seen"]


def test_a_stopped_schedule_is_off_here_and_in_the_report(dr: Dr) -> None:
    settings = {"DR_LAB_REPOSITORY": "folder", "DR_PLAN": str(PLAN)}
    before = dr("doctor", "--json", **settings).document
    schedule, *_ = [name for name in levels(before, "schedules") if name.startswith("schedule ")]
    subprocess.run(
        [sys.executable, "-m", "dagster", "schedule", "stop", schedule.split()[1], "-w", "workspace.yaml"],
        cwd=ROOT,
        env={**os.environ, **dr.environment, **settings, "DAGSTER_HOME": str(dr.folder / "state" / "dagster")},
        check=True,
        capture_output=True,
    )

    after = dr("doctor", "--json", **settings).document
    report = dr("report", "adherence", "--json", **settings).document

    assert (found(before, schedule)["level"], found(after, schedule)["level"]) == ("ok", "off")
    assert found(after, schedule)["mend"]
    assert f"the {schedule} is stopped" in report["off"]
    assert found(after, "Dagster's daemon")["level"] == "off"
