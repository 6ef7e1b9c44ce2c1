"""Dagster's own command, started in the checkout, where a command wants a Dagster run."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dr_pipelines.errors import ConfigurationError, ProcessError
from dr_pipelines.plan import Plan, load_plan
from dr_pipelines.runbooks.dagster_home import checkout, prepare_home
from dr_pipelines.runbooks.progress import PROGRESS_VARIABLE, Entry, ProgressReader
from dr_pipelines.settings import Settings

__all__ = ["environment", "execute_job", "plan_of_runs", "require_dagster", "run_module", "stop"]

_LOOK_EVERY = 0.1
_PATIENCE = 120.0
_LAST_WORDS = 60.0
"""Seconds that a run may take to clear away what it started, when it is interrupted."""


def require_dagster() -> Path:
    """The checkout to start Dagster in. Raises ConfigurationError where there is none, or no Dagster."""
    if importlib.util.find_spec("dagster") is None:
        raise ConfigurationError(
            "Dagster is not installed beside this command, and this is a Dagster run",
            hint="clone the Git repository and run `make setup` there; restores work without it (dr restore)",
        )
    return checkout()


def plan_of_runs(settings: Settings) -> Plan:
    """The plan that Dagster's runs go by: the settings', else the checkout's. Raises PlanError."""
    if settings.has_plan or settings.plan.is_absolute():
        return load_plan(settings.plan)
    return load_plan(require_dagster() / settings.plan)


def environment(settings: Settings) -> dict[str, str]:
    """What Dagster, and what it starts, needs to work with these settings from another folder; holds secrets."""
    own = settings.as_environment()
    own["DR_STATE_DIR"] = str(settings.state_dir.absolute())
    if settings.has_plan:
        own["DR_PLAN"] = str(settings.plan.absolute())
    elif not settings.plan.is_absolute():
        own.pop("DR_PLAN")  # the checkout's
    if settings.repository is not None and "://" not in settings.repository:
        own["DR_REPOSITORY"] = str(Path(settings.repository).expanduser().absolute())
    return {**os.environ, **own, "DAGSTER_HOME": str(prepare_home(settings)), "DAGSTER_DISABLE_TELEMETRY": "1"}


def execute_job(
    job: str,
    settings: Settings,
    *,
    config: Mapping[str, object],
    tags: Mapping[str, str],
    log: Path,
    watch: Callable[[Entry], None],
) -> int:
    """Carry out a job in a run of its own; `watch` is called with what it tells. Returns Dagster's exit code.

    Dagster's own output is appended to `log`. Where this is interrupted, so is the run, which clears away first.
    """
    folder = require_dagster()
    progress, chosen = log.with_suffix(".progress"), log.with_suffix(".config.json")
    chosen.write_text(json.dumps(config))
    command = [sys.executable, "-m", "dagster", "job", "execute", "-f", "definitions.py", "-d", str(folder)]
    command += ["-j", job, "-c", str(chosen), "--tags", json.dumps(tags)]
    reader = ProgressReader(progress)
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment(settings), PROGRESS_VARIABLE: str(progress)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C of the terminal reaches us, and we tell it.
                start_new_session=True,
            )
        try:
            _follow(process, reader, watch)
        finally:
            stop(process, _LAST_WORDS)
        return process.returncode
    finally:
        for file in (progress, chosen):
            file.unlink(missing_ok=True)


def _follow(process: "subprocess.Popen[bytes]", reader: ProgressReader, watch: Callable[[Entry], None]) -> None:
    over = False
    while not over:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_EVERY)
            over = True
        for entry in reader.read():
            watch(entry)


def stop(process: "subprocess.Popen[bytes]", patience: float) -> None:
    """End the process, which leads a session, and all in it: asked first, killed after `patience` seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_module(settings: Settings, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run one of the checkout's own small programs, such as `assets.status`, to its end. Raises ProcessError."""
    try:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=require_dagster(),
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{arguments[0]} was not done after {_PATIENCE:.0f} s") from None
