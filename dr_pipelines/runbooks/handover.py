"""What a cutover goes by: what was asked for, how everything is reached, and what is fixed when it begins.

Beside the journal's events, below `executions/<id>/cutover/`, lies what each of its steps achieved, so that another
process goes on after it without doing it again.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from dr_pipelines.engines.postgres import target
from dr_pipelines.engines.postgres.archive_script import install_archive_script
from dr_pipelines.engines.postgres.recovery import RestoredServer
from dr_pipelines.errors import ConfigurationError, ObjectMissing, UsageError
from dr_pipelines.repository.approvals import LONGEST, Approvals
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store
from dr_pipelines.runbooks.backups import require_dsn
from dr_pipelines.runbooks.clients import Address, address_of, at_address
from dr_pipelines.runbooks.database_restore import Assessment, Surroundings, Validated, steps_of
from dr_pipelines.runbooks.execution import Execution, Journal, Outcome, StepState
from dr_pipelines.runbooks.steps import StepRunner
from dr_pipelines.settings import Settings, variable
from dr_pipelines.timing import format_duration, parse_duration

__all__ = [
    "ADMIN_DSN",
    "WISHES",
    "Handover",
    "Means",
    "Results",
    "Wish",
    "Work",
    "begin_cutover",
    "begun_cutover",
    "means_of",
    "read_wish",
]


ADMIN_DSN = "DR_ADMIN_DSN"
"""The variable that says how an administrator reaches a server. It is no setting: nobody else is to have it."""


@dataclass(frozen=True)
class Wish:
    """How the operator wants the restored server to take the lost one's place."""

    listen: str
    """What it listens on, as listen_addresses has it."""
    host: str
    """Where its clients find it."""
    port: int
    patience: timedelta = timedelta(minutes=30)
    """How long the approval is waited for, and an approval holds."""
    despite_findings: bool = False
    """Also where the validation did not pass."""

    @property
    def address(self) -> Address:
        """Where clients find it, once they are led there."""
        return self.host, str(self.port)

    @property
    def here(self) -> Address:
        """Where this machine finds it, also while clients are not led there yet."""
        first = self.listen.split(",")[0].strip()
        return {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first), str(self.port)


@dataclass(frozen=True)
class Means:
    """How the old server, the clients and the log's way are reached; holds a password."""

    dsn: str
    """How the old server was reached, for backups; the new one has its roles and passwords."""
    old: Address
    fence_command: str | None
    switch_command: str | None
    connection_file: Path | None
    spool: Path
    script: Path
    admin_dsn: str | None = None
    """How a superuser reaches the old server; None: as `dsn` does."""
    client_dsn: str | None = None
    """How a client connects; None: as an administrator does, at the address that clients are led to."""
    streams: bool = False
    """Whether the agent takes the new server's log as it is written."""
    sandbox: str | None = None
    """The part of the repository that the new server's log and backup go to, where they are a drill's own."""
    is_drill: bool = False
    """The new server and its agent keep their leases, and end with the drill."""
    when_asked: Callable[[Approvals], None] = lambda approvals: None
    """Called when an approval is waited for."""

    @property
    def led_by(self) -> tuple[str, ...]:
        """What leads the clients, for people."""
        file = [f"the file {self.connection_file}"] if self.connection_file else []
        return (*file, *(["a command of the team's own"] if self.switch_command else []))


def means_of(settings: Settings, service: str) -> Means:
    """What the environment says. Raises ConfigurationError where how the old server was reached is not said."""
    dsn = require_dsn(settings, service)
    return Means(
        dsn=dsn,
        old=address_of(settings, service, dsn),
        fence_command=settings.fence_of(service),
        switch_command=settings.switch_of(service),
        connection_file=settings.connection_file_of(service),
        spool=settings.spool_of(service),
        script=install_archive_script(settings.state_dir),
        admin_dsn=os.environ.get(ADMIN_DSN),
        client_dsn=settings.client_dsn_of(service),
        streams=settings.streams(service),
    )


WISHES = ("cutover", "listen", "port", "address", "approval_within", "despite_findings")
"""What a form asks of a cutover, by name."""


def read_wish(
    settings: Settings,
    service: str,
    *,
    cutover: bool,
    listen: str,
    port: int,
    address: str,
    approval_within: str,
    despite_findings: bool,
) -> Wish | None:
    """What was filled in, checked before anything is done; None where no cutover is asked for.

    Raises UsageError and ConfigurationError that say what cannot be accepted, or is not set up here.
    """
    if not cutover:
        for name, value in (("listen", listen), ("port", port), ("address", address)):
            if value:
                raise UsageError(f"{name}: it is for a cutover", hint="ask for one, or leave it out")
        return None
    if not listen or not port:
        raise UsageError(
            "a cutover needs the new server's address",
            hint="listen and port, such as 10.0.0.7 and 5432: what it listens on, and where its clients find it",
        )
    try:
        patience = parse_duration(approval_within)
    except ValueError as error:
        raise UsageError(f"approval_within: {error}") from None
    wish = Wish(listen, address or listen, port, patience, despite_findings)
    check_wish(service, wish, means_of(settings, service))
    return wish


def check_wish(service: str, wish: Wish, means: Means) -> None:
    """Raise UsageError or ConfigurationError where a cutover could not be carried out like that."""
    if not 0 < wish.port < 65536:
        raise UsageError(f"the port {wish.port} is none", hint="1 to 65535")
    if not timedelta(0) < wish.patience <= LONGEST:
        raise UsageError(
            f"an approval is waited for at most {format_duration(LONGEST)}, not {format_duration(wish.patience)}"
        )
    if not wish.host or wish.host in ("*", "0.0.0.0", "::") or "," in wish.host or wish.host.startswith("/"):
        raise UsageError(
            f"clients cannot be led to {wish.host or 'nowhere'}: that is no address of one server",
            hint="say where they find it (--address), besides what it listens on (--listen)",
        )
    if not means.led_by and wish.address != means.old:
        raise ConfigurationError(
            f"nothing says how the clients of {service} are led to {wish.host}, port {wish.port}",
            hint=f"{variable('connection_file', service)} names the libpq service file that they follow, "
            f"{variable('switch', service)} a command; or give the new server the old one's address",
        )


@dataclass(frozen=True)
class Handover:
    """What is fixed when a cutover begins, and survives every resume."""

    assessment: Assessment
    server: RestoredServer
    validated: Validated
    old: Address
    """Where the server is whose place is taken."""

    @property
    def target(self) -> Path:
        """Where the data of the restored server lie."""
        return Path(self.assessment.target)


_HANDOVER = TypeAdapter(Handover)


class Results:
    """What the steps of one cutover achieved, by name; each is written once, when it is done."""

    def __init__(self, store: Store, execution_id: str) -> None:
        self._store = store.child(f"executions/{execution_id}/cutover")

    def get(self, name: str) -> dict[str, object] | None:
        """None where it is still to be done."""
        try:
            return unseal(self._store.get(f"{name}.json"), what=f"what the cutover's {name} achieved")
        except ObjectMissing:
            return None

    def put(self, name: str, result: Mapping[str, object]) -> dict[str, object]:
        """Write it down; returns what was written first, where that had happened before."""
        self._store.put_if_absent(f"{name}.json", [seal(result)])
        written = self.get(name)
        assert written is not None
        return written


@dataclass(frozen=True)
class Work:
    """One process's work at a cutover."""

    around: Surroundings
    handover: Handover
    wish: Wish
    means: Means
    run_id: str | None

    @property
    def execution(self) -> Execution:
        return self.handover.assessment.execution

    @property
    def steps(self) -> StepRunner:
        return steps_of(self.around, self.execution, self.run_id)

    @property
    def results(self) -> Results:
        return Results(self.around.repository.store, self.execution.id)

    @property
    def approvals(self) -> Approvals:
        return Approvals(self.around.repository.store, self.execution.id)

    @property
    def repository(self) -> Repository:
        """Where the new server's log and backup go to."""
        return self.around.repository.sandbox(self.means.sandbox) if self.means.sandbox else self.around.repository

    @property
    def service_store(self) -> Store:
        return self.repository.service(self.execution.service)

    @property
    def old_dsn(self) -> str:
        """The old server, as an administrator where one was named."""
        return at_address(self.means.admin_dsn or self.means.dsn, self.handover.old)

    @property
    def new_dsn(self) -> str:
        """The new server, for backups and the agent."""
        return at_address(self.means.dsn, self.wish.here)

    @property
    def old_server(self) -> str:
        return ":".join(self.handover.old)

    @property
    def new_server(self) -> str:
        return ":".join(self.wish.address)

    def attempt(self, step: str) -> StepState | None:
        """The last attempt at a step; None where it never began."""
        states = Journal(self.around.repository.store, self.execution.id).steps()
        return next((state for state in reversed(states) if state.step == step), None)

    def is_done(self, step: str) -> bool:
        """Whether the last attempt at a step came to its end."""
        last = self.attempt(step)
        return last is not None and last.outcome is Outcome.DONE

    def for_commands(self) -> dict[str, str]:
        """What commands of the team's own have to know, for their environment."""
        return {
            "DR_SERVICE": self.execution.service,
            "DR_EXECUTION": self.execution.id,
            "DR_OLD_HOST": self.handover.old[0],
            "DR_OLD_PORT": self.handover.old[1],
            "DR_NEW_HOST": self.wish.host,
            "DR_NEW_PORT": str(self.wish.port),
        }


def begin_cutover(
    around: Surroundings, assessment: Assessment, server: RestoredServer, validated: Validated, means: Means
) -> Handover:
    """Begin the cutover of a restored server that was validated, or go on with it as it began. Changes nothing else."""
    handover = Handover(assessment, server, validated, means.old)
    results = Results(around.repository.store, assessment.execution.id)
    return _read(results.put("handover", _HANDOVER.dump_python(handover, mode="json")))


def begun_cutover(around: Surroundings, execution_id: str) -> Handover | None:
    """A cutover that this execution has begun; None where it has not."""
    written = Results(around.repository.store, execution_id).get("handover")
    return _read(written) if written is not None else None


def _read(written: Mapping[str, object]) -> Handover:
    return _HANDOVER.validate_json(json.dumps(written))


def is_taken_over(handover: Handover) -> bool:
    """Whether the restored server has been stopped, or begun to be, to come back in production."""
    note = target.read_note(handover.target)
    return note is None or note.taken_over


def moment_in(result: Mapping[str, object] | None, name: str) -> datetime | None:
    """A moment of a result."""
    text = (result or {}).get(name)
    return datetime.fromisoformat(text) if isinstance(text, str) else None
