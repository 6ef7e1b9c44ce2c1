"""Environment files: read by systemd's EnvironmentFile= and by `set -a; . FILE` of every shell, alike. Pure."""

import re
import shlex
from collections.abc import Mapping

from dr_pipelines.errors import ConfigurationError

__all__ = ["add_variables", "parse_environment", "quote"]

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"


def quote(value: str) -> str:
    """A value as it stands in such a file. Raises ConfigurationError for what has more than one line."""
    if re.search(r"[\r\n\0]", value):
        raise ConfigurationError("a value of an environment file has one line", hint="leave line breaks out")
    # Nothing is an escape between single quotes, for shells and for systemd.
    return shlex.quote(value)


def parse_environment(text: str) -> dict[str, str]:
    """The variables of such a file. Raises ConfigurationError with the line that cannot be read."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        match = re.fullmatch(rf"\s*(?:export\s+)?({_NAME})=(.*)", line)
        try:
            words = shlex.split(match[2]) if match else None
        except ValueError:
            words = None
        if match is None or words is None or len(words) > 1:
            raise ConfigurationError(
                f"line {number} is no variable of an environment file: {line.partition('=')[0]}",
                hint='expected NAME="value"',
            )
        found[match[1]] = words[0] if words else ""
    return found


def add_variables(text: str, variables: Mapping[str, str], *, heading: str) -> str:
    """The file's text with these variables: one that is there gets its new value in its place, the others follow."""
    lines = text.splitlines()
    left = dict(variables)
    for index, line in enumerate(lines):
        match = re.match(rf"\s*(?:export\s+)?({_NAME})=", line)
        if match and match[1] in left:
            lines[index] = f"{match[1]}={quote(left.pop(match[1]))}"
    if left:
        lines += [*([""] if lines else []), heading] if heading not in lines else []
        lines += [f"{name}={quote(value)}" for name, value in left.items()]
    return "\n".join(lines) + "\n"
