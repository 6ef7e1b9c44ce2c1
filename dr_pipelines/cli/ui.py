"""`dr ui`: Dagster's UI on this machine, with the lab's database behind it where no other is configured."""

import fcntl
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console

from dr_pipelines.cli.dagster import environment, require_dagster, run_module
from dr_pipelines.cli.display import Display
from dr_pipelines.cli.frame import Json, Terminal
from dr_pipelines.cli.opening import settled
from dr_pipelines.errors import Locked, ProcessError, UsageError
from dr_pipelines.lab import database as lab_database
from dr_pipelines.lab.database import LabDatabase
from dr_pipelines.plan import load_plan
from dr_pipelines.processes.identity import end_of, open_folder
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.ports import free_port, is_free
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings, load_settings, service_key
from dr_pipelines.timing import SystemClock

__all__ = ["ui"]

UI, LAB = "ui", "lab"
"""Who owns the leases of Dagster, and of the lab's database behind it."""
_PORT = 3000
_LEASE = timedelta(minutes=10)
_SIZE = 50_000_000
_ARCHIVE_TIMEOUT = timedelta(seconds=60)
_START, _STOP = 180.0, 20.0
"""Seconds that Dagster may take to answer, and to end."""


def ui(
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="3000 where left out, or another one if that is taken."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Start Dagster's UI, daemon and code location on 127.0.0.1, until Ctrl-C; print the address when it answers.

    Where DR_DSN__<SERVICE> names no database, the lab's own runs behind it, with its agent; its data stay for the next
    time. The lab's S3 runs too where DR_REPOSITORY names no repository.
    """
    terminal = Terminal(as_json=as_json)
    require_dagster()
    if port is not None and not is_free(port):
        raise UsageError(f"port {port} of 127.0.0.1 is taken", hint="give another one, or leave --port out")
    clock = SystemClock()
    with settled(terminal) as settings, _alone(settings):
        leases = Leases(settings.state_dir, clock)
        # What a killed `dr ui` left running; nobody else uses these two.
        for owner in (UI, LAB):
            leases.end_owner(owner, _STOP)
        try:
            with leases.keep_renewed(UI, _LEASE), leases.keep_renewed(LAB, _LEASE):
                settings = _with_database(terminal, settings, leases)
                _clear(terminal, settings)
                lease, address = _start(terminal, settings, leases, port or _free_port())
                _say(terminal, settings, address)
                while leases.alive(lease):
                    clock.sleep(0.5)
        finally:
            terminal.note("ending Dagster and what runs behind it")
            for owner in (UI, LAB):
                leases.end_owner(owner, _STOP)
        raise ProcessError(f"Dagster ended by itself: {end_of(_log(settings), lines=8)}", hint=f"see {_log(settings)}")


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One UI for one state folder: two would work on the same home and end each other's database."""
    with (open_folder(settings.state_dir) / "ui.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"another `dr ui` works with {settings.state_dir}", hint="end that one, or set DR_STATE_DIR"
            ) from None
        yield


def _with_database(terminal: Terminal, settings: Settings, leases: Leases) -> Settings:
    """Settings that name a database: the configured one, or the lab's, which is started."""
    service = _service(settings)
    assert settings.repository is not None
    if load_settings().repository is None or settings.dsn_of(service) is None:
        # The lab's own; neither an agent nor a scheduled backup makes one.
        open_repository(settings.repository, settings=settings, create=True)
    if settings.dsn_of(service) is not None:
        return settings
    lab = _lab(terminal, settings, leases)
    lab_database.start_agent(lab, service, leases, settings.as_environment(), ttl=_LEASE, sandbox=None)
    return settings.model_copy(
        update={
            "dsn": {**settings.dsn, service_key(service): SecretStr(lab.dsn("postgres"))},
            "spool": {**settings.spool, service_key(service): lab.spool},
        }
    )


def _service(settings: Settings) -> str:
    """The plan's first database; "database" where the plan is the checkout's or has none."""
    plan = load_plan(settings.plan) if settings.has_plan else None
    databases = [entry.name for entry in plan.services if entry.engine == "postgres"] if plan is not None else []
    return (databases or ["database"])[0]


def _lab(terminal: Terminal, settings: Settings, leases: Leases) -> LabDatabase:
    """The lab's database, as it was when the UI was ended last; made where there is none."""
    folder = settings.state_dir / "lab" / LAB
    lab = lab_database.load(folder)
    if lab is None:
        if folder.exists():
            shutil.rmtree(folder)  # of a start that was killed before the database was complete
        with Display(terminal.err) as display:
            display.info("making the lab's database, with a hotel's data")
            return lab_database.create(
                settings,
                leases,
                LAB,
                ttl=_LEASE,
                archive_timeout=_ARCHIVE_TIMEOUT,
                size_bytes=_SIZE,
                progress=lambda done, total: display.progress("loading", done, total),
                persistent=True,
            )
    if not is_free(lab.port):
        lab = replace(lab, port=free_port())
        lab.save()
    terminal.note(f"starting the lab's database in {folder}")
    lab_database.start_server(lab, settings, leases, ttl=_LEASE, persistent=True)
    return lab


def _clear(terminal: Terminal, settings: Settings) -> None:
    """Report runs failed whose process a crash took: they would hold their slots for ever."""
    done = run_module(settings, ["assets.clearing"])
    if done.returncode != 0:
        raise ProcessError(f"what a crash left could not be cleared: {end_of(done.stderr, lines=5)}")
    for line in done.stdout.splitlines():
        terminal.note(line)


def _start(terminal: Terminal, settings: Settings, leases: Leases, port: int) -> tuple[Lease, str]:
    address, log = f"http://127.0.0.1:{port}", _log(settings)
    terminal.note(f"starting Dagster; its own words go to {log}")
    lease = leases.start(
        [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        kind="dagster",
        owner=UI,
        env=environment(settings),
        cwd=require_dagster(),
        log=log,
        ttl=_LEASE,
        wait_for=lambda: _answers(address),
        timeout=_START,
    )
    return lease, address


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _say(terminal: Terminal, settings: Settings, address: str) -> None:
    def show(console: Console) -> None:
        console.print(f"Dagster's UI is at {address} (Ctrl-C ends it, and what runs behind it)")

    terminal.result({"address": address, "log": str(_log(settings)), "repository": settings.repository}, show)


def _free_port() -> int:
    return _PORT if is_free(_PORT) else free_port()


def _log(settings: Settings) -> Path:
    return open_folder(open_folder(settings.state_dir) / "logs") / "dagster.log"
