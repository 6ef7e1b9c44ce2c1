"""The agent as a process of its own: `python -m dr_pipelines.agent`."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.wal import Lsn
from dr_pipelines.timing import wait_until
from tests.agent.conftest import SMALL, SYSTEM, Agents, made_up

ROOT = Path(__file__).parents[2]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(agents: Agents) -> Iterator[Start]:
    """Starts an agent on the spool and the repository of `agents`; what still runs is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **env: str) -> subprocess.Popen[str]:
        settings = {"DR_REPOSITORY": agents.repository.url, "DR_SPOOL__DATABASE": str(agents.spool)} | env
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DR_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "dr_pipelines.agent", "--service", "database", *arguments],
            env=kept | settings | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, object]]]:
    """Its exit code, and its log."""
    said, log = process.communicate(timeout=30)
    assert said == ""
    return process.returncode, [json.loads(line) for line in log.splitlines()]


def test_sigterm_ships_what_is_there_tells_a_last_position_and_ends_well(agents: Agents, start: Start) -> None:
    agents.drop(made_up(3))
    process = start()
    agents.await_empty()
    agents.drop(*(made_up(number) for number in range(4, 30)))
    process.send_signal(signal.SIGTERM)
    code, log = ended(process)
    assert code == 0
    assert agents.waiting() == []
    assert agents.position().stored_end == Lsn(30 * SMALL)
    assert (log[0]["event"], log[-1]["event"]) == ("started", "stopped")
    shipped = [line for line in log if line["event"] == "shipped"]
    assert len(shipped) == 27
    assert all(line["bytes"] == SMALL for line in shipped)
    assert {"at", "level", "file", "seconds", "age", "result"} <= shipped[0].keys()


def test_a_second_agent_on_the_spool_ends_with_1_and_names_the_first(agents: Agents, start: Start) -> None:
    first = start()
    assert wait_until((agents.spool / ".agent.lock").exists, timeout=20)
    assert wait_until((agents.spool / ".agent.lock").read_text, timeout=20)
    code, log = ended(start())
    assert code == 1
    assert log[-1]["code"] == "locked"
    assert f"process {first.pid} " in str(log[-1]["error"])


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_it_loses_nothing_and_doubles_nothing(agents: Agents, start: Start, seed: int) -> None:
    dice = random.Random(seed)
    files = dict(made_up(number, seed=seed) for number in range(3, 123))
    agents.drop(*files.items())
    for _ in range(4):
        process = start()
        left = len(agents.waiting())
        goal = max(left - dice.randint(1, 30), 1)
        assert wait_until(lambda goal=goal: len(agents.waiting()) <= goal, timeout=30, interval=0.001)  # type: ignore[misc]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=dice.uniform(0, 0.02))
        process.kill()
        process.communicate()
        stored = {segment.name for segment in agents.log().segments()}
        assert stored | set(agents.waiting()) == set(files)
    process = start()
    agents.await_empty()
    process.terminate()
    assert ended(process)[0] == 0
    assert {segment.name: agents.log().fetch(segment.name) for segment in agents.log().segments()} == files
    assert agents.position().stored_end == Lsn(123 * SMALL)


def test_a_drills_agent_works_on_a_repository_of_its_own(agents: Agents, start: Start) -> None:
    agents.drop(made_up(3))
    process = start("--sandbox", "drill-1")
    agents.await_empty()
    process.terminate()
    assert ended(process)[0] == 0
    own = agents.repository.sandbox("drill-1").service("database").child(str(SYSTEM))
    assert Log(own).has(made_up(3)[0])
    assert not agents.log().has(made_up(3)[0])


def test_a_repository_that_is_not_there_at_the_start_is_waited_for(agents: Agents, start: Start) -> None:
    place = Path(agents.repository.url)
    place.rename(place.with_name("away"))
    agents.drop(made_up(3))
    process = start()
    assert process.stderr is not None
    assert json.loads(process.stderr.readline())["about"] == "repository"
    place.with_name("away").rename(place)
    agents.await_empty()


@pytest.mark.parametrize(
    ("env", "match"),
    [
        ({"DR_REPOSITORY": ""}, "DR_REPOSITORY"),
        ({"DR_SPOOL__DATABASE": "/nowhere/spool"}, "install -d"),
        ({"DR_DSN__DATABASE": "host=db password=s3cr3t x"}, "DR_DSN"),
        ({"DR_COMPRESSION_LEVEL": "99"}, "DR_COMPRESSION_LEVEL"),
    ],
)
def test_what_cannot_work_ends_with_2_and_says_what_to_set(start: Start, env: dict[str, str], match: str) -> None:
    code, log = ended(start(**env))
    assert code == 2
    assert match in str(log[-1]["error"])
    assert "s3cr3t" not in json.dumps(log)
