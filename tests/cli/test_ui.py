"""`dr ui`: it answers, its database is behind it and stays, and nothing is left when it is ended, however that was."""

import json
import signal
import socket
import subprocess
import urllib.request
from typing import Any

import pytest

from dr_pipelines.processes.leases import Leases
from dr_pipelines.timing import wait_until
from tests.cli.conftest import PLAN, Dr

pytestmark = pytest.mark.slow


@pytest.fixture
def machine(dr: Dr) -> Dr:
    return Dr({**dr.environment, "DR_PLAN": str(PLAN), "DR_LAB_REPOSITORY": "folder"}, dr.folder)


def started(machine: Dr) -> tuple["subprocess.Popen[str]", dict[str, str]]:
    """A UI that answers, and what it printed."""
    running = machine.start("ui", "--json")
    assert running.stdout is not None
    text = ""
    for line in running.stdout:
        text += line
        if line.startswith("}"):
            return running, json.loads(text)
    raise AssertionError(running.communicate()[1])


def ask(address: str, query: str) -> Any:
    body = json.dumps({"query": query}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["data"]


def test_it_answers_with_a_database_behind_it_and_ends_all_of_it(machine: Dr) -> None:
    running, told = started(machine)

    assert told["address"].startswith("http://127.0.0.1:")
    assets = ask(told["address"], "{ assetNodes { assetKey { path } } }")["assetNodes"]
    assert {"path": ["database_full_backup"]} in [node["assetKey"] for node in assets]
    assert {lease.kind for lease in Leases(machine.folder / "state").all()} >= {"postgres", "agent", "dagster"}
    second = machine("ui")
    assert (second.code, "another `dr ui`" in second.err) == (1, True)

    running.send_signal(signal.SIGINT)
    running.communicate(timeout=90)

    assert running.returncode == 130
    assert not Leases(machine.folder / "state").all()
    assert (machine.folder / "state" / "lab" / "lab" / "lab.json").exists()


def test_after_a_sigkill_the_next_one_ends_what_was_left_and_has_the_same_database(machine: Dr) -> None:
    running, _ = started(machine)
    leases = Leases(machine.folder / "state")
    left = leases.all()
    database = (machine.folder / "state" / "lab" / "lab" / "lab.json").read_text()
    running.kill()
    running.communicate()

    again, _ = started(machine)

    assert not any(leases.alive(lease) for lease in left)
    assert json.loads(database)["password"] in (machine.folder / "state" / "lab" / "lab" / "lab.json").read_text()
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=90)
    assert again.returncode == 143
    assert wait_until(lambda: not leases.all(), timeout=10)


def test_a_port_that_is_taken_is_refused_before_anything_is_started(machine: Dr) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused = machine("ui", "--port", str(port))

    assert (refused.code, f"port {port}" in refused.err) == (2, True)
    assert not (machine.folder / "state" / "lab").exists()
