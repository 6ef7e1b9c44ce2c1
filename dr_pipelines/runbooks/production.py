"""The restored server comes back in production: its own address, its log archived on its new timeline and shipped."""

import fcntl
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psycopg

from dr_pipelines.engines.postgres import target as targets
from dr_pipelines.engines.postgres.connection import Connection, connect, scalar
from dr_pipelines.engines.postgres.production import (
    Production,
    archive_command,
    prepare_production,
    require_free_port,
)
from dr_pipelines.errors import ExecutionError, ProcessError
from dr_pipelines.processes.identity import give_to, open_folder
from dr_pipelines.processes.leases import Lease
from dr_pipelines.processes.postgres import Server, find_binaries, running_pid
from dr_pipelines.runbooks.database_restore import LEASE
from dr_pipelines.runbooks.handover import ADMIN_DSN, Work
from dr_pipelines.settings import variable

__all__ = ["is_in_target", "take_over"]

_AGENT_PATIENCE = 15.0


def take_over(work: Work) -> None:
    """Stop the restored server and start it in production, or find that it runs there already.

    It is nobody's from then on and runs until somebody ends it; a drill's ends with the drill. Raises ExecutionError
    where what runs in the target, or answers at the address, is not it.
    """
    if work.is_done("switch_clients"):
        return
    with work.steps.step("take_over") as tell:
        notes = _in_production(work)
        _require_it(work)
        log = _see_to_log(work)
        if not work.means.is_drill:
            for lease in work.around.leases.of(work.execution.id):
                work.around.leases.release(lease)
        work.results.put("take_over", {"log": log, "notes": list(notes)})
        for note in notes:
            work.around.notes.warning(note)
        tell(f"{work.new_server}, timeline {work.handover.server.timeline}; {log}")


def _in_production(work: Work) -> tuple[str, ...]:
    place, identity = work.handover.target, work.around.identity
    note = targets.read_note(place)
    if note is None or note.execution_id != work.execution.id:
        raise ExecutionError(
            f"{place} does not hold the server that was restored", hint="it was removed: start a new restore"
        )
    targets.hold(place, identity)
    _stop_restored(work)
    if running_pid(place) is not None:
        return ()
    require_free_port(work.wish.listen, work.wish.port)
    binaries = find_binaries(work.around.settings, work.handover.assessment.major)
    targets.hand_over(place, identity)
    service = work.around.plan.service(work.execution.service) if work.around.plan is not None else None
    wanted = Production(
        listen=work.wish.listen,
        port=work.wish.port,
        archive_command=archive_command(work.means.script, work.means.spool),
        archive_timeout=service.backup.archive_timeout if service is not None and service.backup is not None else None,
    )
    _make_spool(work)
    notes = prepare_production(place, binaries, identity, wanted, timeline=work.handover.server.timeline)
    server = Server(binaries, place, work.wish.port, identity, "", log=place.with_name(f"{place.name}.log"))
    # The server's own, so that whoever starts it as its user can go on with it.
    server.log_path.touch(0o600)
    give_to(server.log_path, identity)
    lease = work.around.leases.start(
        [binaries["postgres"], "-D", str(place)],
        kind="postgres",
        owner=work.execution.id,
        identity=identity,
        log=server.log_path,
        ttl=LEASE,
        folders=(place.parent,) if work.means.is_drill else (),
        data=place,
        stop_signal=signal.SIGINT,
    )
    try:
        server.wait_ready(60, lease)
    except BaseException as error:
        work.around.leases.end(lease)
        if isinstance(error, ProcessError):
            error.hint = f"make {place}/postgresql.conf fit this machine, then go on with the cutover; {error.hint}"
        raise
    return notes


def _stop_restored(work: Work) -> None:
    """End the server as the restore runs it: on its own socket, its archiving off."""
    server = work.handover.server
    for lease in work.around.leases.of(work.execution.id, "postgres"):
        if not _is_restores(lease):
            continue
        with suppress(ProcessError, psycopg.Error), connect(server.dsn()) as connection:
            connection.execute("CHECKPOINT")  # so that the stop, which is killed after a while, is quick
        work.around.leases.end(lease)
    shutil.rmtree(server.socket, ignore_errors=True)


def _is_restores(lease: Lease) -> bool:
    return "archive_mode=off" in lease.argv


def _require_it(work: Work) -> None:
    """Whether who answers here is the restored server, and archives."""
    try:
        with connect(work.new_dsn) as connection:
            archives = str(scalar(connection, "SHOW archive_mode"))
            is_it = is_in_target(connection, work.handover.target)
    except ProcessError as error:
        if "FATAL:" not in error.message:
            raise
        # Who takes backups is not let in from here; clients may be, and are asked for next.
        work.around.notes.warning(f"the new server cannot be asked, nor backed up: {error.message}")
        return
    if not is_it or archives == "off":
        raise ExecutionError(
            f"the server that answers at {':'.join(work.wish.here)} is not the one in {work.handover.target}, or does "
            "not archive",
            hint="does another server listen there?",
        )


def is_in_target(connection: Connection, target: Path) -> bool:
    """Whether the server that was asked is the one that runs in this data directory, by when both were started."""
    answers = int(scalar(connection, "SELECT extract(epoch FROM pg_postmaster_start_time())::bigint"))
    runs = int((target / "postmaster.pid").read_text().splitlines()[2])
    return abs(answers - runs) <= 2


def _make_spool(work: Work) -> None:
    if not work.means.spool.is_dir():
        open_folder(work.means.spool.parent)
        work.means.spool.mkdir(mode=0o2770)
        work.means.spool.chmod(0o2770)
        give_to(work.means.spool, work.around.identity)


def _see_to_log(work: Work) -> str:
    """Somebody has to ship the spool: an agent that is at it, or else one that is started here."""
    service, spool = work.execution.service, work.means.spool
    if _has_agent(spool):
        return f"the agent at {spool} ships its log; {variable('dsn', service)} has to name the new server to it"
    argv = [sys.executable, "-m", "dr_pipelines.agent", "--service", service]
    if work.means.streams:
        argv.append("--stream")
    if work.means.sandbox is not None:
        argv += ["--sandbox", work.means.sandbox]
    own = {variable("dsn", service): work.new_dsn, variable("spool", service): str(spool), ADMIN_DSN: ""}
    log = open_folder(work.around.settings.state_dir / "logs") / f"{work.execution.id}-agent.log"
    work.around.leases.start(
        argv,
        kind="agent",
        owner=work.execution.id,
        env={**work.around.settings.as_environment(), **own},
        log=log,
        ttl=LEASE,
        wait_for=lambda: _has_agent(spool),
        timeout=_AGENT_PATIENCE,
    )
    return f"an agent was started at {spool}, whose log is {log}"


def _has_agent(spool: Path) -> bool:
    """Whether an agent holds the spool, as each does with a lock of the kernel's."""
    try:
        descriptor = os.open(spool / ".agent.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
