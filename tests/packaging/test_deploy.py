"""The units under deploy/ start what there is to start, the way it wants to be started."""

import configparser
import shlex
from pathlib import Path

import typer.main
import yaml

from dr_pipelines.cli import app

DEPLOY = Path(__file__).parents[2] / "deploy"


def accepts(words: list[str]) -> bool:
    """Whether the command line knows this command and these options."""
    command = typer.main.get_command(app)
    with command.make_context("dr", words, resilient_parsing=True) as context:
        name, sub, rest = command.resolve_command(context, words)  # type: ignore[attr-defined]
    options = {option for parameter in sub.params for option in parameter.opts}
    return name == words[0] and {word for word in rest if word.startswith("--")} <= options


def test_the_systemd_unit_starts_the_agent_and_leaves_it_time_to_ship() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(DEPLOY / "dr-agent@.service")
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/bin/dr")
    assert accepts(words)
    assert not accepts([*words, "--no-such-option"])
    # The receiver is the agent's to end, and what it has received is shipped after that.
    assert unit["Service"]["KillMode"] == "mixed"
    assert int(unit["Service"]["TimeoutStopSec"]) >= 30
    assert unit["Service"]["Restart"] == "always"


def test_the_compose_service_streams_into_a_volume_that_stays() -> None:
    document = yaml.safe_load((DEPLOY / "agent.compose.yaml").read_text())
    service = document["services"]["dr-agent-database"]
    program, *words = service["command"]
    assert program == "dr"
    assert accepts(words)
    assert "--stream" in words
    (volume,) = service["volumes"]
    name, _, folder = volume.partition(":")
    assert name in document["volumes"]
    assert service["environment"]["DR_SPOOL__DATABASE"] == folder
    assert service["restart"] == "always"
