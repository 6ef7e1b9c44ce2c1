"""The jobs that back a database up and read its backup back."""

from pathlib import Path

import dagster as dg
import pytest

from assets.backup import backup_definitions
from dr_pipelines.plan import parse_plan
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


def test_what_the_plan_does_not_keep_goes_and_the_run_says_what(
    hotel: Hotel, machine: Machine, backed_up: dg.ExecuteInProcessResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = materialization(machine, "database_full_backup")["backup_id"].value
    hotel.store.put("backups/20200101T000000Z-full-abcdef/parts/000000", [b"left by an interrupted backup"])
    result = machine.run("database_expire")
    assert result.success, failure_of(result)
    assert hotel.store.names("backups/20200101T000000Z-full-abcdef") == ["manifest.json"]  # its tombstone
    (output,) = [event.step_output_data for event in result.all_events if event.is_successful_output]
    said = {name: value.value for name, value in output.metadata.items()}
    assert (said["backups"], said["removed_backups"]) == (1, [])
    assert hotel.store.info(f"backups/{newest}/manifest.json") is not None


def test_without_summaries_no_incremental_backup_is_made_and_the_run_says_so_without_failing(
    hotel: Hotel, machine: Machine, backed_up: dg.ExecuteInProcessResult
) -> None:
    before = hotel.store.names("backups")
    result = incremental(machine)
    assert result.success, failure_of(result)
    assert latest(machine, "database_incremental_backup") is None
    logged = [entry.user_message for entry in machine.instance.all_logs(result.run_id)]
    assert any("summarize_wal is off" in message and "ALTER SYSTEM" in message for message in logged), logged
    assert hotel.store.names("backups") == before


def test_an_incremental_backup_is_materialized_and_read_back_and_a_full_one_in_its_place_is_named(
    hotel: Hotel, machine: Machine, backed_up: dg.ExecuteInProcessResult
) -> None:
    hotel.do("ALTER SYSTEM SET summarize_wal = on")
    hotel.do("SELECT pg_reload_conf()")
    first = hotel.store.names("backups")[-1]
    hotel.store.delete(f"backups/{first}manifest.json")
    result = incremental(machine)
    assert result.success, failure_of(result)
    shown = latest(machine, "database_full_backup")
    assert (
        shown is not None
        and shown.description is not None
        and "no backup that it could be based on" in shown.description
    )
    full = shown.metadata["backup_id"].value

    result = incremental(machine)
    assert result.success, failure_of(result)
    made = latest(machine, "database_incremental_backup")
    assert made is not None and made.metadata["parent"].value == full
    assert judged(machine, result) == {catalogue.VERIFIED: True}


def incremental(machine: Machine) -> dg.ExecuteInProcessResult:
    """Run the job that the shipped plan would have with incremental backups in it."""
    text = machine.settings.plan.read_text()
    plan = parse_plan(
        text.replace("      log: continuous\n", '      log: continuous\n      incremental: "0 9 * * *"\n')
    )
    job = backup_definitions(plan).resolve_job_def("database_incremental")
    return job.execute_in_process(instance=machine.instance, raise_on_error=False)


def latest(machine: Machine, asset: str) -> dg.AssetMaterialization | None:
    event = machine.instance.get_latest_materialization_event(dg.AssetKey(asset))
    return event.asset_materialization if event is not None else None


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
