"""A server, a machine and wishes that nobody has, to propose for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from dr_pipelines.engines.postgres.connection import ServerFacts
from dr_pipelines.onboarding.items import Item, Proposal
from dr_pipelines.onboarding.machine import Machine, Place
from dr_pipelines.onboarding.proposal import Seen, propose
from dr_pipelines.onboarding.role import Tried
from dr_pipelines.onboarding.server import Administrator, Role, Server, Setting, Table
from dr_pipelines.onboarding.wishes import Wishes
from tests.onboarding.test_access import DEBIAN, read

FACTS = ServerFacts(
    major=15,
    version="15.18",
    system_identifier="7",
    timeline=1,
    segment_size=1 << 24,
    size=1 << 30,
    superuser="postgres",
    tablespaces=(),
    archive_mode="off",
    archive_command="(disabled)",
    archive_timeout=0,
    max_wal_size=1 << 30,
    data_checksums=True,
    in_recovery=False,
)
ADMINISTRATOR = Administrator("postgres", True, True, True, None, False)
VALUES = {
    "archive_command": "(disabled)",
    "archive_library": "",
    "archive_mode": "off",
    "archive_timeout": "0",
    "config_file": "/etc/postgresql/15/main/postgresql.conf",
    "data_directory": "/var/lib/postgresql/15/main",
    "fsync": "on",
    "full_page_writes": "on",
    "hba_file": "/etc/postgresql/15/main/pg_hba.conf",
    "listen_addresses": "localhost",
    "max_replication_slots": "10",
    "max_slot_wal_keep_size": "-1",
    "max_wal_senders": "10",
    "port": "5432",
    "wal_level": "replica",
}


def setting(value: str, **more: Any) -> Setting:
    return replace(Setting(value, "default", False, False, None), **more)


SERVER = Server(
    facts=FACTS,
    administrator=ADMINISTRATOR,
    settings={name: setting(value) for name, value in VALUES.items()},
    rules=tuple(read(DEBIAN)),
    access_text=b"",
    role=None,
    may_connect=True,
    missing=(),
    archiver_fails=False,
    senders_in_use=0,
    slots=(),
    databases=("shop", "postgres"),
    closed=(),
    tables=(Table("public", "orders"),),
)
ROLE = Role(may_login=True, may_replicate=True, more=())
MACHINE = Machine(
    name="db1",
    user="root",
    is_root=True,
    server_is_here=True,
    agent_is_here=True,
    server_user="postgres",
    access_file=Path("/etc/postgresql/15/main/pg_hba.conf"),
    agent_user="postgres",
    agent_group="postgres",
    agent_can_run=True,
    out_of_reach=None,
    command=Path("/opt/dr/.venv/bin/dr"),
    script=Path("/opt/dr/scripts/backup.sh"),
    script_text="#!/bin/sh\n",
    script_in_reach=True,
    installed_script=None,
    spool=Path("/var/lib/dr_pipelines/spool/shop"),
    spool_folder=None,
    state=Path("/var/lib/dr_pipelines"),
    plan=Path("/opt/dr/recovery-plan.yaml"),
    plan_text=None,
    plan_problem=None,
    environment=None,
    environment_text=None,
    may_configure=True,
    unit_text=None,
    supervised=True,
    place=Place.EMPTY,
    place_problem="there is no repository in s3://b/p",
    beside_the_data=False,
    free=None,
    spool_free=1 << 40,
    data_free=1 << 36,
    variables={},
    binaries="15.18 in /usr/lib/postgresql/15/bin",
)
WISHES = Wishes(
    service="shop",
    repository="s3://b/p",
    mode=None,
    role="dr_backup",
    password=SecretStr("hunter2"),
    password_is_new=True,
    reset_password=False,
    connect_to="postgres",
    spool=None,
    agent_user=None,
    agent_host=None,
    configuration=Path("/etc/dr_pipelines"),
    units=Path("/etc/systemd/system"),
    full=None,
    archive_timeout=None,
    incremental=False,
    tier=None,
    rto=None,
    rpo=None,
    database=None,
)
SOCKET = "host=/var/run/postgresql user=postgres dbname=postgres"
WORKS, REFUSED = Tried(None, None), Tried("refused", "refused")


def changed(server: Server = SERVER, /, facts: Any = None, **settings: Any) -> Server:
    """With these settings, and what else the server says of itself."""
    made = {name: value if isinstance(value, Setting) else setting(value) for name, value in settings.items()}
    return replace(server, facts=replace(server.facts, **(facts or {})), settings={**server.settings, **made})


def proposal(
    server: Server = SERVER,
    machine: Machine = MACHINE,
    wishes: Wishes = WISHES,
    *,
    dsn: str = SOCKET,
    tried: Tried | None = None,
) -> Proposal:
    return propose(Seen(server, machine, dsn, tried), wishes)


def item(made: Proposal, key: str) -> Item:
    (found,) = [item for item in made.items if item.key == key]
    return found
