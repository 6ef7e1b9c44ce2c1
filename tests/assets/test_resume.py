"""A restore whose run is killed and re-executed from failure, as an operator does it: over Dagster's own API."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg
import pytest

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.processes.ports import free_port
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.runbooks.execution import EventKind, Execution, Journal
from dr_pipelines.timing import format_moment, wait_until
from tests.assets.conftest import ROOT, Machine, new_hotel
from tests.assets.test_restore import end_server, form

pytestmark = pytest.mark.slow

RUNBOOK_STEPS = ["assess", "prepare", "restore_latest_backup", "apply_wal", "validate", "cutover"]
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
RE_EXECUTE = """
mutation($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId stepKeysToExecute } } ... on PythonError { message }
  }
}"""


@dataclass(frozen=True)
class Dagster:
    """Dagster's webserver and daemon, with the code location of this checkout."""

    url: str
    machine: Machine

    def ask(self, query: str, **variables: object) -> Any:
        """The answer to a GraphQL query or mutation."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            document = json.load(answer)
        assert "errors" not in document, document["errors"]
        return document["data"]

    def launch(self, job: str, config: object) -> str:
        selector = {"repositoryLocationName": "dr", "repositoryName": "__repository__", "jobName": job}
        answer = self.ask(LAUNCH, params={"selector": selector, "runConfigData": config})["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def await_status(self, run_id: str, status: dg.DagsterRunStatus) -> None:
        def reached() -> bool:
            run = self.machine.instance.get_run_by_id(run_id)
            assert run is not None
            return run.status is status or run.is_finished

        assert wait_until(reached, timeout=120)
        run = self.machine.instance.get_run_by_id(run_id)
        assert run is not None and run.status is status

    def process_of(self, run_id: str) -> int:
        """The id of the process that carries a run out, as the run's log tells it."""
        found: list[int] = []

        def told() -> bool:
            for entry in self.machine.instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
                if entry.dagster_event is not None:
                    pid = entry.dagster_event.engine_event_data.metadata.get("pid")
                    found.extend([int(str(pid.value))] if pid is not None else [])
            return bool(found)

        assert wait_until(told, timeout=120)
        return found[-1]


@pytest.fixture(scope="module")
def dagster(machine: Machine) -> Iterator[Dagster]:
    port = free_port()
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    log = machine.settings.state_dir / "dagster.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{url}/server_info", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    try:
        assert wait_until(answers, timeout=120, interval=0.2), log.read_text()
        yield Dagster(url, machine)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def outage(machine: Machine, dagster: Dagster) -> Iterator[datetime]:
    """When the database was lost, after much had been written since its backup: the replay takes its time."""
    with new_hotel(machine) as hotel:
        assert machine.run("database_backup").success
        hotel.do("CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 10) AS text FROM generate_series(1, 300000) AS n")
        hotel.settle()
        yield hotel.lose()


def test_a_restore_killed_while_it_applies_the_wal_is_resumed(
    machine: Machine, dagster: Dagster, outage: datetime
) -> None:
    first = dagster.launch("database_restore", form(outage))
    kill_at_apply_wal(dagster, first)
    assert machine.records() == []
    (execution,) = executions(machine)
    second = re_execute(dagster, first, ["apply_wal", "validate", "cutover"])
    record = machine.records()[0]
    try:
        assert (record.execution_id, record.run_ids) == (execution.id, (first, second))
        assert record.outage_started_at == outage
        assert [(step.name, step.attempt, step.outcome) for step in record.steps] == [
            ("assess", 1, "done"),
            ("prepare", 1, "done"),
            ("restore_latest_backup", 1, "done"),
            ("apply_wal", 1, "interrupted"),
            ("apply_wal", 2, "done"),
            ("validate", 1, "done"),
        ]
        assert record.rto_seconds is not None and record.service_restored_at is not None
        assert record.rto_seconds == pytest.approx((record.service_restored_at - outage).total_seconds(), abs=0.001)
        assert record.verdict is Verdict.MET, record.deviations
    finally:
        end_server(machine.settings.state_dir / "restores" / record.execution_id / "data")
    assert len(executions(machine)) == 1, "the resume began an execution of its own"


def test_a_drill_killed_while_it_applies_the_wal_is_resumed_and_measured(machine: Machine, dagster: Dagster) -> None:
    first = dagster.launch("database_drill", {"ops": {"set_the_stage": {"config": {"size_bytes": 1_000_000}}}})
    kill_at_apply_wal(dagster, first)
    steps = ["runbook.apply_wal", "runbook.validate", "runbook.cutover", "measure"]
    second = re_execute(dagster, first, steps)
    record = machine.records()[0]
    assert (record.kind, record.run_ids, record.verdict) == ("drill", (first, second), Verdict.MET), record.deviations
    assert [step.outcome for step in record.steps if step.name == "apply_wal"] == ["interrupted", "done"]
    assert machine.leases.of(record.execution_id) == []


def test_a_drill_killed_while_its_stage_is_set_begins_again_and_clears_away_what_it_had_begun(
    machine: Machine, dagster: Dagster
) -> None:
    chosen = "20260301T120000Z-drill-abcdef"
    config = {"size_bytes": 1_000_000, "execution_id": chosen}
    first = dagster.launch("database_drill", {"ops": {"set_the_stage": {"config": config}}})
    pid = dagster.process_of(first)
    assert wait_until(lambda: machine.leases.of(f"lab-{chosen}", "postgres"), timeout=60, interval=0.01)
    os.kill(pid, signal.SIGKILL)
    dagster.await_status(first, dg.DagsterRunStatus.FAILURE)
    every = ["set_the_stage", "lose_database", *(f"runbook.{step}" for step in RUNBOOK_STEPS), "measure"]
    re_execute(dagster, first, every)
    record = machine.records()[0]
    assert (record.verdict, record.execution_id != chosen) == (Verdict.MET, True), record.deviations
    assert machine.leases.of(f"lab-{chosen}") == []
    assert not (machine.settings.state_dir / "lab" / f"lab-{chosen}").exists()


def test_a_drill_that_is_canceled_ends_what_it_started(machine: Machine, dagster: Dagster) -> None:
    chosen = "20260301T130000Z-drill-abcdef"
    config = {"size_bytes": 200_000_000, "execution_id": chosen}
    run_id = dagster.launch("database_drill", {"ops": {"set_the_stage": {"config": config}}})
    assert wait_until(lambda: machine.leases.of(f"lab-{chosen}", "postgres"), timeout=60)
    stop = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"
    assert dagster.ask(stop, id=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
    dagster.await_status(run_id, dg.DagsterRunStatus.CANCELED)
    assert machine.leases.of(f"lab-{chosen}") == []
    assert not (machine.settings.state_dir / "lab" / f"lab-{chosen}").exists()


def executions(machine: Machine) -> list[Execution]:
    store = machine.repository.store
    return [Journal(store, name.rstrip("/")).execution() for name in store.names("executions")]


def kill_at_apply_wal(dagster: Dagster, run_id: str) -> None:
    """SIGKILL the process of a run as soon as its journal says that the step has begun."""
    store = dagster.machine.repository.store

    def applying() -> bool:
        return any(
            (event.step, event.kind, event.run_id) == ("apply_wal", EventKind.STARTED, run_id)
            for execution in executions(dagster.machine)
            for event in Journal(store, execution.id).events()
        )

    pid = dagster.process_of(run_id)
    assert wait_until(applying, timeout=120, interval=0.005)
    os.kill(pid, signal.SIGKILL)
    dagster.await_status(run_id, dg.DagsterRunStatus.FAILURE)


def re_execute(dagster: Dagster, run_id: str, steps: list[str]) -> str:
    """Re-execute a run from failure, which takes these steps, and wait for its success; returns the new run's id."""
    params = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
    answer = dagster.ask(RE_EXECUTE, params=params)["launchRunReexecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    assert answer["run"]["stepKeysToExecute"] == steps
    again = str(answer["run"]["runId"])
    dagster.await_status(again, dg.DagsterRunStatus.SUCCESS)
    return again


def test_who_asks_from_outside_learns_what_runs_and_what_was_stopped(machine: Machine, dagster: Dagster) -> None:
    def status() -> Any:
        command = [sys.executable, "-m", "assets.status", "--json"]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60).stdout)

    def running(found: Any) -> dict[str, bool]:
        return {entry["name"]: entry["running"] for entry in found["instigators"]}

    before = status()
    others = {"database_expire_schedule": True, "wal_archive_sensor": True}
    assert running(before) == {"database_backup_schedule": True, **others}
    beats = {daemon["name"]: daemon["age_seconds"] for daemon in before["daemons"]}
    assert beats["SENSOR"] < 120 and beats["SCHEDULER"] < 120

    schedules = """query($s: RepositorySelector!) { schedulesOrError(repositorySelector: $s) {
        ... on Schedules { results { name id scheduleState { selectorId } } } } }"""
    location = {"repositoryLocationName": "dr", "repositoryName": "__repository__"}
    found = dagster.ask(schedules, s=location)["schedulesOrError"]["results"]
    (schedule,) = [each for each in found if each["name"] == "database_backup_schedule"]
    stop = "mutation($id: String!) { stopRunningSchedule(id: $id) { __typename } }"
    answer = dagster.ask(stop, id=schedule["id"])["stopRunningSchedule"]
    assert answer["__typename"] == "ScheduleStateResult", answer
    assert running(status()) == {"database_backup_schedule": False, **others}

    open_repository(machine.environment["DR_REPOSITORY"], settings=machine.settings, create=True)
    run_id = dagster.launch("adherence", {})
    dagster.await_status(run_id, dg.DagsterRunStatus.SUCCESS)
    event = machine.instance.get_latest_materialization_event(dg.AssetKey("rto_rpo_adherence"))
    assert event is not None and event.asset_materialization is not None
    assert "schedule database_backup_schedule is stopped" in str(event.asset_materialization.metadata["off"].value)


def test_the_run_of_a_form_that_is_wrong_says_so_in_the_ui(
    machine: Machine, dagster: Dagster, outage: datetime
) -> None:
    run_id = dagster.launch("database_restore", form(outage, target_time=format_moment(outage)[:10]))
    dagster.await_status(run_id, dg.DagsterRunStatus.FAILURE)
    query = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
        ... on ExecutionStepFailureEvent { failureMetadata { description } } } } } }"""
    events = dagster.ask(query, id=run_id)["logsForRun"]["events"]
    (said,) = [event["failureMetadata"]["description"] for event in events if event.get("failureMetadata")]
    assert said.startswith("target_time: ")


def test_the_daemon_reports_what_reached_the_repository(machine: Machine, dagster: Dagster, outage: datetime) -> None:
    archive = dg.AssetKey("database_wal_archive")
    assert wait_until(lambda: machine.instance.get_latest_materialization_event(archive), timeout=90)
    query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
        ... on AssetNode { freshnessStatusInfo { freshnessStatus } } } }"""

    def is_fresh() -> bool:
        node = dagster.ask(query, key={"path": archive.path})["assetNodeOrError"]
        return bool(node["freshnessStatusInfo"]["freshnessStatus"] == "HEALTHY")

    assert wait_until(is_fresh, timeout=90)
