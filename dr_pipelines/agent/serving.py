"""An agent as a process: its settings from the environment, its end by a signal."""

import logging
import random
import signal
import threading
from dataclasses import replace

from dr_pipelines.agent.journal import configure, say
from dr_pipelines.agent.receiver import Stream, slot_of
from dr_pipelines.agent.running import AgentOptions, run_agent
from dr_pipelines.errors import ConfigurationError, DrError, RepositoryError
from dr_pipelines.processes.postgres import find_client_binaries
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings, load_settings
from dr_pipelines.timing import SystemClock

__all__ = ["serve"]


def serve(service: str, *, sandbox: str | None = None, stream: bool = False) -> int:
    """Run the agent of a service until SIGTERM or SIGINT; returns the exit code. Must be called in the main thread.

    It streams the log where the settings say so for this service, or with `stream`. With `sandbox` it works on the
    repository of that name inside the repository, as a drill's agent does.
    """
    configure()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load_settings()
        repository = _open_with_patience(settings, sandbox, stop)
        if repository is not None:
            options = AgentOptions(
                service=service,
                spool=settings.spool_of(service),
                store=repository.service(service),
                dsn=settings.dsn_of(service),
                level=settings.compression_level,
                confirm=repository.confirm,
            )
            if stream or settings.streams(service):
                options = replace(options, stream=_stream(settings, service), sample_every=0.5, heartbeat=1.0)
            run_agent(options, clock=SystemClock(), stop=stop)
    except DrError as error:
        say("failed", logging.ERROR, code=error.code, error=str(error))
        return error.exit_code
    return 0


def _stream(settings: Settings, service: str) -> Stream:
    return Stream(lambda major: find_client_binaries(settings, major), slot_of(service))


def _open_with_patience(settings: Settings, sandbox: str | None, stop: threading.Event) -> Repository | None:
    """The repository, as soon as it can be opened; None where `stop` came first."""
    if settings.repository is None:
        raise ConfigurationError("DR_REPOSITORY is not set", hint="a folder's path or s3://bucket/prefix")
    said, pause = "", 0.2
    while True:
        try:
            repository = open_repository(settings.repository, settings=settings)
            return repository.sandbox(sandbox) if sandbox else repository
        except RepositoryError as error:
            if str(error) != said:
                said = str(error)
                say("problem", logging.WARNING, about="repository", problem=said)
        if stop.wait(pause * random.uniform(0.5, 1)):
            return None
        pause = min(2 * pause, 5.0)
