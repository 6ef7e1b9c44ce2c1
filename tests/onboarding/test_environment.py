"""An environment file says the same to us, to a shell and, as its documentation has it, to systemd."""

import subprocess
from pathlib import Path

import pytest

from dr_pipelines.errors import ConfigurationError
from dr_pipelines.onboarding.environment import add_variables, parse_environment, quote

ODD = [
    "plain",
    "",
    "host=127.0.0.1 user=dr password=x",
    "password='it''s'",
    'a"b$c`d\\e',
    "$(touch /tmp/never) `id` $HOME",
    "# no comment",
    "ünï cöde",
    " spaces around ",
    "back\\slash\\",
    "!history* ? [a-z] {a,b} ~",
    "%s %% ; & | < > ( )",
]


@pytest.mark.parametrize("value", ODD)
def test_a_value_is_read_back_as_it_was_by_us_and_by_a_shell(value: str, tmp_path: Path) -> None:
    file = tmp_path / "service.env"
    file.write_text(add_variables("", {"DR_X": value}, heading="# made"))

    said = subprocess.run(
        ["sh", "-c", 'set -a; . "$1"; exec env -0', "sh", file], capture_output=True, text=True, check=True
    ).stdout

    assert parse_environment(file.read_text()) == {"DR_X": value}
    assert dict(entry.partition("=")[::2] for entry in said.split("\0"))["DR_X"] == value


def test_a_value_of_two_lines_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        quote("a\nb")


def test_what_else_is_in_the_file_stays() -> None:
    text = "# mine\nexport DR_A=1\n\nDR_B='two words' \n; old\n"

    changed = add_variables(text, {"DR_A": "3", "DR_C": "4 5"}, heading="# made")

    assert changed == "# mine\nDR_A=3\n\nDR_B='two words' \n; old\n\n# made\nDR_C='4 5'\n"
    assert parse_environment(changed) == {"DR_A": "3", "DR_B": "two words", "DR_C": "4 5"}
    assert add_variables(changed, {"DR_A": "3", "DR_C": "4 5"}, heading="# made") == changed


@pytest.mark.parametrize("line", ["just words", "DR_A='open", "DR_A=two words", "9=1"])
def test_a_line_that_is_none_is_named_without_its_value(line: str) -> None:
    with pytest.raises(ConfigurationError, match="line 2") as refused:
        parse_environment(f"# fine\n{line}\n")

    assert "open" not in str(refused.value)
