"""`dr restore --cutover` and `dr approve`: the restored server takes the lost one's place, once somebody allows it."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import find_binaries, running_pid
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until
from tests import archived
from tests.cli.conftest import PLAN
from tests.cutting import Cutover, cutover, is_fenced, is_untouched, old, restart, stop

__all__ = ["cutover", "old"]

pytestmark = pytest.mark.slow


def test_it_takes_the_old_ones_place_and_goes_on_without_us(cutover: Cutover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(cutover.clients))
    session = psycopg.connect(cutover.by_the_file(), autocommit=True)
    cutover.start("--outage-start", datetime.now(UTC).isoformat(), **cutover.as_init_sets_it_up())
    request = cutover.request()
    assert request.target == str(cutover.target)
    assert request.facts["old server"].startswith(f"127.0.0.1:{cutover.old.lab.port}, answers, its log is")
    assert is_untouched(cutover.old.lab)

    assert cutover.approve("--reason", "the disk is gone").code == 0
    done = cutover.end()

    assert done.code == 0, done.err
    record = done.document["record"]
    assert record["verdicts"] == {"rto": "met", "rpo": "met", "integrity": "met"}, record["deviations"]
    assert record["cutover"]["fenced_by"] == "SQL"
    assert record["cutover"]["approval"]["reason"] == "the disk is gone"
    assert [step["name"] for step in record["steps"]][-5:] == [
        "approve_cutover", "fence", "take_over", "switch_clients", "back_up",
    ]  # fmt: skip
    phases = record["phases"]
    assert phases["approval"] > 0
    assert sum(seconds or 0 for seconds in phases.values()) == pytest.approx(record["rto_seconds"], abs=0.001)

    # The old one answers nobody, those who were in it neither, and keeps its log.
    assert is_fenced(cutover.old.lab)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    # Whoever follows the file is in the new one, and finds what was written after the backup.
    assert cutover.clients.read_text().splitlines() == [
        "# ours", "[database]", "host=127.0.0.1", f"port={cutover.port}", "connect_timeout=5",
    ]  # fmt: skip
    with psycopg.connect(cutover.by_the_file(), autocommit=True) as connection:
        names = connection.execute("SELECT full_name FROM guests WHERE full_name = 'after'").fetchall()
        assert names == [("after",)]
        connection.execute("INSERT INTO guests (full_name, email, phone) VALUES ('new', 'new@example.org', '')")
    # Nothing of the restore is left, and no lease ends it.
    assert not list(cutover.target.glob("dr_restore*"))
    assert not Leases(cutover.dr.folder / "state").all()

    # Started by somebody else it is the same server; what it is told from now on is restorable, on its own timeline.
    restart(cutover)
    with connect(cutover.dsn()) as connection:
        connection.execute("INSERT INTO guests (full_name, email, phone) VALUES ('newer', 'newer@example.org', '')")
        connection.execute("SELECT pg_switch_wal()")
    (database,) = (cutover.dr.folder / "repository" / "services" / "database").glob("7*")
    log = database / "log" / "00000002"
    assert (database / "backups" / record["cutover"]["backup_id"] / "manifest.json").exists()
    before = len(list(log.iterdir()))
    assert wait_until(lambda: len(list(log.iterdir())) > before, timeout=30)
    assert (log / "00000002.history").exists()
    # From the old one's backup, too: the log leads on without a hole.
    more = ["--start", "--json", "--backup", cutover.old.backup_id]
    again = cutover.dr("restore", "database", "--target", cutover.dr.folder / "again" / "data", *more)
    try:
        assert again.code == 3, again.err
        dsn = make_conninfo(again.document["server"]["psql"].removeprefix("psql ").strip("'"), dbname="hotel")
        with connect(dsn) as connection:
            assert scalar(connection, "SELECT count(*) FROM guests WHERE full_name IN ('after', 'new', 'newer')") == 3
    finally:
        stop(cutover.dr.folder / "again" / "data")


def test_what_is_denied_is_not_done_and_asked_for_anew_it_may_be(cutover: Cutover) -> None:
    cutover.start()
    execution = cutover.request().execution_id
    listed = cutover.dr("approvals").out
    assert execution in listed and str(cutover.target) in listed
    assert cutover.dr("approve", execution, "--deny", "--reason", "not now").code == 0

    denied = cutover.end()

    assert denied.code == 1
    assert "denied by" in denied.document["error"]["message"]
    assert is_untouched(cutover.old.lab)
    assert str(cutover.old.lab.port) in cutover.clients.read_text()
    assert running_pid(cutover.target) is None
    (record,) = (cutover.dr.folder / "repository" / "records").rglob("*.json")
    assert '"verdict":"unverified"' in record.read_text() and "not now" in record.read_text()

    cutover.start()
    assert cutover.asks()[0].number == 2
    assert cutover.approve().code == 0
    done = cutover.end()

    assert done.code == 3, done.err
    assert done.document["record"]["execution_id"] == execution
    assert done.document["record"]["cutover"]["approval"]["number"] == 2
    assert "restoring the backup" not in done.err
    assert is_fenced(cutover.old.lab)


def test_nobody_answers_and_nothing_is_done(cutover: Cutover) -> None:
    cutover.start("--approval-within", "1s")

    expired = cutover.end()

    assert expired.code == 1
    assert "expired at" in expired.document["error"]["message"]
    assert is_untouched(cutover.old.lab)
    assert cutover.dr("approvals").out == "nothing waits for an approval\n"
    (listed,) = cutover.dr("approvals", "--all", "--json").document["approvals"]
    assert listed["standing"] == "expired"
    late = cutover.dr("approve", listed["execution_id"], "--target", cutover.target)
    assert late.code == 2 and "any more: expired" in late.err


def test_a_server_that_is_gone_is_vouched_for_by_whoever_approves(cutover: Cutover) -> None:
    gone = {"DR_DSN__DATABASE": make_conninfo(cutover.old.lab.dsn("postgres"), port=free_port())}
    cutover.start(**gone)
    request = cutover.request()
    assert "does not answer" in request.facts["old server"]
    shown = cutover.dr("approve", request.execution_id)
    assert shown.code == 2 and "--confirm old-server-is-down" in shown.err
    careless = cutover.approve()
    assert careless.code == 2 and "old-server-is-down" in careless.document["error"]["message"]

    assert cutover.approve("--confirm", "old-server-is-down", "--by", "grace").code == 0
    done = cutover.end()

    assert done.code == 3, done.err
    assert done.document["record"]["cutover"]["fenced_by"] == "it is down, confirmed by grace"
    assert f"port={cutover.port}" in cutover.clients.read_text()


def test_commands_of_the_teams_own_fence_and_lead_and_one_that_fails_stops_it(cutover: Cutover) -> None:
    said, port = cutover.dr.folder / "said", free_port()
    own = {
        "DR_DSN__DATABASE": make_conninfo(cutover.old.lab.dsn("postgres"), port=port),
        "DR_CONNECTION_FILE__DATABASE": "",
        "DR_FENCE__DATABASE": "echo it has no power switch >&2; exit 3",
        "DR_SWITCH__DATABASE": f'echo "$DR_SERVICE $DR_OLD_PORT $DR_NEW_HOST $DR_NEW_PORT" >> {said}',
    }
    cutover.start(**own)
    assert cutover.request().confirmations == {}
    assert cutover.approve().code == 0
    failed = cutover.end()

    assert failed.code == 1
    assert "exit code 3: it has no power switch" in failed.document["error"]["message"]
    assert not said.exists()

    # What was approved was used up by the attempt.
    cutover.start(**{**own, "DR_FENCE__DATABASE": f'test "$DR_OLD_PORT" = {port}'})
    assert cutover.asks()[0].number == 2
    assert cutover.approve().code == 0
    done = cutover.end()

    assert done.code == 3, done.err
    assert done.document["record"]["cutover"]["fenced_by"] == "the team's own command"
    assert said.read_text() == f"database {port} 127.0.0.1 {cutover.port}\n"
    assert cutover.clients.read_text().count(str(cutover.port)) == 0


def test_a_server_of_another_cluster_is_not_touched(cutover: Cutover) -> None:
    settings = cutover.old.settings
    with archived.cluster(settings, find_binaries(settings)) as other:
        other.start()
        cutover.start(DR_DSN__DATABASE=other.server.dsn())
        assert cutover.approve().code == 0
        refused = cutover.end()

        assert refused.code == 1
        assert f"is of the system {other.system}" in refused.document["error"]["message"]
        assert other.ask("SELECT bool_and(datallowconn) FROM pg_database WHERE datname <> 'template0'") is True
    assert str(cutover.port) not in cutover.clients.read_text()


def test_of_two_restored_servers_one_takes_the_place(cutover: Cutover) -> None:
    cutover.start()
    first = cutover.request().execution_id
    second_target = cutover.dr.folder / "second" / "data"
    command = replace(cutover, port=free_port()).command
    command[command.index(str(cutover.target))] = str(second_target)
    second = cutover.dr.start(*command)
    try:
        (other_id,) = {approval.execution_id for approval in cutover.asks(2)} - {first}
        crossed = cutover.dr("approve", other_id, "--target", cutover.target)
        assert crossed.code == 2 and "is not that of the request" in crossed.err
        assert cutover.dr("approve", first, "--target", cutover.target).code == 0
        done = cutover.end()
        assert done.code == 3, done.err

        assert cutover.dr("approve", other_id, "--target", second_target).code == 0
        out, _ = second.communicate(timeout=60)

        assert second.returncode == 1
        assert "another restored server has taken the place" in json.loads(out)["error"]["message"]
        assert running_pid(second_target) is None
        assert f"port={cutover.port}" in cutover.clients.read_text()
    finally:
        second.kill()
        second.communicate()


def test_without_a_new_backup_the_cutover_stands_and_that_is_said_loudly(cutover: Cutover) -> None:
    home = open_repository(str(cutover.dr.folder / "repository"), settings=Settings()).service("database")
    with hold(home, "backup", purpose="a backup that does not end", clock=SystemClock()):
        cutover.start("--outage-start", datetime.now(UTC).isoformat())
        assert cutover.approve().code == 0
        done = cutover.end()

    assert done.code == 1
    record = done.document["record"]
    assert record["cutover"]["backup_id"] is None
    assert record["verdicts"] == {"rto": "met", "rpo": "met", "integrity": "unverified"}
    assert any("the new server has no backup: the lock backup is held" in line for line in record["deviations"])
    assert "THE NEW SERVER HAS NO BACKUP" in done.err and "NONE YET" in done.document["server"]["backup"]
    assert f"port={cutover.port}" in cutover.clients.read_text()
    dsn = make_conninfo(cutover.old.lab.dsn("postgres"), port=cutover.port)
    assert cutover.dr("backup", "full", "database", DR_DSN__DATABASE=dsn).code == 0


def test_what_did_not_pass_takes_nobodys_place_unless_that_is_said(cutover: Cutover) -> None:
    plan = cutover.dr.folder / "recovery-plan.yaml"
    plan.write_text(PLAN.read_text().replace('expect: "> 0"', 'expect: "> 999999"'))
    cutover.start()
    refused = cutover.end()

    assert refused.code == 1
    assert "the validation did not pass" in refused.document["error"]["message"]
    assert "smoke[guests_exist]" in refused.document["error"]["message"]
    assert cutover.dr("approvals", "--all", "--json").document["approvals"] == []

    cutover.start("--despite-findings", "--approval-within", "1s")
    cutover.end()
    (asked,) = cutover.dr("approvals", "--all", "--json").document["approvals"]
    assert asked["request"]["facts"]["validation"].endswith("and it was asked for despite that")


def test_what_cannot_become_a_cutover_is_refused_before_anything_is_done(cutover: Cutover) -> None:
    refused = cutover.dr(*cutover.command, DR_CONNECTION_FILE__DATABASE="")

    assert refused.code == 2, refused.err
    assert "nothing says how the clients" in refused.document["error"]["message"]
    assert not cutover.target.exists()
    assert not (cutover.dr.folder / "repository" / "executions").exists()
