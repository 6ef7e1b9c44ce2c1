"""Every command is documented: what it does, an example in its own help, a place in docs/cli.md."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from dr_pipelines.cli import app, execute
from tests.cli.conftest import ROOT

DOCUMENT = ROOT / "docs" / "cli.md"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_the_help_says_what_it_does_and_shows_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([*path, "--help"]) == 0

    text = capsys.readouterr().out
    assert re.search(rf"Example: dr {' '.join(path)}", text)
    assert "--json" in text
    for parameter in ALL[path].params:
        assert parameter.help, f"no help: {parameter.name}"


def test_the_overview_says_each_command_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ([], ["plan"], ["backup"], ["drill"], ["report"]):
        assert execute([*group, "--help"]) == 0
        listed = capsys.readouterr().out.partition("Commands:")[2]
        assert listed and "..." not in listed


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_the_example_is_a_command_that_can_be_parsed(path: tuple[str, ...]) -> None:
    command = ALL[path]
    example = shlex.split(str(command.epilog).removeprefix("Example: dr "))

    assert tuple(example[: len(path)]) == path
    command.make_context("dr", example[len(path) :])


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_the_command_and_its_options_are_in_the_documentation(path: tuple[str, ...]) -> None:
    text = DOCUMENT.read_text()

    section = re.search(rf"^## `dr {' '.join(path)}[`\s].*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section on dr {' '.join(path)}"
    for option in (option for parameter in ALL[path].params for option in parameter.opts if option.startswith("--")):
        assert option in {"--help", "--json"} or f"`{option}" in section[0], option


def test_the_documentation_has_no_command_that_is_not_there() -> None:
    named = re.findall(r"^## `dr ([^`]+)`", DOCUMENT.read_text(), re.MULTILINE)

    assert {" ".join(word for word in name.split() if word.islower() and word.isalpha()) for name in named} == {
        " ".join(path) for path in ALL
    }
