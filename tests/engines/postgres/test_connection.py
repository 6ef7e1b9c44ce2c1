"""How a server is reached, and that secrets are shown to nobody on the way."""

from pathlib import Path

import psycopg
import pytest

from dr_pipelines.engines.postgres.connection import connect, for_a_tool, without_secrets
from dr_pipelines.errors import ConfigurationError, ProcessError

SECRETS = {"password": "hunter1", "sslpassword": "hunter2", "oauth_client_secret": "hunter3"}
DSN = psycopg.conninfo.make_conninfo("host=127.0.0.1 port=1 user=clerk dbname=hotel", **SECRETS)


def read_by_libpq() -> dict[str, str]:
    """What libpq makes of the environment."""
    defaults = psycopg.pq.Conninfo.get_defaults()
    return {option.keyword.decode(): option.val.decode() for option in defaults if option.val is not None}


def test_a_connection_string_is_shown_without_secrets() -> None:
    assert without_secrets(DSN) == "user=clerk dbname=hotel host=127.0.0.1 port=1"
    with pytest.raises(ProcessError, match=r"port=1 .*cannot be reached") as raised, connect(DSN):
        pass
    assert "hunter" not in str(raised.value)


@pytest.mark.parametrize("dsn", ["user=clerk password=my hunter1", "postgresql://clerk:hunter1%zz@db/hotel"])
def test_a_connection_string_that_cannot_be_read_is_not_quoted(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read: (missing|invalid)") as raised, connect(dsn):
        pass
    assert "hunter" not in str(raised.value)


def test_a_tool_gets_secrets_where_only_libpq_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with for_a_tool(DSN, "somebody") as (conninfo, environment):
        shown = psycopg.conninfo.conninfo_to_dict(conninfo)
        assert shown.items() >= {"host": "127.0.0.1", "port": "1", "user": "clerk"}.items()
        assert shown["application_name"] == "somebody"
        assert not {*SECRETS, "dbname"} & set(shown)
        assert Path(environment["PGSERVICEFILE"]).stat().st_mode & 0o777 == 0o600
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert {key: read_by_libpq().get(key) for key in SECRETS} == SECRETS
    assert not Path(environment["PGSERVICEFILE"]).exists()


def test_a_tool_gets_what_libpq_reads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {
        "PGHOST": "db.example",
        "PGPASSFILE": "/root/pass",
        "PGSERVICEFILE": "/root/services",
        "PGSSLROOTCERT": "ca",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    with for_a_tool("user=clerk password=hunter1", "somebody") as (_, environment):
        assert environment.items() >= {**ours, "PGPASSWORD": "hunter1"}.items()


@pytest.mark.parametrize("variable", [True, False], ids=["of the environment", "of the connection string"])
def test_a_secret_without_a_variable_does_not_displace_a_service(
    monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    if variable:
        monkeypatch.setenv("PGSERVICE", "hotel")
    dsn = "sslpassword=hunter2" if variable else "service=hotel sslpassword=hunter2"
    with pytest.raises(ConfigurationError, match="sslpassword cannot be given") as raised, for_a_tool(dsn, "x"):
        pass
    assert "hunter" not in str(raised.value)


@pytest.mark.parametrize(
    ("dsn", "idle", "timeout"), [("host=db", "30", "90000"), ("host=db keepalives_idle=5 tcp_user_timeout=0", "5", "0")]
)
def test_a_peer_that_is_gone_is_noticed_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, dsn: str, idle: str, timeout: str
) -> None:
    given: list[str] = []

    def note(conninfo: str, **options: object) -> None:
        given.append(conninfo)
        raise psycopg.OperationalError

    monkeypatch.setattr(psycopg, "connect", note)
    with pytest.raises(ProcessError), connect(dsn):
        pass
    with for_a_tool(dsn, "x") as (conninfo, _):
        given.append(conninfo)
    for conninfo in given:
        options = psycopg.conninfo.conninfo_to_dict(conninfo)
        assert (options["keepalives_idle"], options["tcp_user_timeout"]) == (idle, timeout)
        assert (options["keepalives_interval"], options["keepalives_count"]) == ("10", "6")
