"""`dr agent`: keep a database's log flowing to the repository."""

from contextlib import suppress
from typing import Annotated

import typer

from dr_pipelines.agent.serving import serve
from dr_pipelines.cli.frame import Json, Terminal
from dr_pipelines.errors import ConfigurationError, PlanError, ProcessError
from dr_pipelines.plan import load_plan
from dr_pipelines.settings import Settings, load_settings

__all__ = ["agent"]


def agent(
    service: Annotated[str, typer.Option(help="A PostgreSQL service of the plan.")] = "database",
    stream: Annotated[
        bool, typer.Option("--stream", help="Take the log from the server as it is written (DR_LOG__<SERVICE>=stream).")
    ] = False,
    as_json: Json = False,
) -> int:
    """Ship the log of a database to the repository, until SIGTERM or Ctrl-C.

    The server hands full segments over with archive_command, into the spool; with --stream they are taken from the
    server through a replication slot while they are written, so that seconds are at stake, not the rest of a segment.

    Runs in the foreground, for a supervisor to keep. Reads DR_REPOSITORY, DR_SPOOL__<SERVICE> and DR_DSN__<SERVICE>;
    logs lines of JSON to standard error.
    """
    settings = load_settings()
    if settings.repository is None:
        raise ConfigurationError("DR_REPOSITORY is not set", hint="a folder's path or s3://bucket/prefix")
    _check_service(settings, service)
    code = serve(service, stream=stream)
    if code:
        error = ProcessError(
            f"the agent of {service} ended with {code}", hint="why, says the last line of its log above"
        )
        error.exit_code = code
        raise error
    Terminal(as_json=as_json).result({"service": service, "ended": True}, lambda console: None)
    return code


def _check_service(settings: Settings, service: str) -> None:
    """Raise UsageError where a plan is there and has no such database."""
    # A plan that cannot be read is no reason to let the log pile up.
    with suppress(PlanError):
        load_plan(settings.plan).require_database(service)
