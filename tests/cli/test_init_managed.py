"""`dr init` where the administrator is no superuser and no file is in reach: a server that somebody else runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from dr_pipelines.processes.postgres import find_binaries
from tests import archived
from tests.cli.conftest import Dr, Ran
from tests.cli.debian import debian_cluster

pytestmark = [pytest.mark.slow, pytest.mark.debian]

Do = Callable[[str], None]


class Managed:
    """A server of one version, run by somebody else: `do` is his."""

    def __init__(self, dsn: str, do: Do, access_file: Path) -> None:
        self.dsn, self.do, self.access_file = dsn, do, access_file

    def initialize(self, dr: Dr, role: str, *arguments: str, **more: Any) -> Ran:
        return dr(
            *("init", "shop", "--role", role, "--json", *arguments),
            *("--repository", dr.folder / "repository"),
            *("--config-dir", dr.folder / "etc", "--unit-dir", dr.folder / "units"),
            DR_ADMIN_DSN=self.dsn,
            DR_PLAN=dr.folder / "plan.yaml",
            **more,
        )

    def let_replicate(self, allowed: bool) -> None:
        lines = self.access_file.read_text().splitlines()
        kept = [line for line in lines if line.split()[:2] != ["host", "replication"]]
        kept += ["host replication all 127.0.0.1/32 scram-sha-256"] * allowed
        self.access_file.write_text("\n".join(kept) + "\n")
        self.do("SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def fifteen() -> Iterator[Managed]:
    with debian_cluster() as cluster:
        cluster.do("CREATE ROLE cloud LOGIN CREATEROLE CREATEDB PASSWORD 'x'")
        dsn = make_conninfo("", host="127.0.0.1", port=cluster.port, user="cloud", password="x", dbname="postgres")
        yield Managed(dsn, cluster.do, cluster.access_file)


@pytest.fixture(scope="module")
def eighteen() -> Iterator[Managed]:
    with archived.state() as settings, archived.cluster(settings, find_binaries(settings, 18)) as cluster:
        cluster.start(max_slot_wal_keep_size="1GB", fsync="on")
        cluster.do("CREATE ROLE cloud LOGIN CREATEROLE CREATEDB PASSWORD 'x'")
        dsn = make_conninfo(cluster.server.dsn("postgres"), user="cloud", password="x")
        yield Managed(dsn, cluster.do, cluster.server.data / "pg_hba.conf")


def test_before_16_nobody_but_a_superuser_gives_replication_and_that_is_said(fifteen: Managed, dr: Dr) -> None:
    refused = fifteen.initialize(dr, "given", "--apply")

    assert refused.code == 2
    error = refused.document["error"]
    assert "lets only a superuser give REPLICATION, and cloud is none" in error["message"]
    assert "--role" in error["hint"]
    assert not (dr.folder / "etc").exists() and not (dr.folder / "repository").exists()


def test_a_role_that_the_provider_made_is_used_and_what_is_his_is_told(fifteen: Managed, dr: Dr) -> None:
    fifteen.do("CREATE ROLE provided LOGIN REPLICATION PASSWORD 'theirs'")

    applied = fifteen.initialize(dr, "provided", "--apply", "--backup", DR_ROLE_PASSWORD="theirs")

    assert applied.document["mode"] == "streaming"
    states = {item["key"]: item["state"] for item in applied.document["items"]}
    assert states["role"] == states["login"] == states["slot"] == "done"
    assert states["settings"] == "by hand"
    assert applied.document["backup"]["kind"] == "full"
    problems = [entry["looked_at"] for entry in applied.document["doctor"] if entry["level"] == "problem"]
    assert (applied.code, problems) == (1, ["max_slot_wal_keep_size"])  # the provider's to set
    fifteen.do("SELECT pg_drop_replication_slot('dr_shop')")


def test_a_server_that_refuses_replication_is_told_in_its_own_words(fifteen: Managed, dr: Dr) -> None:
    fifteen.do("CREATE ROLE barred LOGIN REPLICATION PASSWORD 'theirs'")
    fifteen.let_replicate(False)
    try:
        refused = fifteen.initialize(dr, "barred", "--apply", DR_ROLE_PASSWORD="theirs")
    finally:
        fifteen.let_replicate(True)

    assert refused.code == 2
    assert "it refuses replication (no pg_hba.conf entry" in refused.document["error"]["message"]
    assert not (dr.folder / "repository").exists()


def test_from_16_on_an_administrator_who_may_replicate_lets_the_role(eighteen: Managed, dr: Dr) -> None:
    lacking = eighteen.initialize(dr, "made", "--apply")
    eighteen.do("ALTER ROLE cloud REPLICATION")
    eighteen.let_replicate(False)
    barred = eighteen.initialize(dr, "made", "--apply")
    eighteen.let_replicate(True)
    nothing_yet = not (dr.folder / "repository").exists()
    applied = eighteen.initialize(dr, "made", "--apply", "--backup")

    assert (lacking.code, barred.code) == (2, 2)
    assert "lacks REPLICATION" in lacking.document["error"]["message"]
    assert "no pg_hba.conf entry" in barred.document["error"]["message"]
    assert nothing_yet
    assert applied.code == 0, applied.err
    assert "problem" not in {entry["level"] for entry in applied.document["doctor"]}
    assert applied.document["backup"]["kind"] == "full"
