"""Leading a service's clients to another server: a file that they follow, a command of the team's own, or both.

The file is libpq's connection service file, which every client that is built on libpq can follow with
`service=<name>` (and PGSERVICEFILE): it is read at each connect, so whoever reconnects is led to where it says.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dr_pipelines.errors import ConfigurationError
from dr_pipelines.processes.identity import run
from dr_pipelines.settings import Settings, variable

__all__ = ["Address", "address_of", "at_address", "lead_file_to", "run_command"]

_PATIENCE = 300.0
"""Seconds that a command of the team's own may take."""

Address = tuple[str, str]
"""Host and port, as a connection string has them."""


def address_of(settings: Settings, service: str, dsn: str) -> Address:
    """Where the connection string leads to. Raises ConfigurationError where that is not one place."""
    try:
        given = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    except psycopg.ProgrammingError:
        # What libpq stumbles over may be a piece of a password.
        name = variable("dsn", service)
        raise ConfigurationError(f"{name} cannot be read", hint="key=value pairs, or a URI") from None
    if "service" in given:
        file = settings.connection_file_of(service)
        if file is not None and file.is_file():
            given = _section(file.read_text().splitlines(), given["service"])[2] | given
    host, port = given.get("host") or given.get("hostaddr") or "", given.get("port") or "5432"
    if not host or "," in host or "," in port:
        name = variable("dsn", service)
        raise ConfigurationError(
            f"{name} names {'several servers' if host else 'no host'}, so which one is to be fenced is not known",
            hint=f"{name}='host=... port=... user=... password=... dbname=...' of the server whose place is taken",
        )
    return host, port


def at_address(dsn: str, address: Address) -> str:
    """The same connection to another server; it wins over what a service's file says."""
    kept = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if key != "hostaddr"}
    if "service" in kept or "PGSERVICE" in os.environ:
        kept["hostaddr"] = ""
    return make_conninfo("", **kept | {"host": address[0], "port": address[1]})


def lead_file_to(file: Path, service: str, address: Address) -> None:
    """Have the service's section of a connection service file name another host and port; all else in it stays.

    Whole or not at all: who reads it meanwhile sees the old file or the new one. A section that is not there is added;
    so is the file. Raises ConfigurationError where its folder cannot be written to.
    """
    place = file.resolve()
    try:
        text = place.read_text() if place.exists() else ""
        draft = place.with_name(f".{place.name}.{os.getpid()}.draft")
        with open(draft, "w", opener=lambda name, flags: os.open(name, flags, 0o644)) as output:
            output.write(_led_to(text, service, address))
            output.flush()
            if place.exists():
                status = place.stat()
                os.fchmod(output.fileno(), status.st_mode & 0o7777)
                if os.geteuid() == 0:
                    os.fchown(output.fileno(), status.st_uid, status.st_gid)
            else:
                os.fchmod(output.fileno(), 0o644)
            os.fsync(output.fileno())
        draft.replace(place)
        descriptor = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"the file that the clients of {service} follow, {file}, cannot be replaced: {error.strerror}",
            hint=f"{variable('connection_file', service)} names it; its folder has to be writable",
        ) from None


def _led_to(text: str, service: str, address: Address) -> str:
    lines = text.splitlines()
    first, last, _ = _section(lines, service)
    kept = [line for line in lines[first:last] if not re.match(r"\s*(host|hostaddr|port)=", line)]
    own = [f"host={address[0]}", f"port={address[1]}"]
    if not any(line.strip() == f"[{service}]" for line in lines):
        own = ([""] if lines else []) + [f"[{service}]", *own]
    return "\n".join([*lines[:first], *own, *kept, *lines[last:]]) + "\n"


def _section(lines: list[str], service: str) -> tuple[int, int, dict[str, str]]:
    """Where the section's lines begin and end, and what they say; at the end of the file where there is none."""
    try:
        first = next(number for number, line in enumerate(lines) if line.strip() == f"[{service}]") + 1
    except StopIteration:
        return len(lines), len(lines), {}
    ends = (number for number in range(first, len(lines)) if lines[number].strip().startswith("["))
    last = next(ends, len(lines))
    pairs = (line.strip().partition("=") for line in lines[first:last] if not line.strip().startswith("#"))
    return first, last, {name: value for name, equals, value in pairs if equals}


def run_command(command: str, environment: Mapping[str, str]) -> None:
    """Run a command of the team's own, by the shell, with what it has to know in its environment.

    Raises ProcessError with its last words where it fails, or is not done after five minutes.
    """
    run(["/bin/sh", "-c", command], env=environment, timeout=_PATIENCE)
