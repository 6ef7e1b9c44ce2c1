"""SIGKILL of a cutover, at each of its sub-steps in turn: it goes on, no approval is lost, no server comes twice."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import running_pid
from tests.cutting import Cutover, cutover, is_fenced, old

__all__ = ["cutover", "old"]

pytestmark = pytest.mark.slow


def execution(cutover: Cutover) -> Path:
    """The journal of the one execution there is."""
    (found,) = (cutover.dr.folder / "repository" / "executions").iterdir()
    return found


def text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def started(cutover: Cutover, step: str) -> bool:
    """The last event is that the step has begun."""
    events = sorted((execution(cutover) / "events").iterdir())
    last = json.loads(events[-1].read_text())
    return (last["step"], last["kind"]) == (step, "started")


def in_production(cutover: Cutover) -> list[str]:
    """The lines of postmaster.pid where the server has its own port."""
    lines = text(cutover.target / "postmaster.pid").splitlines()
    return lines if len(lines) > 3 and lines[3] == str(cutover.port) else []


def backups(cutover: Cutover) -> int:
    return len(list((cutover.dr.folder / "repository" / "services").rglob("parts/000000")))


MOMENTS: dict[str, Callable[[Cutover], object]] = {
    "when the approval is asked for": lambda at: list(execution(at).glob("approvals/*/request.json")),
    "when fencing begins": lambda at: started(at, "fence"),
    "with the archiver stopped": lambda at: "fenced by" in text(at.old.lab.data / "postgresql.auto.conf"),
    "when the old server is fenced": lambda at: (execution(at) / "cutover" / "fence.json").exists(),
    "when taking over begins": lambda at: started(at, "take_over"),
    "with the target handed over": lambda at: '"taken_over": true' in text(at.target / "dr_restore" / "restore.json"),
    "with the new address configured": lambda at: f"port = '{at.port}'" in text(at.target / "postgresql.auto.conf"),
    "when the new server comes up": in_production,
    "when the new server is ready": lambda at: [line for line in in_production(at) if line.strip() == "ready"],
    "when its log is shipped": lambda at: (at.dr.folder / "spool" / ".agent.lock").exists(),
    "when the clients are led": lambda at: started(at, "switch_clients"),
    "with the clients led": lambda at: str(at.port) in text(at.clients),
    "when the backup begins": lambda at: started(at, "back_up"),
    "in the middle of the backup": lambda at: backups(at) > 1,
    "with the backup made": lambda at: (execution(at) / "cutover" / "backup.json").exists(),
}


def has_come(cutover: Cutover, moment: Callable[[Cutover], object]) -> bool:
    return any((cutover.dr.folder / "repository").glob("executions/*/events/*")) and bool(moment(cutover))


def test_killed_at_each_sub_step_it_is_gone_on_with(cutover: Cutover) -> None:
    for name, moment in MOMENTS.items():
        cutover.start()
        cutover.kill_when(partial(has_come, cutover, moment), name)
        if name == "when the approval is asked for":
            assert cutover.approve().code == 0
    cutover.start()
    done = cutover.end()

    assert done.code == 3, done.err
    record = done.document["record"]
    assert record["verdicts"]["integrity"] == "met", record["deviations"]
    assert [path.name for path in execution(cutover).glob("approvals/*")] == ["000001"]
    assert record["cutover"]["approval"]["standing"] == "approved"
    last = {step["name"]: step["outcome"] for step in record["steps"]}
    assert set(last.values()) == {"done"}, last
    # One server, nobody's; what clients are led to is it; the old one is out of action.
    assert in_production(cutover)[0] == str(running_pid(cutover.target))
    assert not Leases(cutover.dr.folder / "state").all()
    assert is_fenced(cutover.old.lab)
    with psycopg.connect(cutover.dsn()) as connection:
        assert connection.execute("SELECT full_name FROM guests WHERE full_name = 'after'").fetchall()
    listed = cutover.dr("backup", "list", "database", "--json").document["backups"]
    assert [entry["state"] for entry in listed] == ["complete", "complete"]
    assert listed[0]["backup_id"] == record["cutover"]["backup_id"]
