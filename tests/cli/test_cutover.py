"""`dr restore --cutover` and `dr approve`: the restored server takes the lost one's place, once somebody allows it."""

from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dr_pipelines.engines.postgres.connection import connect, scalar
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import running_pid
from dr_pipelines.timing import wait_until
from tests.cutting import Cutover, cutover, is_fenced, is_untouched, old, restart, stop

__all__ = ["cutover", "old"]

pytestmark = pytest.mark.slow


def test_it_takes_the_old_ones_place_and_goes_on_without_us(cutover: Cutover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(cutover.clients))
    session = psycopg.connect(cutover.by_the_file(), autocommit=True)
    cutover.start("--outage-start", datetime.now(UTC).isoformat())
    request = cutover.asks()["request"]
    assert request["target"] == str(cutover.target)
    assert request["facts"]["old server"].startswith(f"127.0.0.1:{cutover.old.lab.port}, answers, its log is")
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
    execution = cutover.asks()["execution_id"]
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
    assert cutover.asks()["number"] == 2
    assert cutover.approve().code == 0
    done = cutover.end()

    assert done.code == 3, done.err
    assert done.document["record"]["execution_id"] == execution
    assert done.document["record"]["cutover"]["approval"]["number"] == 2
    assert "restoring the backup" not in done.err
    assert is_fenced(cutover.old.lab)
