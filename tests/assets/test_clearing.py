"""What is left of runs whose process was killed together with everything else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from assets.clearing import clear
from dr_pipelines.processes import proc
from dr_pipelines.timing import wait_until
from tests.assets.conftest import ROOT, Machine

pytestmark = pytest.mark.slow

UNFINISHED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])


@pytest.fixture
def start_drill(machine: Machine) -> Iterator[Callable[[], tuple[str, int]]]:
    """Starts a drill that goes on for long; returns its run and its process once it is at work."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[str, int]:
        config = machine.settings.state_dir / "drill.yaml"
        config.write_text("ops: {set_the_stage: {config: {size_bytes: 2000000000}}}")
        command = [sys.executable, "-m", "dagster", "job", "execute", "-f", "definitions.py", "-j", "database_drill"]
        before = {run.run_id for run in machine.instance.get_runs()}
        with (machine.settings.state_dir / "drill.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "-c", str(config)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)

        def at_work() -> list[str]:
            assert process.poll() is None, (machine.settings.state_dir / "drill.log").read_text()
            return [run.run_id for run in machine.instance.get_runs(filters=UNFINISHED) if run.run_id not in before]

        assert wait_until(lambda: at_work() and any(step_began(machine, run_id) for run_id in at_work()), timeout=60)
        return at_work()[0], process.pid

    yield start
    for process in started:
        kill(process.pid)
        process.wait()


def step_began(machine: Machine, run_id: str) -> bool:
    return bool(machine.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START))


def kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_gone(pid: int) -> bool:
    process = proc.look_up(pid)
    return process is None or process.dead


def status(machine: Machine, run_id: str) -> dg.DagsterRunStatus:
    run = machine.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_whose_process_was_killed_is_reported_failed_and_one_that_is_alive_is_left_alone(
    machine: Machine, start_drill: Callable[[], tuple[str, int]]
) -> None:
    killed, pid = start_drill()
    alive, _ = start_drill()
    kill(pid)
    assert wait_until(lambda: is_gone(pid), timeout=10)
    assert status(machine, killed) is dg.DagsterRunStatus.STARTED, "nobody noticed"
    assert clear(machine.instance) == (killed,)
    assert status(machine, killed) is dg.DagsterRunStatus.FAILURE
    assert status(machine, alive) is dg.DagsterRunStatus.STARTED
    assert clear(machine.instance) == ()


def test_it_is_a_command_of_its_own(machine: Machine, start_drill: Callable[[], tuple[str, int]]) -> None:
    run_id, pid = start_drill()
    kill(pid)
    assert wait_until(lambda: is_gone(pid), timeout=10)
    done = subprocess.run([sys.executable, "-m", "assets.clearing"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert run_id in done.stdout
    assert status(machine, run_id) is dg.DagsterRunStatus.FAILURE
