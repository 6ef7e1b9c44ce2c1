"""`dr init` against a PostgreSQL 15 as Debian makes it: from nothing to a backup that is verified and restored."""

import os
import pty
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dr_pipelines.onboarding.environment import parse_environment
from dr_pipelines.onboarding.machine import identity_of
from dr_pipelines.processes.software import can_execute
from dr_pipelines.timing import wait_until
from tests.archived import files_below
from tests.cli.conftest import PLAN, ROOT, Dr, Ran
from tests.cli.debian import DebianCluster, debian_cluster
from tests.cli.test_restore import stop

pytestmark = [pytest.mark.slow, pytest.mark.debian]

ROLE = "dr_backup"
SUM = "SELECT count(*) || ' ' || sum(aid + abalance) FROM pgbench_accounts"
MAY = """
SELECT concat_ws(',', CASE WHEN rolcanlogin THEN 'login' END, CASE WHEN rolreplication THEN 'replication' END,
  CASE WHEN rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls THEN 'more' END,
  (SELECT min(roleid::regrole::text) FROM pg_auth_members WHERE member = r.oid),
  (SELECT min(classid::regclass::text) FROM pg_shdepend WHERE refobjid = r.oid))
FROM pg_roles AS r WHERE rolname = 'dr_backup'
"""
OWNER = "SELECT tableowner FROM pg_tables WHERE tablename = 'pgbench_accounts'"


@pytest.fixture
def cluster() -> Iterator[DebianCluster]:
    with debian_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def shared() -> Iterator[DebianCluster]:
    """For tests that leave it as they found it, but for roles of their own."""
    with debian_cluster() as running:
        yield running


def initialize(cluster: DebianCluster, dr: Dr, *arguments: str | Path, **more: Any) -> Ran:
    """`dr init shop`, with everything that it writes below the test's own folder."""
    return dr(
        *("init", "shop", "--dsn", cluster.dsn, "--repository", dr.folder / "repository"),
        *("--config-dir", dr.folder / "etc", "--unit-dir", dr.folder / "units"),
        *("--agent-user", agent_user(cluster, dr), *arguments),
        DR_PLAN=dr.folder / "plan.yaml",
        **more,
    )


def agent_user(cluster: DebianCluster, dr: Dr) -> str:
    """The server's user, where this interpreter is in his reach, else ourselves."""
    program = Path(dr.command()[0]).with_name("dr")
    ours = "root" if os.geteuid() == 0 else cluster.owner
    return cluster.owner if can_execute(program, identity_of(cluster.owner)) else ours


def state_of(cluster: DebianCluster, dr: Dr) -> tuple[Any, ...]:
    """All that `dr init` could have changed."""
    access = cluster.access_file.read_bytes()
    automatic = (cluster.folder / "data" / "postgresql.auto.conf").read_text()
    with cluster.connect() as connection:
        roles = connection.execute("SELECT to_jsonb(pg_authid) FROM pg_authid ORDER BY rolname").fetchall()
        slots = connection.execute("SELECT slot_name FROM pg_replication_slots").fetchall()
    files = {
        name: when for name, when in files_below(dr.folder).items() if not name.startswith(("state", "repository"))
    }
    return access, automatic, roles, slots, files


def items(ran: Ran) -> dict[str, tuple[str, bool]]:
    return {item["key"]: (item["state"], item["applied"]) for item in ran.document["items"]}


def environment_of(dr: Dr) -> dict[str, str]:
    return parse_environment((dr.folder / "etc" / "shop.env").read_text())


def role_of(dr: Dr, database: str) -> str:
    """How the role gets in."""
    return make_conninfo(environment_of(dr)["DR_DSN__SHOP"], dbname=database)


def levels(findings: list[dict[str, str]]) -> dict[str, str]:
    return {finding["looked_at"]: finding["level"] for finding in findings}


@contextmanager
def agent(dr: Dr) -> Iterator[None]:
    """The agent, as its unit starts it."""
    process = dr.start("agent", "--service", "shop", **environment_of(dr))
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_from_nothing_to_a_verified_backup_and_a_restore(cluster: DebianCluster, dr: Dr) -> None:
    before, nothing = state_of(cluster, dr), cluster.ask(SUM, "shop")

    proposed = initialize(cluster, dr, "--json")

    assert proposed.code == 0, proposed.err
    assert state_of(cluster, dr) == before
    assert proposed.document["mode"] == "streaming"
    assert {state for state, _ in items(proposed).values()} == {"to do", "done"}

    applied = initialize(cluster, dr, "--apply", "--backup", "--json")

    assert applied.code == 0, applied.err
    assert {state for state, _ in items(applied).values()} == {"done"}
    assert "problem" not in levels(applied.document["doctor"]).values()
    assert levels(applied.document["doctor"])["newest backup"] == "ok"
    file = dr.folder / "etc" / "shop.env"
    password = str(conninfo_to_dict(environment_of(dr)["DR_DSN__SHOP"])["password"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(password) > 20
    for told in (applied.out, applied.err, proposed.out, cluster.log.read_text()):
        assert password not in told
    assert cluster.access_file.read_bytes() == before[0]  # Debian's stock lines let it in

    assert cluster.ask(MAY) == "login,replication"
    for database, said in (("shop", "permission denied for database"), ("postgres", "permission denied for function")):
        with pytest.raises(psycopg.Error, match=said), psycopg.connect(role_of(dr, database)) as connection:
            connection.execute("SELECT pg_switch_wal()")

    after = state_of(cluster, dr)
    again = initialize(cluster, dr, "--apply", "--json")

    assert again.code == 0, again.err
    assert set(items(again).values()) == {("done", False)}
    assert state_of(cluster, dr) == after

    verified = dr("backup", "verify", "shop", "--json", **environment_of(dr))
    data = dr.folder / "restored" / "data"
    outage = datetime.now(UTC).isoformat()
    restored = dr(
        *("restore", "shop", "--target", data, "--start", "--outage-start", outage, "--json"),
        DR_REPOSITORY=dr.folder / "repository",
    )

    assert verified.code == 0, verified.out + verified.err
    assert restored.code in (0, 3), restored.err
    assert restored.document["record"]["verdicts"]["integrity"] == "met"
    _, _, _, port, socket, *_ = (data / "postmaster.pid").read_text().splitlines()
    try:
        found = make_conninfo("", host=socket, port=port, user=cluster.owner, dbname="shop")
        with psycopg.connect(found) as connection:
            assert connection.execute(SUM.encode()).fetchone() == (nothing,)
            assert connection.execute(OWNER.encode()).fetchone() == ("keeper",)
    finally:
        stop(data)


def test_archive_mode_waits_for_the_restart_that_is_not_its_to_make(cluster: DebianCluster, dr: Dr) -> None:
    archive = ("--mode", "archive", "--apply", "--backup", "--json")

    applied = initialize(cluster, dr, *archive)
    waiting = initialize(cluster, dr, *archive)

    assert (applied.code, waiting.code) == (3, 3), applied.err
    assert applied.document["hindered_by"] == waiting.document["hindered_by"] == ["a restart of the server"]
    assert items(applied)["settings"] == ("done", True)
    assert {applied for _, applied in items(waiting).values()} == {False}
    assert cluster.ask("SHOW archive_mode") == "off"

    cluster.restart()
    made = initialize(cluster, dr, *archive)

    assert made.code == 0, made.err
    assert {applied for _, applied in items(made).values()} == {False}
    doctor = levels(made.document["doctor"])
    assert "problem" not in doctor.values()
    assert {doctor[name] for name in ("archive_mode", "archive_command", "archive_timeout", "the archiver")} == {"ok"}
    assert dr("backup", "verify", "shop", **environment_of(dr)).code == 0


def test_each_privilege_is_needed_and_the_doctor_names_the_one_that_is_gone(shared: DebianCluster, dr: Dr) -> None:
    assert initialize(shared, dr, "--role", "lacking", "--apply", "--json").code == 0
    access = shared.access_file.read_text()
    environment = environment_of(dr)
    everything = [
        ("ALTER ROLE lacking NOREPLICATION", "ALTER ROLE lacking REPLICATION", "replication role"),
        ("ALTER ROLE lacking NOLOGIN", "ALTER ROLE lacking LOGIN", "not permitted to log in"),
        (
            "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
            "GRANT CONNECT ON DATABASE postgres TO PUBLIC",
            "permission",
        ),
        ("replication", "", "no pg_hba.conf entry for replication"),
    ]
    for taken, given, said in everything:
        if given:
            shared.do(taken)
        else:
            shared.access_file.write_text("".join(line for line in access.splitlines(True) if taken not in line))
            shared.do("SELECT pg_reload_conf()")
        try:
            doctor = dr("doctor", "shop", "--json", **environment)
            backup = dr("backup", "full", "shop", "--json", **environment)
        finally:
            shared.access_file.write_text(access)
            shared.do(given or "SELECT pg_reload_conf()")

        problems = [entry["seen"] for entry in doctor.document["findings"] if entry["level"] == "problem"]
        assert doctor.code == 1
        assert any(said in seen for seen in problems), (said, problems)
        assert backup.code == 1, said


def test_missing_lines_are_appended_to_the_access_file_and_nothing_else_is_changed(
    shared: DebianCluster, dr: Dr
) -> None:
    stock = shared.access_file.read_text()
    without = "".join(line for line in stock.splitlines(True) if "127.0.0.1/32" not in line).rstrip("\n")
    shared.access_file.write_text(without)
    shared.do("SELECT pg_reload_conf()")
    before = shared.access_file.stat()
    try:
        applied = initialize(shared, dr, "--role", "added", "--apply", "--json")
        text, after = shared.access_file.read_text(), shared.access_file.stat()
        again = initialize(shared, dr, "--role", "added", "--apply", "--json")
        unchanged = shared.access_file.read_text() == text
    finally:
        shared.access_file.write_text(stock)
        shared.do("SELECT pg_reload_conf()")

    assert (applied.code, again.code) == (0, 0), applied.err
    added = text.removeprefix(without).split("\n")
    assert text.startswith(without) and unchanged
    assert [line.split()[:3] for line in added if line and not line.startswith("#")] == [
        ["host", "postgres", "added"],
        ["host", "replication", "added"],
    ]
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    (copy,) = shared.configuration.glob("pg_hba.conf.*.before-dr-init")
    assert copy.read_text() == without
    copy.unlink()


def test_a_line_that_is_in_the_way_is_left_to_a_person(shared: DebianCluster, dr: Dr) -> None:
    stock = shared.access_file.read_text()
    shared.access_file.write_text("host all all 127.0.0.1/32 reject\n" + stock)
    shared.do("SELECT pg_reload_conf()")
    try:
        applied = initialize(shared, dr, "--role", "barred", "--apply", "--backup", "--json")
        unchanged = shared.access_file.read_text().endswith(stock)
    finally:
        shared.access_file.write_text(stock)
        shared.do("SELECT pg_reload_conf()")

    assert applied.code == 3, applied.err
    (access,) = [item for item in applied.document["items"] if item["key"] == "access"]
    assert access["state"] == "by hand" and "reject" in access["why"] and "line 1" in access["why"]
    assert unchanged and applied.document["backup"] is None


def test_another_tools_archive_command_stays_and_the_log_is_streamed_beside_it(cluster: DebianCluster, dr: Dr) -> None:
    theirs = f"test -d {cluster.folder / 'run'} && cp %p {cluster.folder / 'run'}/pgbackrest-%f"
    cluster.do("ALTER SYSTEM SET archive_mode = on", f"ALTER SYSTEM SET archive_command = '{theirs}'")
    hidden = initialize(cluster, dr, "--mode", "archive", "--json")  # by the server, until it is in force
    cluster.restart()

    refused = initialize(cluster, dr, "--mode", "archive", "--apply", "--json")
    applied = initialize(cluster, dr, "--apply", "--backup", "--json")

    for said in (hidden, refused):
        assert said.code == 2
        assert "pgBackRest" in said.document["error"]["message"]
    assert applied.code == 0, applied.err
    assert applied.document["mode"] == "streaming" and "pgBackRest" in applied.document["mode_reason"]
    assert cluster.ask("SHOW archive_command") == theirs
    assert "problem" not in levels(applied.document["doctor"]).values()


def test_another_tool_that_fails_is_a_problem_since_a_base_backup_waits_for_it(cluster: DebianCluster, dr: Dr) -> None:
    cluster.do("ALTER SYSTEM SET archive_mode = on", "ALTER SYSTEM SET archive_command = 'false pgbackrest'")
    cluster.restart()
    cluster.do("SELECT pg_switch_wal()")
    assert wait_until(lambda: cluster.ask("SELECT failed_count FROM pg_stat_archiver") != 0, timeout=30, interval=0.1)

    refused = initialize(cluster, dr, "--apply", "--json")

    assert refused.code == 2
    assert "archive_command" in refused.document["error"]["message"]
    assert cluster.ask("SELECT count(*) FROM pg_roles WHERE rolname = 'dr_backup'") == 0


def test_a_role_that_is_there_keeps_its_password_unless_that_is_to_change(shared: DebianCluster, dr: Dr) -> None:
    shared.do("CREATE ROLE known LOGIN PASSWORD 'theirs'")

    unknown = initialize(shared, dr, "--role", "known", "--apply", "--json")
    hash_before = shared.ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'known'")
    given = initialize(shared, dr, "--role", "known", "--apply", "--json", DR_ROLE_PASSWORD="theirs")
    hash_given = shared.ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'known'")
    renewed = initialize(shared, dr, "--role", "known", "--apply", "--reset-password", "--json")

    assert (unknown.code, given.code, renewed.code) == (2, 0, 0), (given.err, renewed.err)
    assert "DR_ROLE_PASSWORD" in unknown.document["error"]["hint"]
    assert hash_given == hash_before
    assert items(given)["role"] == ("done", True)  # it could not replicate
    assert conninfo_to_dict(environment_of(dr)["DR_DSN__SHOP"])["password"] != "theirs"
    assert shared.ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'known'") != hash_before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dsn", "host=127.0.0.1 user=postgres password=hunter2"], "DR_ADMIN_DSN"),
        (["--dsn", "postgresql://postgres:hunter2@127.0.0.1/postgres"], "DR_ADMIN_DSN"),
        (["--dsn", "host=127.0.0.1 port=1 user=postgres"], "--dsn"),
        (["--dsn", "nonsense"], "cannot be read"),
        (["--rto", "soon"], "--rto"),
        (["--full", "at night"], "--full"),
        (["--agent-host", "db.internal"], "--agent-host"),
        (["--agent-user", "nobody-of-that-name"], "useradd"),
        (["--repository", "ftp://there"], "ftp"),
        (["--connect-to", "nowhere"], "nowhere"),
        (["--incremental"], "17"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(
    shared: DebianCluster, dr: Dr, arguments: list[str], said: str
) -> None:
    before = state_of(shared, dr)

    refused = initialize(shared, dr, "--apply", *arguments)

    assert refused.code in (1, 2)
    assert said in refused.err and "hunter2" not in refused.err and "Traceback" not in refused.err
    assert state_of(shared, dr) == before


def test_an_agent_on_another_host_is_let_in_and_a_password_that_no_file_holds_is_told(
    shared: DebianCluster, dr: Dr
) -> None:
    stock = shared.access_file.read_text()
    try:
        applied = initialize(shared, dr, "--role", "far", "--agent-host", "192.0.2.9", "--apply", "--backup", "--json")
        added = shared.access_file.read_text().removeprefix(stock)
    finally:
        shared.access_file.write_text(stock)
        shared.do("SELECT pg_reload_conf()")

    assert applied.code == 3, applied.err
    assert [line.split()[3] for line in added.splitlines() if line.startswith("host")] == ["192.0.2.9/32"] * 2
    assert "the role logs in, and connects as for a backup" in applied.document["hindered_by"]
    assert not any((dr.folder / name).exists() for name in ("etc", "units", "repository"))
    with psycopg.connect(
        host="127.0.0.1", port=shared.port, user="far", password=applied.document["password"], dbname="postgres"
    ) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("far",)


def test_what_was_set_up_is_known_the_next_time(shared: DebianCluster, dr: Dr) -> None:
    common = ["init", "shop", "--dsn", shared.dsn, "--role", "remembered", "--apply", "--json"]
    common += ["--config-dir", str(dr.folder / "etc"), "--unit-dir", str(dr.folder / "units")]
    common += ["--agent-user", agent_user(shared, dr)]

    first = dr(*common, "--repository", dr.folder / "repository", DR_WORKERS="3")
    again = dr(*common)

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert environment_of(dr)["DR_WORKERS"] == "3"
    assert environment_of(dr)["DR_PLAN"] == str(dr.folder / "etc" / "recovery-plan.yaml")
    assert set(items(again).values()) == {("done", False)}


def test_what_is_told_to_take_it_back_does(shared: DebianCluster, dr: Dr) -> None:
    def kept() -> tuple[Any, ...]:
        _, _, roles, slots, files = state_of(shared, dr)
        return roles, slots, [name for name in files if name.startswith(("etc/", "units/"))]

    shared.do("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
    shared.do("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    before = kept()
    spool = dr.folder / "spool"
    applied = initialize(shared, dr, "--role", "undone", "--spool", spool, "--apply", "--json")
    undo = {item["key"]: item["undo"] for item in applied.document["items"] if item["applied"]}

    assert {"role", "slot", "settings", "environment", "unit", "spool"} <= undo.keys()
    assert kept() != before and spool.is_dir()
    for key in ("slot", "settings", "role"):
        for line in undo[key].splitlines():
            shared.do(line)
    subprocess.run(["sh", "-c", "\n".join(undo[key] for key in ("environment", "unit", "spool"))], capture_output=True)

    assert kept() == before and not spool.exists()
    assert shared.ask("SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'") == "-1"


def test_the_plan_keeps_its_comments_and_what_it_says_of_the_service(shared: DebianCluster, dr: Dr) -> None:
    plan = dr.folder / "plan.yaml"
    plan.write_text(PLAN.read_text())

    applied = initialize(shared, dr, "--role", "planned", "--tier", "high", "--apply", "--json")
    written = plan.read_text()
    other = initialize(shared, dr, "--role", "planned", "--tier", "low", "--apply", "--json")

    assert applied.code == 0, applied.err
    assert [line for line in PLAN.read_text().splitlines() if line not in written.splitlines()] == []
    assert dr("plan", "check", plan).code == 0
    assert other.code == 3 and plan.read_text() == written
    (entry,) = [item for item in other.document["items"] if item["key"] == "plan"]
    assert entry["state"] == "by hand"
    assert "-    tier: high" in entry["text"] and "+    tier: low" in entry["text"]


def test_a_person_is_asked_on_a_terminal_and_nothing_is_done_unless_he_agrees(shared: DebianCluster, dr: Dr) -> None:
    before = state_of(shared, dr)
    command = dr.command("init", "shop", "--role", "asked", "--apply", "--agent-user", agent_user(shared, dr))
    command += ["--config-dir", str(dr.folder / "etc"), "--unit-dir", str(dr.folder / "units")]
    environment = {**os.environ, **dr.environment, "DR_PLAN": str(dr.folder / "plan.yaml"), "PYTHONPATH": str(ROOT)}

    said = answer(command, environment, [shared.dsn, str(dr.folder / "repository"), "n"])

    assert "how an administrator reaches the server" in said and "the repository" in said
    assert "CREATE ROLE" in said and "apply what is marked to do?" in said
    assert state_of(shared, dr) == before


def answer(command: list[str], environment: dict[str, str], answers: list[str]) -> str:
    """What a command says on a terminal where these lines are typed, each when it has asked."""
    ours, its = pty.openpty()
    said = ""
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment, cwd="/tmp") as process:
        os.close(its)
        while True:
            try:
                said += os.read(ours, 1 << 16).decode(errors="replace")
            except OSError:  # the terminal has gone with the command
                break
            if answers and said.rstrip().endswith((":", "]:")) and said.rstrip().splitlines()[-1].strip():
                os.write(ours, answers.pop(0).encode() + b"\n")
        os.close(ours)
        process.wait(timeout=60)
    return said
