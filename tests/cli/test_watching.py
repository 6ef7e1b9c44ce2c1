"""`dr exposure`, `dr report adherence`, `dr agent`: what they say and what their exit codes mean."""

import signal
from pathlib import Path

import pytest

from tests.cli.conftest import PLAN, Dr, Hotel


def test_where_nothing_is_backed_up_the_exposure_is_unverified(dr: Dr) -> None:
    said = dr("exposure", "--json", DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder")

    (entry,) = said.document["exposures"]
    assert said.code == 3
    assert (entry["verdict"], entry["exposure_seconds"]) == ("unverified", None)


@pytest.mark.slow
def test_a_database_that_is_backed_up_is_within_its_rpo(hotel: Hotel) -> None:
    said = hotel.dr("exposure", "database", "--json")
    shown = hotel.dr("exposure")

    (entry,) = said.document["exposures"]
    assert (said.code, shown.code) == (0, 0)
    assert entry["verdict"] == "met"
    assert entry["exposure_seconds"] < entry["rpo_objective_seconds"] == 900
    assert entry["newest_backup_id"] == hotel.backup_id in shown.out


def test_an_exposure_of_a_service_that_nobody_knows_is_refused(dr: Dr) -> None:
    assert dr("exposure", "databse", DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder").code == 2


@pytest.mark.slow
def test_a_service_that_was_never_measured_says_so(dr: Dr) -> None:
    page = dr.folder / "adherence.html"

    said = dr("report", "adherence", "--html", page, DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder")

    assert said.code == 3, said.err
    assert "never measured" in said.out
    assert "Database" in page.read_text()


@pytest.mark.slow
def test_the_report_tells_what_is_switched_off(dr: Dr) -> None:
    said = dr("report", "adherence", "--json", DR_PLAN=PLAN, DR_LAB_REPOSITORY="folder")

    assert any("daemon does not run" in line for line in said.document["off"])
    assert {service["name"]: service["verdict"] for service in said.document["services"]}["dev-test"] is None


def test_without_a_plan_nothing_was_promised(dr: Dr) -> None:
    said = dr("report", "adherence", DR_LAB_REPOSITORY="folder")

    assert said.code == 2
    assert "DR_PLAN" in said.err


def test_an_agent_without_a_repository_is_refused(dr: Dr) -> None:
    said = dr("agent", "--json")

    assert said.code == 2
    assert "DR_REPOSITORY" in said.document["error"]["message"]


@pytest.mark.slow
def test_an_agent_works_until_it_is_told_to_stop(hotel: Hotel, world_readable_folder: Path) -> None:
    repository, spool = world_readable_folder / "repository", world_readable_folder / "spool"
    hotel.copy_repository(repository)
    spool.mkdir()
    running = hotel.dr.start("agent", "--json", DR_SPOOL__DATABASE=spool, DR_REPOSITORY=repository)
    assert running.stderr is not None
    assert any('"cluster"' in line for line in running.stderr)

    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=60)

    assert running.returncode == 0, err
    assert '"ended": true' in out
