"""The job `database_drill`, carried out whole."""

import dagster as dg
import pytest

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.runbooks import catalogue
from dr_pipelines.runbooks.progress import EntryKind, ProgressReader
from tests.assets.conftest import Machine, definitions, evaluations, failure_of

pytestmark = pytest.mark.slow

STEPS = ["assess", "prepare", "restore_latest_backup", "apply_wal", "validate"]
CUTOVER = ["approve_cutover", "fence", "take_over", "switch_clients", "back_up"]


def form(**fields: object) -> dict[str, object]:
    return {"ops": {"set_the_stage": {"config": {"size_bytes": 1_000_000, "archive_timeout": "4s", **fields}}}}


def test_before_the_first_drill_every_verdict_is_unverified(machine: Machine) -> None:
    open_repository(machine.environment["DR_REPOSITORY"], settings=machine.settings, create=True)
    result = machine.run("adherence")
    assert result.success, failure_of(result)
    found = evaluations(machine, result.run_id)
    assert {entry.check_name for entry in found} == {catalogue.RTO_MET, catalogue.RPO_MET, catalogue.INTEGRITY}
    assert {(entry.passed, entry.severity) for entry in found} == {(False, dg.AssetCheckSeverity.WARN)}
    assert "database_rto_seconds" not in materialization(machine, "rto_rpo_adherence")


@pytest.fixture(scope="module")
def drilled(machine: Machine) -> dg.ExecuteInProcessResult:
    """One drill that went well, with its progress in a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DR_PROGRESS", str(machine.settings.state_dir / "progress"))
        result = machine.run("database_drill", form(seed=7), tags={"dr/requested-by": "a test"})
    assert result.success, failure_of(result)
    return result


def test_a_drill_is_measured_and_met(machine: Machine, drilled: dg.ExecuteInProcessResult) -> None:
    record = machine.records()[0]
    assert (record.kind, record.verdict) == ("drill", Verdict.MET), record.deviations
    assert record.run_ids == (drilled.run_id,)
    assert [step.name for step in record.steps] == [*STEPS, *CUTOVER]
    assert record.cutover is not None and record.cutover.approval is not None
    assert (record.cutover.approval.by, record.cutover.approval.standing) == ("a test", "approved")
    assert record.requested_by == "a test"
    assert record.rto_seconds is not None and record.rpo_seconds is not None
    assert record.estimate is not None and record.estimate.actual_seconds is not None


def test_its_figures_are_numbers_in_the_catalogue(machine: Machine, drilled: dg.ExecuteInProcessResult) -> None:
    record = machine.records()[0]
    shown = materialization(machine, "database_recovery")
    assert shown["rto_seconds"].value == record.rto_seconds
    assert shown["rpo_objective_seconds"].value == 900
    assert shown["validate_seconds"].value == record.phases.validate_
    adherence = materialization(machine, "rto_rpo_adherence")
    assert adherence["database_rto_seconds"].value == record.rto_seconds
    assert adherence["database_rto_objective_seconds"].value == 3600
    table = adherence["adherence"]
    assert isinstance(table, dg.TableMetadataValue)
    rows = {row.data["service"]: row.data for row in table.records}
    assert rows["database"]["verdict"] == "met" and str(rows["database"]["rto"]).endswith("s / 1h")
    assert rows["redis"]["rto"] == "not measured / 4h"
    assert adherence["off"].value == "Dagster's daemon does not run, so no schedule and no sensor does"
    assert (adherence["database_record"].value, adherence["database_run"].value) == (record.record_id, drilled.run_id)


def test_every_check_that_it_evaluates_is_declared(machine: Machine, drilled: dg.ExecuteInProcessResult) -> None:
    evaluated = {
        (evaluation.asset_key.to_user_string(), evaluation.check_name, evaluation.passed)
        for evaluation in evaluations(machine, drilled.run_id)
    }
    assert evaluated == {
        ("database_recovery", name, True) for name in (catalogue.RTO_MET, catalogue.RPO_MET, catalogue.INTEGRITY)
    }
    declared = {
        (key.asset_key.to_user_string(), key.name) for key in definitions().resolve_asset_graph().asset_check_keys
    }
    assert {(asset, name) for asset, name, _ in evaluated} <= declared


def test_the_verdicts_can_be_read_from_the_record_again(machine: Machine, drilled: dg.ExecuteInProcessResult) -> None:
    result = machine.run("adherence")
    again = {entry.check_name: entry.metadata["record_id"].value for entry in evaluations(machine, result.run_id)}
    record_id = machine.records()[0].record_id
    assert again == dict.fromkeys((catalogue.RTO_MET, catalogue.RPO_MET, catalogue.INTEGRITY), record_id)


def test_it_leaves_its_record_and_nothing_else(machine: Machine, drilled: dg.ExecuteInProcessResult) -> None:
    assert machine.leases.all(ending=True) == []
    assert machine.repository.services() == []
    assert machine.repository.store.names("drills") == []
    assert not any((machine.settings.state_dir / "restores").iterdir())


def test_who_watches_reads_steps_progress_and_the_record(machine: Machine, drilled: dg.ExecuteInProcessResult) -> None:
    entries = ProgressReader(machine.settings.state_dir / "progress").read()
    done = [entry.text for entry in entries if entry.kind is EntryKind.STEP and entry.outcome == "done"]
    assert done == ["set_the_stage", "lose_database", *STEPS, "cutover", "measure"]
    assert [entry.text for entry in entries if entry.kind is EntryKind.RECORD] == [machine.records()[0].record_id]
    assert {entry.text for entry in entries if entry.kind is EntryKind.PROGRESS} >= {"loading", "backing up"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"service": "redis"}, "redis"),
        ({"service": "databse"}, 'did you mean "database"'),
        ({"writers": 0}, "writers"),
        ({"archive_timeout": "10"}, "archive_timeout"),
        ({"size_bytes": 5}, "size_bytes"),
    ],
)
def test_a_drill_that_makes_no_sense_is_refused_before_anything_is_made(
    machine: Machine, fields: dict[str, object], named: str
) -> None:
    result = machine.run("database_drill", form(**fields))
    said = failure_of(result)
    assert said is not None and said.description is not None and named in said.description
    assert said.metadata["code"].value == "usage-error"
    assert machine.leases.all(ending=True) == []


def test_a_step_that_fails_leaves_a_record_that_says_so_and_ends_the_drill(machine: Machine) -> None:
    chosen = "20260301T120000Z-drill-abcdef"
    # Where the drill is going to restore to, something lies already.
    occupied = machine.settings.state_dir / "restores" / chosen / "data"
    occupied.mkdir(parents=True)
    (occupied / "somebody's").touch()
    result = machine.run("database_drill", form(execution_id=chosen))
    said = failure_of(result)
    assert said is not None and said.description is not None and "is not empty" in said.description
    assert said.metadata["code"].value == "target-refused"
    record = machine.records()[0]
    assert (record.execution_id, record.verdict) == (chosen, Verdict.UNVERIFIED)
    assert [(step.name, step.outcome) for step in record.steps] == [("assess", "done"), ("prepare", "failed")]
    assert any("is not empty" in deviation for deviation in record.deviations)
    assert not materialization(machine, "database_recovery").keys() & {"rto_seconds", "rpo_seconds"}
    judged = {found.check_name: (found.passed, found.severity) for found in evaluations(machine, result.run_id)}
    assert judged[catalogue.RTO_MET] == (False, dg.AssetCheckSeverity.WARN)
    assert machine.leases.all(ending=True) == []


def materialization(machine: Machine, asset: str) -> dict[str, dg.MetadataValue]:
    event = machine.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None and event.asset_materialization is not None
    return dict(event.asset_materialization.metadata)
