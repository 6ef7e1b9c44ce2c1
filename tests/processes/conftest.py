"""A state folder of its own for each test, that servers can reach, with nothing left running in it afterwards."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dr_pipelines.processes.leases import Leases
from dr_pipelines.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def state(world_readable_folder: Path) -> Path:
    return world_readable_folder / "state"


@pytest.fixture
def settings(state: Path) -> Settings:
    return Settings(state_dir=state)


@pytest.fixture
def leases(state: Path) -> Iterator[Leases]:
    leases = Leases(state)
    yield leases
    for lease in leases.all(ending=True):
        leases.kill(lease)


@pytest.fixture
def another_python(state: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Runs a script in a Python process of its own, with `state` set; what it prints can be read from stdout."""
    started: list[subprocess.Popen[str]] = []

    def run_script(script: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from pathlib import Path\nstate = Path({str(state)!r})\n{script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        return process

    yield run_script
    for process in started:
        process.kill()
        process.communicate()
