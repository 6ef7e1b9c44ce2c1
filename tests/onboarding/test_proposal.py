"""What is proposed for which server: the mode, the role, its way in, the settings; and what is left alone."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from dr_pipelines.agent.receiver import slot_of
from dr_pipelines.engines.findings import Level
from dr_pipelines.engines.postgres.privileges import Missing
from dr_pipelines.errors import ConfigurationError, DrError, UsageError
from dr_pipelines.onboarding.items import AppendRules, MakeRole, Mode, RunSql, State
from dr_pipelines.onboarding.logs import slot_name
from dr_pipelines.onboarding.machine import Folder, Place
from dr_pipelines.onboarding.server import Administrator, Server
from tests.onboarding.made_up import (
    MACHINE,
    REFUSED,
    ROLE,
    SERVER,
    WISHES,
    WORKS,
    changed,
    item,
    proposal,
    setting,
)
from tests.onboarding.test_access import read

ARCHIVES = {"archive_mode": "on", "archive_command": ""}
ARCHIVE = replace(WISHES, mode=Mode.ARCHIVE)
ELSEWHERE = replace(
    MACHINE, server_is_here=False, agent_is_here=False, server_user=None, access_file=None, data_free=None
)
REMOTE = "host=db.internal user=admin password=secret sslmode=require sslcert=/his.crt"


@pytest.mark.parametrize(
    ("server", "machine", "mode", "said"),
    [
        (SERVER, MACHINE, Mode.STREAMING, "no restart"),
        (changed(**ARCHIVES), MACHINE, Mode.ARCHIVE, "nobody's"),
        (changed(**{**ARCHIVES, "archive_command": "/bin/true"}), MACHINE, Mode.ARCHIVE, "nobody's"),
        (
            changed(**{**ARCHIVES, "archive_command": "pgbackrest archive-push %p"}),
            MACHINE,
            Mode.STREAMING,
            "pgBackRest",
        ),
        (changed(**{**ARCHIVES, "archive_command": "cp %p /b/%f"}), MACHINE, Mode.STREAMING, "somebody's own"),
        (changed(**{**ARCHIVES, "archive_library": "basic_archive"}), MACHINE, Mode.STREAMING, "basic_archive"),
        (
            changed(archive_command=setting("(disabled)", written="wal-g wal-push %p")),
            MACHINE,
            Mode.STREAMING,
            "WAL-G",
        ),
        (changed(**ARCHIVES), ELSEWHERE, Mode.STREAMING, "not on the server's host"),
    ],
)
def test_the_mode_that_fits(server: Server, machine: Any, mode: Mode, said: str) -> None:
    made = proposal(server, machine)

    assert made.mode is mode
    assert said in made.mode_reason


@pytest.mark.parametrize("command", ["pgbackrest archive-push %p", "cp %p /b/%f"])
def test_an_archive_command_of_somebody_elses_is_never_touched(command: str) -> None:
    server = changed(archive_mode="on", archive_command=command)

    with pytest.raises(ConfigurationError, match="--mode streaming"):
        proposal(server, wishes=ARCHIVE)
    statements = [
        word for each in proposal(server).items for act in each.acts for word in getattr(act, "statements", ())
    ]

    assert not any("archive" in statement for statement in statements)


def test_the_mode_that_a_service_is_set_up_with_stays_unless_another_is_asked_for() -> None:
    free, taken = changed(**ARCHIVES), changed(archive_mode="on", archive_command="cp %p /b/%f")
    streams = replace(MACHINE, environment={"DR_LOG__SHOP": "stream"})
    archives = replace(MACHINE, environment={"DR_LOG__SHOP": "archive"})

    assert proposal(free, streams).mode is Mode.STREAMING
    assert proposal(SERVER, archives).mode is Mode.ARCHIVE
    for made, said in ((proposal(free, streams, ARCHIVE), "archive"), (proposal(taken, archives), "stream")):
        assert made.environment["DR_LOG__SHOP"] == said
        assert f"DR_LOG__SHOP={said}" in item(made, "environment").text


def test_the_settings_of_archive_mode() -> None:
    made = item(proposal(wishes=ARCHIVE), "settings")

    assert made.state is State.TO_DO
    assert made.text.splitlines() == [
        """ALTER SYSTEM SET "archive_command" = 'DR_SPOOL=''/var/lib/dr_pipelines/spool/shop'' """
        """''/opt/dr/scripts/backup.sh'' wal %p %f';""",
        """ALTER SYSTEM SET "archive_timeout" = '60s';""",
        """ALTER SYSTEM SET "archive_mode" = 'on';""",
        "SELECT pg_reload_conf();",
    ]
    assert made.undo.count("ALTER SYSTEM RESET") == 3
    assert isinstance(made.acts[0], RunSql)
    restart = item(proposal(wishes=ARCHIVE), "restart")
    assert (restart.state, restart.text) == (State.BY_HAND, "systemctl restart postgresql@15-main")


def test_settings_that_are_right_are_left_and_what_was_set_before_comes_back() -> None:
    ours = "DR_SPOOL='/var/lib/dr_pipelines/spool/shop' '/opt/dr/scripts/backup.sh' wal %p %f"
    right = changed(facts={"archive_timeout": 30}, archive_mode="on", archive_command=ours)
    slow = changed(right, facts={"archive_timeout": 300}, archive_timeout=setting("5min", from_alter_system=True))

    assert item(proposal(right), "settings").state is State.DONE
    assert item(proposal(slow), "settings").undo.splitlines()[0] == """ALTER SYSTEM SET "archive_timeout" = '5min';"""
    assert [each.key for each in proposal(right).items if each.key == "restart"] == []


def test_a_change_that_waits_for_a_restart_is_not_made_again() -> None:
    ours = "DR_SPOOL='/var/lib/dr_pipelines/spool/shop' '/opt/dr/scripts/backup.sh' wal %p %f"
    waiting = changed(
        facts={"archive_timeout": 60},
        archive_mode=setting("off", pending_restart=True),
        archive_command=setting("(disabled)", written=ours),
    )

    made = proposal(waiting, wishes=ARCHIVE)

    assert item(made, "settings").state is State.DONE
    assert "archive_mode" in item(made, "restart").why


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (changed(archive_mode=setting("off", source="command line")), "command line"),
        (changed(allow_alter_system="off"), "allow_alter_system"),
        (
            replace(SERVER, administrator=replace(SERVER.administrator, superuser=False), role=ROLE),
            "may not ALTER SYSTEM",
        ),
    ],
)
def test_settings_that_cannot_be_set_from_here_are_for_a_person(server: Server, said: str) -> None:
    made = item(proposal(server, wishes=ARCHIVE, tried=WORKS), "settings")

    assert made.state is State.BY_HAND
    assert said in made.why and made.text and not made.acts


def test_a_slot_gets_a_limit_that_fits_the_disk_unless_others_have_slots() -> None:
    alone = item(proposal(), "settings")
    shared = item(proposal(replace(SERVER, slots=("subscriber", "dr_shop"))), "settings")
    limited = item(proposal(changed(max_slot_wal_keep_size="1GB")), "settings")

    assert "'16GB'" in alone.text and alone.state is State.TO_DO
    assert shared.state is State.BY_HAND and "subscriber" in shared.why
    assert limited.state is State.DONE
    assert item(proposal(), "slot").state is State.TO_DO
    assert item(proposal(replace(SERVER, slots=("dr_shop",))), "slot").state is State.DONE


def test_summaries_for_incremental_backups_are_kept_where_asked_for() -> None:
    server = changed(facts={"major": 18}, summarize_wal="off")

    assert "summarize_wal" not in item(proposal(server), "settings").text
    wanted = proposal(server, wishes=replace(WISHES, incremental=True))
    assert "summarize_wal" in item(wanted, "settings").text
    assert "incremental: 30 9,15,21 * * *" in item(wanted, "plan").text
    with pytest.raises(UsageError, match="17"):
        proposal(wishes=replace(WISHES, incremental=True))


def test_a_role_gets_what_it_lacks_and_no_more() -> None:
    new = item(proposal(), "role")
    weak = replace(
        SERVER, role=replace(ROLE, may_replicate=False), may_connect=False, missing=(Missing("dr_backup", "f()", "x"),)
    )
    there = item(proposal(replace(SERVER, role=ROLE), tried=WORKS), "role")
    mended = item(proposal(weak, tried=REFUSED), "role")

    (act,) = new.acts
    assert isinstance(act, MakeRole) and act.password is not None
    assert act.statements[-1] == 'ALTER ROLE "dr_backup" LOGIN REPLICATION'
    assert there.state is State.DONE
    (act,) = mended.acts
    assert isinstance(act, MakeRole) and act.password is None
    assert act.statements == (
        'ALTER ROLE "dr_backup" LOGIN REPLICATION',
        'GRANT CONNECT ON DATABASE "postgres" TO "dr_backup"',
        'GRANT EXECUTE ON FUNCTION f() TO "dr_backup"',
    )


def test_a_role_that_may_more_is_told_and_kept() -> None:
    server = replace(SERVER, role=replace(ROLE, more=("SUPERUSER", "member of admins")))

    made = item(proposal(server, tried=WORKS), "role")

    assert made.state is State.DONE
    assert "SUPERUSER, member of admins" in made.why


def test_a_role_whose_password_is_not_known_is_not_given_another_unasked() -> None:
    server = replace(SERVER, role=ROLE)

    with pytest.raises(ConfigurationError, match="DR_ROLE_PASSWORD"):
        proposal(server)
    (act,) = item(proposal(server, wishes=replace(WISHES, reset_password=True)), "role").acts

    assert isinstance(act, MakeRole) and act.password == WISHES.password


def test_debians_stock_access_file_is_left_as_it_is() -> None:
    made = item(proposal(), "access")

    assert made.state is State.DONE
    assert made.text.count("/etc/postgresql/15/main/pg_hba.conf:") == 2 and made.text.endswith(":6")


def test_missing_lines_are_appended_and_only_those() -> None:
    rules = tuple(read(["local all all peer", "host all all 127.0.0.1/32 scram-sha-256"]))

    made = item(proposal(replace(SERVER, rules=rules)), "access")

    (act,) = made.acts
    assert isinstance(act, AppendRules)
    comment, *lines = act.text.splitlines()
    assert comment.startswith("# dr_pipelines")
    assert [line.split() for line in lines] == [["host", "replication", "dr_backup", "127.0.0.1/32", "scram-sha-256"]]


def test_a_line_in_the_way_is_for_a_person() -> None:
    rules = tuple(read(["host all all 0.0.0.0/0 reject"]))

    made = item(proposal(replace(SERVER, rules=rules)), "access")

    assert made.state is State.BY_HAND
    assert "line 1" in made.why and "reject" in made.why


def test_a_file_that_is_not_ours_to_write_is_for_a_person() -> None:
    made = item(proposal(replace(SERVER, rules=()), replace(MACHINE, access_file=None)), "access")

    assert made.state is State.BY_HAND
    assert len(made.text.splitlines()) == 4


def test_the_role_reaches_a_server_elsewhere_as_the_administrator_does_without_what_is_his() -> None:
    far = replace(SERVER, administrator=Administrator("admin", True, True, True, "10.0.0.7", True), rules=())

    made = proposal(far, ELSEWHERE, dsn=REMOTE)

    assert conninfo_to_dict(made.environment["DR_DSN__SHOP"]) == {
        "host": "db.internal",
        "user": "dr_backup",
        "password": "hunter2",
        "dbname": "postgres",
        "sslmode": "require",
    }
    assert "hostssl" in item(made, "access").text and "10.0.0.7/32" in item(made, "access").text
    assert made.environment["DR_LOG__SHOP"] == "stream"


def test_an_agent_on_another_host_gets_its_files_told_and_its_address_let_in() -> None:
    wishes = replace(WISHES, agent_host="10.0.0.9/32")

    made = proposal(machine=replace(MACHINE, agent_is_here=False), wishes=wishes)

    assert item(made, "access").state is State.TO_DO
    assert "10.0.0.9/32" in item(made, "access").text
    assert "host=db1" in made.environment["DR_DSN__SHOP"]
    assert [item(made, key).state for key in ("environment", "unit", "login", "spool")] == [State.BY_HAND] * 4


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (changed(facts={"in_recovery": True}), "standby"),
        (changed(facts={"tablespaces": ("fast",)}), "fast"),
        (changed(facts={"major": 14, "version": "14.1"}), "14.1"),
    ],
)
def test_a_server_that_cannot_be_backed_up_is_refused(server: Server, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        proposal(server)


@pytest.mark.parametrize(
    ("major", "may_create", "may_replicate", "said"),
    [
        (15, True, True, "only a superuser"),
        (15, True, False, "only a superuser"),
        (18, True, False, "lacks REPLICATION"),
        (18, False, True, "lacks CREATEROLE"),
        (18, False, False, "lacks CREATEROLE and REPLICATION"),
        (18, True, True, None),
    ],
)
def test_who_may_give_replication(major: int, may_create: bool, may_replicate: bool, said: str | None) -> None:
    administrator = Administrator("cloud", False, may_create, may_replicate, "10.0.0.7", True)
    server = replace(changed(facts={"major": major}), administrator=administrator, rules=None)

    if said is not None:
        with pytest.raises(ConfigurationError, match=said):
            proposal(server, ELSEWHERE, dsn=REMOTE)
    else:
        assert proposal(server, ELSEWHERE, dsn=REMOTE).mode is Mode.STREAMING
    given = replace(server, role=ROLE)
    assert item(proposal(given, ELSEWHERE, dsn=REMOTE, tried=WORKS), "role").state is State.DONE
    of_a_group = replace(server, role=replace(ROLE, may_replicate=False))
    assert item(proposal(of_a_group, ELSEWHERE, dsn=REMOTE, tried=WORKS), "role").state is State.DONE


def test_no_text_of_a_proposal_holds_a_secret() -> None:
    machine = replace(MACHINE, variables={"DR_S3_SECRET_ACCESS_KEY": "hunter3", "DR_S3_REGION": "eu"})

    made = proposal(machine=machine)

    told = "\n".join(str(value) for each in made.items for value in each.described().values())
    assert "hunter" not in told and "hunter" not in repr(made.items[2])
    assert "DR_S3_REGION=eu" in told
    assert made.environment["DR_S3_SECRET_ACCESS_KEY"] == "hunter3"


def test_an_environment_file_keeps_what_it_says_but_for_a_new_password() -> None:
    there = {"DR_REPOSITORY": "s3://other", "DR_DSN__SHOP": "user=dr_backup password=old"}
    machine = replace(MACHINE, environment=there, environment_text="DR_REPOSITORY=s3://other\n")

    made = proposal(machine=machine)

    assert "DR_REPOSITORY" in item(made, "environment").why
    assert made.environment["DR_REPOSITORY"] == "s3://other"
    assert "hunter2" in made.environment["DR_DSN__SHOP"]
    (act,) = item(made, "environment").acts
    assert "s3://other" in act.content and "DR_REPOSITORY=s3://b/p" not in act.content  # type: ignore[union-attr]


def test_an_empty_place_that_was_a_repository_is_not_made_one_again() -> None:
    machine = replace(MACHINE, environment={"DR_REPOSITORY": "s3://b/p"})

    made = item(proposal(machine=machine), "repository")

    assert made.state is State.BY_HAND and "mounted" in made.why


def test_a_spool_with_the_right_owner_stays() -> None:
    right = replace(MACHINE, spool_folder=Folder(0o700, "postgres", "postgres"))
    wrong = replace(MACHINE, spool_folder=Folder(0o755, "root", "root"))

    assert item(proposal(machine=right), "spool").state is State.DONE
    assert item(proposal(machine=wrong), "spool").state is State.TO_DO
    assert item(proposal(wishes=ARCHIVE), "spool").text.startswith("install -d -m 2770 -o postgres")
    assert item(proposal(machine=replace(MACHINE, is_root=False, user="me")), "spool").state is State.BY_HAND


def test_a_script_that_the_server_cannot_reach_is_copied() -> None:
    machine = replace(MACHINE, script_in_reach=False)

    made = proposal(machine=machine, wishes=ARCHIVE)

    assert item(made, "script").state is State.TO_DO
    assert "'/var/lib/dr_pipelines/bin/backup.sh'" in item(made, "settings").text.replace("''", "'")
    copied = replace(machine, installed_script=MACHINE.script_text)
    assert item(proposal(machine=copied, wishes=ARCHIVE), "script").state is State.DONE


@pytest.mark.parametrize(
    ("machine", "looked_at", "level"),
    [
        (replace(MACHINE, beside_the_data=True), "the repository", Level.WARNING),
        (replace(MACHINE, place=Place.REFUSED, place_problem="no bucket"), "the repository", Level.PROBLEM),
        (replace(MACHINE, binaries=None), "PostgreSQL", Level.PROBLEM),
        (replace(MACHINE, agent_can_run=False), "the agent", Level.PROBLEM),
        (replace(MACHINE, out_of_reach="postgres cannot enter /root"), "the agent", Level.PROBLEM),
        (replace(MACHINE, free=1), "room in the repository", Level.WARNING),
        (replace(MACHINE, spool_free=1), "room in the spool", Level.WARNING),
    ],
)
def test_what_is_wrong_with_the_machine_is_found(machine: Any, looked_at: str, level: Level) -> None:
    (found,) = [each for each in proposal(machine=machine).findings if each.level is not Level.OK]

    assert (found.looked_at, found.level) == (looked_at, level)
    assert found.mend


def test_what_is_wrong_with_the_server_is_found() -> None:
    server = replace(changed(facts={"data_checksums": False}, fsync="off"), senders_in_use=9)

    found = {each.looked_at: each.level for each in proposal(server).findings if each.level is not Level.OK}

    assert found == {"senders": Level.WARNING, "data checksums": Level.WARNING, "fsync": Level.PROBLEM}


def test_without_rights_files_are_told_and_not_written() -> None:
    made = proposal(machine=replace(MACHINE, may_configure=False, user="me"))

    for key in ("environment", "unit"):
        assert item(made, key).state is State.BY_HAND
        assert item(made, key).text and not item(made, key).acts


def test_a_unit_that_somebody_changed_stays() -> None:
    made = proposal()
    text = item(made, "unit").text

    assert item(proposal(machine=replace(MACHINE, unit_text=text)), "unit").state is State.DONE
    assert item(proposal(machine=replace(MACHINE, unit_text=text + "Nice=5\n")), "unit").state is State.BY_HAND
    assert "InaccessiblePaths=-/var/lib/postgresql/15/main" in text
    assert "ExecStart=/opt/dr/.venv/bin/dr agent --service shop" in text


def test_limits_of_the_plan_are_kept() -> None:
    tight = replace(WISHES, mode=Mode.ARCHIVE, archive_timeout=timedelta(seconds=10))

    assert "'10s'" in item(proposal(wishes=tight), "settings").text
    with pytest.raises(DrError, match="RPO"):
        proposal(wishes=replace(tight, rpo=timedelta(seconds=5)))
    assert item(proposal(machine=replace(MACHINE, plan=Path("/p.yaml"))), "plan").text.startswith("plan_version: 1")


def test_the_slot_is_the_one_that_the_agent_streams_through() -> None:
    assert slot_name("My-orders_2".lower()) == slot_of("my-orders_2") == "dr_my_orders_2"
