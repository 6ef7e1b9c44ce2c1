"""The administrator's connection, also for root on a server that knows its users by the operating system's names."""

import os
import pwd
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dr_pipelines.engines.postgres.connection import Connection, connect
from dr_pipelines.errors import ConfigurationError, ProcessError

__all__ = ["DSN_VARIABLE", "PASSWORD_VARIABLE", "SECRET_VARIABLES", "administrator", "default_dsn"]

DSN_VARIABLE, PASSWORD_VARIABLE = "DR_ADMIN_DSN", "DR_ROLE_PASSWORD"
SECRET_VARIABLES = (DSN_VARIABLE, PASSWORD_VARIABLE, "PGPASSWORD")
"""What is for `dr init` alone, and for nobody whom it starts."""
_SOCKETS = Path("/var/run/postgresql")


def default_dsn() -> str:
    """How a server on this machine is reached as packages set it up."""
    given = {"user": os.environ.get("PGUSER", "postgres"), "dbname": os.environ.get("PGDATABASE", "postgres")}
    if "PGHOST" not in os.environ:
        given["host"] = str(_SOCKETS) if _SOCKETS.is_dir() else "127.0.0.1"
    return make_conninfo("", **given)


@contextmanager
def administrator(dsn: str) -> Iterator[Connection]:
    """A connection, made over a socket by root as the operating system's user of the role's name: what "peer" asks for.

    Raises ProcessError, ConfigurationError.
    """
    with ExitStack() as stack:
        try:
            with _as_peer(dsn):
                connection = stack.enter_context(connect(dsn))
        except (ProcessError, ConfigurationError) as error:
            hint = f"--dsn, or {DSN_VARIABLE} with the password in it, says how an administrator reaches the server"
            raise type(error)(error.message, hint=hint) from None
        yield connection


@contextmanager
def _as_peer(dsn: str) -> Iterator[None]:
    """While it lasts this process is that user for sockets and files; root has it back afterwards."""
    given = conninfo_to_dict(dsn) if os.geteuid() == 0 else {}
    try:
        host = str(given.get("host") or os.environ.get("PGHOST") or "/")
        user = pwd.getpwnam(str(given.get("user"))) if host.startswith("/") else None
    except KeyError:
        user = None
    if os.geteuid() != 0 or user is None:
        yield
        return
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
