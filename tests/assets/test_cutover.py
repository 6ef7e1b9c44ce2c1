"""The job `database_restore` cuts over, once the job `answer_approval` has approved it."""

import os
import signal
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from dr_pipelines.engines.verdict import Verdict
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import running_pid
from dr_pipelines.repository.approvals import Approval, Standing, approvals_of_all
from dr_pipelines.timing import SystemClock, wait_until
from tests.assets.conftest import Machine, failure_of, new_hotel
from tests.assets.test_restore import end_server, form, output

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outage(machine: Machine) -> Iterator[datetime]:
    """When the hotel's database was lost, whose clients follow a file."""
    clients = machine.settings.state_dir.parent / "clients.conf"
    with new_hotel(machine) as hotel, pytest.MonkeyPatch.context() as patch:
        assert machine.run("database_backup").success
        hotel.settle()
        moment = hotel.lose()
        clients.write_text(f"[database]\nhost=127.0.0.1\nport={hotel.lab.port}\n")
        patch.setenv("DR_CONNECTION_FILE__DATABASE", str(clients))
        patch.setenv("DR_CLIENT_DSN__DATABASE", f"service=database user=postgres password={hotel.lab.password}")
        patch.setenv("PGSERVICEFILE", str(clients))
        yield moment


def answer(machine: Machine, **config: object) -> dg.ExecuteInProcessResult:
    given = {"decision": "approved", "by": "grace", "reason": "the disk is gone", **config}
    return machine.run("answer_approval", {"ops": {"answer": {"config": given}}})


def asked(machine: Machine) -> Approval:
    """Wait for what waits."""
    found: list[Approval] = []

    def waits() -> bool:
        every = approvals_of_all(machine.repository.store, SystemClock().wall())
        found[:] = [approval for approval in every if approval.standing is Standing.WAITING]
        return bool(found)

    assert wait_until(waits, timeout=90, interval=0.2)
    return found[0]


def end_agent(spool: Path) -> None:
    os.kill(int((spool / ".agent.lock").read_text().split()[1]), signal.SIGTERM)


def test_a_restore_takes_the_place_when_the_other_job_has_approved_it(machine: Machine, outage: datetime) -> None:
    target, port = machine.settings.state_dir.parent / "restored" / "data", free_port()
    config = form(outage, target_location=str(target), cutover=True, listen="127.0.0.1", port=port)
    results: list[dg.ExecuteInProcessResult] = []
    waiting = threading.Thread(target=lambda: results.append(machine.run("database_restore", config)))
    waiting.start()
    try:
        approval = asked(machine)
        elsewhere = answer(machine, execution_id=approval.execution_id, target="/srv/another")
        refused = failure_of(elsewhere)
        assert refused is not None and "is not that of the request" in str(refused.description)
        given = answer(
            machine, execution_id=approval.execution_id, target=str(target), confirmed=["old-server-is-down"]
        )
        assert given.success, failure_of(given)
    finally:
        waiting.join(timeout=120)
    (result,) = results
    assert result.success, failure_of(result)

    told = output(result, "cutover")
    record = machine.records()[0]
    try:
        assert record.verdict is Verdict.MET, record.deviations
        assert record.cutover is not None and record.cutover.approval is not None
        assert (record.cutover.approval.by, record.cutover.approval.reason) == ("grace", "the disk is gone")
        assert record.cutover.fenced_by == "it is down, confirmed by grace"
        assert record.phases.approval is not None and record.phases.approval > 0
        assert told["address"].value == (f"127.0.0.1:{port}, with the roles and passwords of the server that was lost")
        with psycopg.connect(os.environ["DR_CLIENT_DSN__DATABASE"], dbname="hotel") as connection:
            assert connection.info.port == port
        assert machine.leases.of(record.execution_id) == []
    finally:
        end_server(target)
        end_agent(machine.settings.spool_of("database"))


def test_without_a_place_of_its_own_a_cutover_is_refused(machine: Machine, outage: datetime) -> None:
    result = machine.run("database_restore", form(outage, cutover=True, listen="127.0.0.1", port=free_port()))
    said = failure_of(result)
    assert said is not None and "target_location" in str(said.description)


def test_where_nothing_waits_there_is_nothing_to_approve(machine: Machine, outage: datetime) -> None:
    said = failure_of(answer(machine, execution_id="20260301T120000Z-restore-9f86d0", target="/srv/data"))
    assert said is not None and "waits for an approval" in str(said.description)
    assert said.metadata["code"].value == "usage-error"
    assert running_pid(Path("/srv/data")) is None
