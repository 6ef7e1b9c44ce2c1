"""What Dagster adds to a runbook: from asking for a run to its first op, and from one op to the next."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dr_pipelines.errors import ProcessError
from dr_pipelines.processes.ports import free_port
from dr_pipelines.timing import wait_until

__all__ = ["run"]

_ROOT = Path(__file__).parents[1]
_LAUNCH = """mutation Launch($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_STATE = """query State($id: ID!) { runOrError(runId: $id) { ... on Run {
  status stepStats { stepKey startTime endTime } } } }"""


_NOTE = """\
What Dagster {version} adds, with deploy/dagster.yaml, by GraphQL as the UI does it: a fixed amount that counts in the
RTO of a run that is launched there.

| | median seconds | fastest to slowest |
|---|---|---|"""


def run(folder: Path, runs: int) -> str:
    """Measure and return the section."""
    latency = _measure(folder, runs)
    rows = (
        ("run requested → first op", latency.requested_to_first, ".1f"),
        ("op → next op", latency.first_to_next, ".2f"),
    )
    lines = [
        f"| {title} | {statistics.median(values):{form}} | {min(values):.2f} to {max(values):.2f} |"
        for title, values, form in rows
    ]
    return "\n".join([_NOTE.format(version=version("dagster")), *lines])


@dataclass(frozen=True)
class _Latency:
    """Seconds, one entry a run."""

    requested_to_first: tuple[float, ...]
    first_to_next: tuple[float, ...]


def _measure(folder: Path, runs: int) -> _Latency:
    """Start Dagster as deploy/dagster.yaml has it, and launch a job of two empty ops `runs` times over GraphQL."""
    home = folder / "dagster"
    home.mkdir()
    shutil.copyfile(_ROOT / "deploy" / "dagster.yaml", home / "dagster.yaml")
    port = free_port()
    command = [sys.executable, "-m", "dagster", "dev", "-f", "benchmarks/orchestration_defs.py"]
    with open(folder / "dagster.log", "wb") as log:
        server = subprocess.Popen(
            [*command, "-d", str(_ROOT), "-h", "127.0.0.1", "-p", str(port)],
            cwd=_ROOT,
            env=os.environ | {"DAGSTER_HOME": str(home)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        if not wait_until(lambda: _answers(url), timeout=120, interval=0.5):
            raise ProcessError(f"dagster dev did not answer; see {folder / 'dagster.log'}")
        measured = [_one_run(url) for _ in range(runs)]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    return _Latency(tuple(each[0] for each in measured), tuple(each[1] for each in measured))


def _one_run(url: str) -> tuple[float, float]:
    selector = {
        "repositoryLocationName": "orchestration_defs.py",
        "repositoryName": "__repository__",
        "jobName": "two_steps",
    }
    asked_at = time.time()
    answer = _ask(url, _LAUNCH, {"params": {"selector": selector, "mode": "default"}})["launchRun"]
    if answer["__typename"] != "LaunchRunSuccess":
        raise ProcessError(f"the run was not launched: {answer}")
    run_id = answer["run"]["runId"]
    state: dict[str, Any] = {}

    def over() -> bool:
        state.update(_ask(url, _STATE, {"id": run_id})["runOrError"])
        return state["status"] in ("SUCCESS", "FAILURE", "CANCELED")

    if not wait_until(over, timeout=120, interval=0.2) or state["status"] != "SUCCESS":
        raise ProcessError(f"the run ended as {state.get('status')}")
    steps = {step["stepKey"]: step for step in state["stepStats"]}
    return steps["first"]["startTime"] - asked_at, steps["second"]["startTime"] - steps["first"]["endTime"]


def _ask(url: str, query: str, variables: dict[str, object]) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["data"]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
