"""The jobs that back a database up and read its backup back."""

from pathlib import Path

import dagster as dg
import pytest

from dr_pipelines.runbooks import catalogue
from tests.assets.conftest import Hotel, Machine, evaluations, failure_of
from tests.assets.test_drill import materialization

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backed_up(hotel: Hotel) -> dg.ExecuteInProcessResult:
    result = hotel.machine.run("database_backup")
    assert result.success, failure_of(result)
    hotel.do("CREATE TABLE written AS SELECT 1")
    hotel.settle()
    hotel.do("INSERT INTO written VALUES (2)")
    hotel.settle()
    return result


def test_a_backup_is_materialized_with_its_numbers(hotel: Hotel, backed_up: dg.ExecuteInProcessResult) -> None:
    shown = materialization(hotel.machine, "database_full_backup")
    raw, stored, seconds = (shown[name].value for name in ("raw_bytes", "stored_bytes", "seconds"))
    assert isinstance(raw, int) and isinstance(stored, int) and 0 < stored < raw
    assert isinstance(seconds, float) and seconds > 0
    assert shown["parts"].value == 1
    assert hotel.store.info(f"backups/{shown['backup_id'].value}/manifest.json") is not None


def test_it_is_read_back_in_the_same_run(machine: Machine, backed_up: dg.ExecuteInProcessResult) -> None:
    assert judged(machine, backed_up) == {catalogue.VERIFIED: True, catalogue.NO_GAP: True}


def test_it_leaves_the_plan_beside_the_backup(machine: Machine, backed_up: dg.ExecuteInProcessResult) -> None:
    assert machine.repository.latest_plan() == machine.settings.plan.read_text()


def test_a_flipped_byte_fails_the_check_of_the_backup(
    hotel: Hotel, machine: Machine, backed_up: dg.ExecuteInProcessResult
) -> None:
    part = next(path for path in files(machine) if "/parts/" in str(path))
    whole = part.read_bytes()
    part.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    try:
        result = machine.run("database_verify")
    finally:
        part.write_bytes(whole)
    assert judged(machine, result) == {catalogue.VERIFIED: False, catalogue.NO_GAP: True}


def test_a_missing_segment_fails_the_check_of_the_log_and_is_named(
    hotel: Hotel, machine: Machine, backed_up: dg.ExecuteInProcessResult
) -> None:
    missing = hotel.log.segments()[-2].name
    segment = next(path for path in files(machine) if path.name == missing)
    away = machine.settings.state_dir / missing
    segment.rename(away)
    try:
        result = machine.run("database_verify")
    finally:
        away.rename(segment)
    found = {evaluation.check_name: evaluation for evaluation in evaluations(machine, result.run_id)}
    assert found[catalogue.NO_GAP].passed is False
    assert missing in (found[catalogue.NO_GAP].description or "")


def test_a_backup_without_a_server_fails_at_once_and_says_what_to_set(
    machine: Machine, backed_up: dg.ExecuteInProcessResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DR_DSN__DATABASE")
    result = machine.run("database_backup")
    said = failure_of(result)
    assert said is not None and "DR_DSN__DATABASE" in (said.description or "")
    assert not [event for event in result.all_events if event.is_step_up_for_retry]


def test_without_a_repository_a_run_says_so(
    machine: Machine, backed_up: dg.ExecuteInProcessResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DR_REPOSITORY")
    said = failure_of(machine.run("database_verify"))
    assert said is not None and (said.description or "").startswith("DR_REPOSITORY is not set")
    assert said.metadata["code"].value == "configuration-error"


def judged(machine: Machine, result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {evaluation.check_name: evaluation.passed for evaluation in evaluations(machine, result.run_id)}


def files(machine: Machine) -> list[Path]:
    assert machine.settings.repository is not None
    return [path for path in Path(machine.settings.repository).rglob("*") if path.is_file()]
