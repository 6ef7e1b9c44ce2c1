"""The first backup of a service that was just set up: as the agent's user, with the agent's environment and no more."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from dr_pipelines.cli.frame import Terminal
from dr_pipelines.cli.variables import settings_with
from dr_pipelines.engines.findings import Finding, Level
from dr_pipelines.engines.postgres.coverage import systems
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.errors import BackupError, DrError, ProcessError
from dr_pipelines.onboarding.administrator import SECRET_VARIABLES
from dr_pipelines.onboarding.items import Proposal
from dr_pipelines.onboarding.machine import identity_of
from dr_pipelines.processes.identity import Identity, credentials, end_of, environment
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.timing import SystemClock, wait_until

__all__ = ["FirstBackup", "first_backup"]

_PATIENCE = 30.0
"""Seconds in which the agent has to be heard of."""


@dataclass(frozen=True)
class FirstBackup:
    """What was made, and what the doctor says of the service while its agent is at work."""

    backup: Mapping[str, Any]
    """As `dr backup full --json` tells it."""
    findings: tuple[Finding, ...]
    agent_was_ours: bool
    """Whether the agent was started for this alone, and has ended with it."""


@dataclass(frozen=True)
class _User:
    """The agent's user, in whose place commands are carried out here."""

    command: str
    identity: Identity | None
    environment: dict[str, str]

    def start(
        self, *arguments: str, stdout: IO[bytes] | int | None, stderr: IO[bytes] | None
    ) -> subprocess.Popen[bytes]:
        given = environment(self.identity, self.environment)
        return subprocess.Popen(
            [self.command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={name: value for name, value in given.items() if name not in SECRET_VARIABLES},
            cwd="/",
            start_new_session=True,
            **credentials(self.identity),
        )

    def ask(self, *arguments: str) -> Any:
        """The JSON document that a command prints; its notes go to our standard error. Raises BackupError."""
        with self.start(*arguments, "--json", stdout=subprocess.PIPE, stderr=None) as process:
            try:
                said = process.communicate()[0]
            except BaseException:
                process.terminate()
                raise
        try:
            found = json.loads(said)
        except ValueError:
            raise ProcessError(f"dr {arguments[0]} ended with {process.returncode}: {end_of(said.decode())}") from None
        if "error" in found:
            raise BackupError(f"dr {' '.join(arguments)}: {found['error']['message']}", hint=found["error"]["hint"])
        return found


def first_backup(terminal: Terminal, proposal: Proposal) -> FirstBackup:
    """Make it, with an agent of our own for as long as it takes where none is at work; then ask the doctor.

    Raises BackupError, ProcessError.
    """
    as_root = os.geteuid() == 0 and proposal.agent_user != "root"
    user = _User(
        str(proposal.command), identity_of(proposal.agent_user) if as_root else None, dict(proposal.environment)
    )
    service = proposal.service
    with _agent(terminal, user, service) as is_ours:
        made = user.ask("backup", "full", service)
        _await_point(user, service, datetime.fromisoformat(made["stopped_at"]))
        looked = user.ask("doctor", service)
    findings = tuple(Finding(**{**entry, "level": Level(entry["level"])}) for entry in looked["findings"])
    return FirstBackup(made, tuple(finding for finding in findings if finding.area == service), is_ours)


@contextmanager
def _agent(terminal: Terminal, user: _User, service: str) -> Iterator[bool]:
    """An agent at work while the block runs; whether it is ours."""
    began = SystemClock().wall()
    with tempfile.TemporaryFile() as log, user.start("agent", "--service", service, stdout=log, stderr=log) as process:
        try:
            heard = wait_until(
                lambda: process.poll() is not None or _heard(user, service, began), timeout=_PATIENCE, interval=0.2
            )
            others = process.poll() is not None and '"locked"' in _read(log)
            if not others and (process.poll() is not None or not heard):
                raise ProcessError(f"the agent does not work: {end_of(_read(log), lines=3)}", hint="dr doctor")
            if not others:
                terminal.note("an agent runs inside this command until the backup is made")
            yield not others
        finally:
            process.terminate()


def _read(log: IO[bytes]) -> str:
    return os.pread(log.fileno(), 1 << 16, 0).decode(errors="replace")


def _heard(user: _User, service: str, since: datetime) -> bool:
    """Whether the agent has said something since."""
    return any(position.heartbeat_at > since for position in _positions(user, service))


def _await_point(user: _User, service: str, moment: datetime) -> None:
    """Wait until what was written up to the moment can be restored; the doctor tells where that does not come."""
    wait_until(
        lambda: any(each.recovery_point and each.recovery_point > moment for each in _positions(user, service)),
        timeout=_PATIENCE,
        interval=0.2,
    )


def _positions(user: _User, service: str) -> list[Any]:
    settings = settings_with(user.environment)
    assert settings.repository is not None
    try:
        store = open_repository(settings.repository, settings=settings).service(service)
        return [position for system in systems(store) if (position := Log(store.child(system)).read_position())]
    except DrError:
        return []
